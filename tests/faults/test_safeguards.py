"""Row 18: a safeguard that is taken away breaks a test.

In a copy of the package one line of safeguards.py is replaced, and the one test
that watches over it is run there: it must fail.
"""

import os
import shutil
import subprocess
import sys

import pytest

from dpr_jax.core import atomic_files
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.models import checkpoint_files
from tests.faults import safeguards
from tests.faults.amounts import FULL

FOLDERS = ("dpr_jax", "tests", "configs", "launch")
FILES = ("pyproject.toml", "setup.py")


def test_every_line_is_there_once(repository):
  """And so is the test: else a safeguard could go without a word."""
  for name, (file, line, _, test) in safeguards.ALL.items():
    text = (repository / "dpr_jax" / file).read_text()
    assert text.count(line) == 1, f"{name}: {file}: {line}"
    path, _, function = test.partition("::")
    text = (repository / path).read_text()
    assert f"def {function}(" in text, f"{name}: {test}"


@pytest.fixture(scope="module")
def copy(repository, tmp_path_factory):
  """A copy of the package and its tests, to be spoilt."""
  folder = tmp_path_factory.mktemp("spoilt")
  ignore = shutil.ignore_patterns("__pycache__")
  for name in FOLDERS:
    if (repository / name).exists():
      shutil.copytree(repository / name, folder / name, ignore=ignore)
  for name in FILES:
    shutil.copy(repository / name, folder)
  return folder


def _run(copy, environment, test):
  return subprocess.run(
    [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    + ["--tb=line", test],
    cwd=copy,
    env=environment | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
    capture_output=True,
    text=True,
  )


@pytest.mark.slow
@pytest.mark.skipif(not FULL, reason="in `make faults`")
def test_every_removal_breaks_a_test(copy, environment, tally):
  rows = tally(18)
  for name in rows.each(safeguards.ALL):
    file, line, instead, test = safeguards.ALL[name]
    path = copy / "dpr_jax" / file
    text = path.read_text()
    path.write_text(text.replace(line, instead))
    try:
      with rows.trial(name):
        ended = _run(copy, environment, test)
        last = ended.stdout.strip().rpartition("\n")[2]
        assert (ended.returncode, "failed" in last) == (1, True), (
          f"{test}: {last}"
        )
    finally:
      path.write_text(text)
  with rows.trial("nothing removed"):
    tests = {test for _, _, _, test in safeguards.ALL.values()}
    ended = subprocess.run(
      [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
      cwd=copy,
      env=environment | {"PYTHONPATH": str(copy)},
      capture_output=True,
      text=True,
    )
    assert ended.returncode == 0, ended.stdout[-500:]


@pytest.mark.processes
def test_a_second_command_is_refused(tmp_path):
  """The lock is the process's; a second one in it is no holder either."""
  place = workdir_lib.Workdir(tmp_path / "w")
  with workdir_lib.locked(place):
    ended = subprocess.run(
      [
        sys.executable,
        "-c",
        "import sys; from dpr_jax.core import errors, workdir\n"
        f"with workdir.locked(workdir.Workdir({str(place.root)!r})): pass",
      ],
      capture_output=True,
      text=True,
    )
  assert ended.returncode == 1
  assert f"is in use by process {os.getpid()}" in ended.stderr


def test_bytes_are_on_the_disk_before_the_name(tmp_path, monkeypatch):
  """A file's bytes first, then its name, then the names of the folder."""
  calls, fsync, replace = [], os.fsync, os.replace

  def note_fsync(descriptor):
    path = os.readlink(f"/proc/self/fd/{descriptor}")
    calls.append("folder" if path == str(tmp_path) else "bytes")
    fsync(descriptor)

  def note_replace(old, new):
    calls.append("name")
    replace(old, new)

  monkeypatch.setattr(os, "fsync", note_fsync)
  monkeypatch.setattr(os, "replace", note_replace)
  with atomic_files.replace_file(tmp_path / "file.json") as temporary:
    temporary.write_text("{}")
  assert calls == ["bytes", "name", "folder"]


def test_a_checkpoint_of_another_training_is_named(tmp_path):
  """Whole, and with its own sums: but the manifest names another one."""
  folder = tmp_path / "training" / "checkpoints"
  (folder / "4").mkdir(parents=True)
  (folder / "4" / "arrays").write_bytes(b"theirs")
  sums = {"arrays": workdir_lib.fingerprint_file(folder / "4" / "arrays")}
  workdir_lib.write_json(checkpoint_files.sums_path(folder, 4), sums)
  assert checkpoint_files.problem(folder, 4) is None
  found = checkpoint_files.identity(folder, 4)
  manifest = tmp_path / "training" / "manifest.json"
  workdir_lib.write_record(manifest, {"checkpoints": {"4": "a" * 64}})
  said = checkpoint_files.problem(folder, 4)
  assert f"it is checkpoint {found[:12]}…, {manifest} names {'a' * 12}…" in said
