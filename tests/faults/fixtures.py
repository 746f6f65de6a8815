"""A forking process and finished workdirs: for the fault suite, and others.

A plugin of all tests (`pytest_plugins` of tests/conftest.py).
"""

import os
import shutil
import subprocess

import filelock
import pytest

from tests.faults import flows, trials


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
  """One folder for all workers of this run, and a lock for who fills it."""
  folder = tmp_path_factory.getbasetemp()
  if "PYTEST_XDIST_WORKER" in os.environ:
    folder = folder.parent
  folder = folder / "faults"
  folder.mkdir(exist_ok=True)
  return folder


@pytest.fixture(scope="session")
def failing_disk(shared_folder):
  """failing_disk.c, compiled; None without a C compiler."""
  compiler = shutil.which("cc") or shutil.which("gcc")
  if not compiler:
    return None
  library = shared_folder / "failing_disk.so"
  with filelock.FileLock(shared_folder / "compile.lock"):
    if not library.exists():
      subprocess.run(
        [compiler, "-O1", "-std=gnu11", "-fPIC", "-shared", "-o", library]
        + [trials.HERE / "failing_disk.c", "-ldl"],
        check=True,
      )
  return library


@pytest.fixture(scope="session")
def zygote(failing_disk, environment, tmp_path_factory):
  """Forks a command in a moment."""
  zygote = trials.Zygote(
    tmp_path_factory.mktemp("zygote"), environment, failing_disk
  )
  yield zygote
  zygote.close()


@pytest.fixture(scope="session")
def flow(zygote, shared_folder, tiny_config, write_config):
  """A tiny workdir after every stage of the whole flow, for copies."""
  flow = flows.Flow(zygote, shared_folder / "flow")
  with filelock.FileLock(shared_folder / "flow.lock"):
    if not flow.is_made():
      flow.make(flows.tiny(tiny_config), write_config)
  return flow
