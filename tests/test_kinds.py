"""Which tests are quick, and that they start no process."""

import multiprocessing
import os
import subprocess

import pytest

from tests import kinds


def test_every_folder_has_quick_tests(request, repository):
  """At least two for each folder of the package that has tests."""
  found = kinds.quick_tests(request.config)
  folders = {
    f"tests/{path.parent.name}"
    for path in (repository / "dpr_jax").glob("*/__init__.py")
    if (repository / "tests" / path.parent.name).is_dir()
  }
  if not folders <= found.keys():
    pytest.skip("only some folders were collected")
  assert len(folders) >= 12
  few = {folder: found[folder] for folder in folders if found[folder] < 2}
  assert not few


@pytest.mark.parametrize(
  "start",
  [
    lambda: subprocess.run(["true"]),
    os.fork,
    lambda: os.system("true"),
    lambda: os.posix_spawn("/bin/true", ["true"], {}),
    multiprocessing.get_context("spawn").Process(target=print).start,
    multiprocessing.get_context("fork").Process(target=print).start,
  ],
  ids=["subprocess", "fork", "system", "posix_spawn", "spawn", "mp-fork"],
)
def test_a_test_that_starts_a_process_says_so(start):
  with pytest.raises(pytest.fail.Exception, match="mark it @pytest.mark.pro"):
    start()


@pytest.mark.processes
def test_one_that_says_so_may():
  assert subprocess.run(["true"]).returncode == 0


class Item:
  """What `is_quick` asks."""

  def __init__(self, *markers):
    self.get_closest_marker = lambda name: name in markers


def test_is_quick():
  assert kinds.is_quick(Item("fault_row"))
  for marker in ("slow", "processes", "compiles"):
    assert not kinds.is_quick(Item("fault_row", marker))


def test_markers_that_put_themselves_on(request, environment):
  """`environment` is for processes, so this is no quick test."""
  del environment
  assert request.node.get_closest_marker("processes")
  assert not request.node.get_closest_marker("quick")
