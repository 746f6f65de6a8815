"""Kinds of tests, and the quick ones among them.

A test is `quick`, and in `make quick`, unless one of these markers is on it:

- `slow`: it takes more than about ten seconds.
- `processes`: it starts a process, or forks.  Put on by itself where the test
  uses `environment`, or a fixture that does; by hand elsewhere.  A quick
  test that starts a process fails.
- `compiles`: it compiles more than a layer, or trains, or works through much
  data.  Put on by itself where the test uses one of `COMPILING`.

Besides, `torch` is on every test of a file that is skipped, in part or whole,
without PyTorch, for `make torch`.

At the end of a run of quick tests those are listed that took long.
"""

import _posixsubprocess
import collections
import functools
import pathlib
import re
import resource
import sys

import numpy.testing  # noqa: F401  # starts a process when NumPy 2.1 imports it
import pytest

# Fixtures that stand for models of several layers.
COMPILING = {"compile_plan", "flow", "starter_folder"}
SLOW_SECONDS = 3.0  # of CPU, in a quick test
_REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
_FOLDERS = pytest.StashKey[dict[str, int]]()
_BEGAN = pytest.StashKey[float]()
_CPU = "cpu_seconds"
# Calls that skip a test, and the two modules of tests that write with PyTorch.
_NEEDS_TORCH = re.compile(
  r'importorskip\(\s*"torch"|\blayout_writers\b|\bfamilies\.write\b'
)
# Audit events of Python; https://docs.python.org/3/library/audit_events.html
_STARTS = {
  "os.fork",
  "os.forkpty",
  "os.posix_spawn",
  "os.system",
  "subprocess.Popen",
}
_running: list[pytest.Item] = []
_watched = False  # an audit hook stays for ever


def pytest_configure(config: pytest.Config) -> None:
  """Registers the markers, and watches the functions that start processes."""
  for line in (
    "slow: takes more than about ten seconds",
    "processes: starts a process or forks",
    "compiles: compiles more than a layer, trains, or works through much data",
    "quick: none of these; put on by itself",
    "torch: in a file that needs PyTorch; put on by itself",
  ):
    config.addinivalue_line("markers", line)
  global _watched
  if not _watched:
    sys.addaudithook(_watch)
    # What multiprocessing calls to spawn raises no event of its own.
    function = _posixsubprocess.fork_exec
    _posixsubprocess.fork_exec = functools.partial(_spawn, function)
    _watched = True


def _watch(event: str, args: tuple, starts=_STARTS, running=_running) -> None:
  """Fails a quick test that starts a process: it is not quick.

  When Python ends, it is called once the names of this module are gone.
  """
  if event in starts and any(
    item.get_closest_marker("quick") for item in running
  ):
    pytest.fail("this test starts a process: mark it @pytest.mark.processes")


def _spawn(function, *args):
  sys.audit("subprocess.Popen", args)
  return function(*args)


def is_quick(item: pytest.Item) -> bool:
  """True where no other marker is on it."""
  others = ("slow", "processes", "compiles")
  return not any(item.get_closest_marker(name) for name in others)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(
  config: pytest.Config, items: list[pytest.Item]
) -> None:
  """Puts the markers on, and files with slow tests first.

  Else a worker would have to wait for the last one's.
  """
  folders: dict[str, int] = collections.Counter()
  for item in items:
    fixtures = set(getattr(item, "fixturenames", ()))
    if "environment" in fixtures:
      item.add_marker("processes")
    if fixtures & COMPILING:
      item.add_marker("compiles")
    if is_quick(item):
      item.add_marker("quick")
    if _needs_torch(item.path):
      item.add_marker("torch")
    folder = item.path.parent.relative_to(_REPOSITORY).as_posix()
    folders[folder] += is_quick(item)
  config.stash[_FOLDERS] = folders
  slow = collections.Counter(
    item.path for item in items if item.get_closest_marker("slow")
  )
  items.sort(key=lambda item: -slow[item.path])


@functools.cache
def _needs_torch(path: pathlib.Path) -> bool:
  return _NEEDS_TORCH.search(path.read_text("utf-8")) is not None


def quick_tests(config: pytest.Config) -> dict[str, int]:
  """How many quick tests were found, by folder that has tests."""
  return config.stash[_FOLDERS]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item):
  """Knows which test runs, and when it began."""
  item.stash[_BEGAN] = _seconds()
  _running.append(item)
  try:
    return (yield)
  finally:
    _running.pop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
  """Sends the seconds with the report: it may go to another process."""
  if call.when == "call" and is_quick(item):
    seconds = _seconds() - item.stash[_BEGAN]
    item.user_properties.append((_CPU, seconds))
  return (yield)


def pytest_terminal_summary(terminalreporter) -> None:
  """Quick tests that are not."""
  took = {
    report.nodeid: value
    for reports in terminalreporter.stats.values()
    for report in reports
    if getattr(report, "when", None) == "call"
    for name, value in report.user_properties
    if name == _CPU and value > SLOW_SECONDS
  }
  if took:
    terminalreporter.section("slow for quick tests: mark them `compiles`?")
  for name in sorted(took, key=took.get, reverse=True):
    terminalreporter.line(f"{took[name]:5.1f} s of CPU  {name}")


def _seconds() -> float:
  usage = resource.getrusage(resource.RUSAGE_SELF)
  return usage.ru_utime + usage.ru_stime
