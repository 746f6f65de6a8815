"""A disk that is full while training writes: one line, nothing lost.

Real processes, and the system's own refusals: a limit on the size of files, and
a small disk where one can be mounted.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from dpr_jax.core import atomic_files, errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.models import checkpoints
from dpr_jax.training import metrics, train_retriever

pytestmark = pytest.mark.compiles

LIMIT = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
from dpr_jax.cli import main
main.main()
"""


@pytest.fixture(scope="module")
def arguments(config_file):
  """Of a training on one core that saves after every second step."""
  return ("train", f"--config={config_file}", "--cpu_devices=1")


@pytest.fixture(scope="module")
def whole(forked_call, arguments, mined_workdir, tmp_path_factory):
  """A training without faults: what is compiled is in the cache afterwards."""
  place = workdir_lib.Workdir(tmp_path_factory.mktemp("whole") / "w")
  shutil.copytree(mined_workdir.root, place.root)
  done = forked_call(*arguments, f"--workdir={place.root}")
  assert done.returncode == 0, done.stderr
  return place


def _own_lines(stderr):
  """What is no information: that has a clock before it, and no level."""
  information = re.compile(r"[\d:]{8} (?!ERROR|WARNING|CRITICAL|FATAL)")
  lines = [line for line in stderr.splitlines() if line.strip()]
  return [line for line in lines if not information.match(line)]


def _assert_one_line(done, folder, reason):
  assert done.returncode == 2, done.stderr
  lines = _own_lines(done.stderr)
  assert len(lines) == 1, done.stderr
  assert lines[0].startswith("dpr-jax: cannot write ")
  for word in (str(folder), reason, "run the same command again"):
    assert word in lines[0]


def _assert_as_whole(place, whole):
  """Parameters, metrics and names of files are those without faults."""
  params, wanted = (
    checkpoints.load_params(each.training / "checkpoints")
    for each in (place, whole)
  )
  assert params[0] == wanted[0] == 6
  jax.tree.map(np.testing.assert_array_equal, params[1], wanted[1])
  rows, wanted_rows = (
    [
      {key: json.loads(line).get(key) for key in ("step", "loss", "dev_loss")}
      for line in (each.training / "metrics.jsonl").read_text().splitlines()
    ]
    for each in (place, whole)
  )
  assert rows == wanted_rows
  names, wanted_names = (
    {
      path.name
      for folder in ("", "checkpoints")
      for path in (each.training / folder).iterdir()
    }
    for each in (place, whole)
  )
  assert names == wanted_names


@pytest.mark.slow
def test_a_limit_on_the_size_of_files(
  forked_call, environment, arguments, whole, fresh_workdir
):
  """The checkpoint's arrays are larger than a file may be."""
  shutil.copytree(whole.tokens, fresh_workdir.tokens)
  where = f"--workdir={fresh_workdir.root}"
  done = subprocess.run(
    [sys.executable, "-c", LIMIT.format(limit=300_000), *arguments, where],
    capture_output=True,
    text=True,
    env=environment,
  )
  folder = fresh_workdir.training / "checkpoints"
  _assert_one_line(done, folder, "File too large")
  assert not [path for path in folder.iterdir() if "tmp" in path.name]
  done = forked_call(*arguments, where)
  assert done.returncode == 0, done.stderr
  _assert_as_whole(fresh_workdir, whole)


@pytest.fixture
def small_disk(tmp_path):
  """Mounts a disk of so many bytes at `tmp_path/disk`."""
  with contextlib.ExitStack() as stack:

    def small_disk(size):
      folder = tmp_path / "disk"
      folder.mkdir()
      command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
      try:
        mounted = subprocess.run(command, capture_output=True, text=True)
      except FileNotFoundError:
        pytest.skip("no small disk: there is no command mount")
      if mounted.returncode:
        pytest.skip(f"no small disk: {mounted.stderr.strip()}")
      stack.callback(subprocess.run, ["umount", folder], check=True)
      return folder

    yield small_disk


def _size(folder):
  files = [path for path in folder.rglob("*") if path.is_file()]
  return sum(path.stat().st_size for path in files)


@pytest.mark.slow
def test_a_full_disk(forked_call, arguments, whole, small_disk):
  """There is room for one checkpoint, and not for two."""
  one = _size(whole.training / "checkpoints" / "6")
  disk = small_disk(_size(whole.root) - _size(whole.training) + 3 * one // 2)
  place = workdir_lib.Workdir(disk / "w")
  for name in ("data", "negatives", "tokens", "bm25"):
    shutil.copytree(whole.root / name, place.root / name)
  where = f"--workdir={place.root}"
  done = forked_call(*arguments, where)
  folder = place.training / "checkpoints"
  _assert_one_line(done, folder, "No space left on device")
  assert checkpoints.load_params(folder)[0] == 2
  assert not [path for path in folder.iterdir() if "tmp" in path.name]
  remount = ["mount", "-o", "remount,size=100m", disk]
  subprocess.run(remount, check=True)
  done = forked_call(*arguments, where)
  assert done.returncode == 0, done.stderr
  assert "resuming at step 3 of" in done.stderr
  _assert_as_whole(place, whole)


@pytest.fixture(scope="module")
def here(tiny_config, mined_workdir, tmp_path_factory):
  """A training without faults in this process, of eight cores."""
  place = workdir_lib.Workdir(tmp_path_factory.mktemp("here") / "w")
  shutil.copytree(mined_workdir.root, place.root)
  train_retriever.train(tiny_config, place)
  return place


@pytest.mark.parametrize(
  ("name", "time"),
  [
    ("started.json", 1),
    ("started.json", 2),
    ("2.sha256.json", 1),
    ("4", 1),
    ("selected.json", 2),
    ("manifest.json", 1),
  ],
)
def test_a_rename_that_fails(
  tiny_config, fresh_workdir, here, monkeypatch, name, time
):
  """Whatever is written: the line names it, and the rerun ends the same."""
  seen = []
  replace = atomic_files.os.replace

  def fails(source, target):
    if str(target).endswith(f"/{name}"):
      seen.append(target)
      if len(seen) == time:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(source))
    return replace(source, target)

  with monkeypatch.context() as patch:
    patch.setattr(atomic_files.os, "replace", fails)
    with pytest.raises(errors.DiskError, match="cannot write .*Input/output"):
      train_retriever.train(tiny_config, fresh_workdir)
  left = [p for p in fresh_workdir.training.rglob("*") if "tmp" in p.name]
  assert not left
  train_retriever.train(tiny_config, fresh_workdir)
  _assert_as_whole(fresh_workdir, here)


def test_a_row_of_the_metrics_that_fails(
  tiny_config, fresh_workdir, here, monkeypatch
):
  """Half of it may be in the file: it is cut off when the run goes on."""
  write = metrics.MetricsLog.write

  class Full:
    def __init__(self, file):
      self._file = file

    def write(self, text):
      self._file.write(text[: len(text) // 2])

    def flush(self):
      self._file.flush()
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self):
      self._file.close()

  def fails(log, row):
    if row["step"] == 5:
      log._file = Full(log._file)
    write(log, row)

  with monkeypatch.context() as patch:
    patch.setattr(metrics.MetricsLog, "write", fails)
    with pytest.raises(
      errors.DiskError, match=r"cannot write .*metrics\.jsonl: No space left"
    ):
      train_retriever.train(tiny_config, fresh_workdir)
  train_retriever.train(tiny_config, fresh_workdir)
  _assert_as_whole(fresh_workdir, here)


@pytest.mark.slow
def test_the_first_of_two_processes_has_no_room(
  repository, environment, config_file, whole, fresh_workdir
):
  """Both end with the line, and nothing waits for a step that never comes."""
  shutil.copytree(whole.tokens, fresh_workdir.tokens)
  first = 'if __import__("os").environ["DPR_JAX_PROCESS_ID"] == "0": resource'
  code = LIMIT.format(limit=300_000).replace("\nresource", f"\n{first}")
  done = subprocess.run(
    [
      *(sys.executable, repository / "launch" / "cpu_emulate.py"),
      *("--processes=2", "--devices=2", "--grace=10", "--"),
      *(sys.executable, "-c", code, "train", f"--config={config_file}"),
      *(f"--workdir={fresh_workdir.root}", "--config.train.dev_questions=0"),
    ],
    capture_output=True,
    text=True,
    # The programs of two processes are in no cache yet, and would be too large.
    env=environment | {"JAX_ENABLE_COMPILATION_CACHE": "false"},
    timeout=300,
  )
  assert done.returncode == 2, done.stderr
  lines = [
    line for line in done.stderr.splitlines() if "File too large" in line
  ]
  assert {line[:3] for line in lines} == {"[0]", "[1]"}, done.stderr
  for line in lines:
    assert "cannot write" in line
    assert str(fresh_workdir.training / "checkpoints" / "2") in line
  assert "Traceback" not in done.stderr
