"""A pytest plugin: counts trials by the rows of docs/faults.md, shows a table.

A test with many trials takes the fixture `tally`:

  rows = tally(9)
  for trial in rows.each(trials):
    with rows.trial(trial):
      assert ...

and fails at its end, when all trials have run, with a list of those that did
not pass.  A test that is one trial is marked `@pytest.mark.fault_row(4)`, or
`fault_row(1, trials=20)` where it is 20 that pass or fail together.
DPR_JAX_TRIAL=TEXT repeats the trials whose name holds TEXT, and
DPR_JAX_FAULTS_LOG=FILE gets a line for each that does not pass, at once.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator

import pytest

ROWS = {
  1: "train killed at any moment goes on to the same end",
  2: "SIGTERM and SIGINT: nothing lost, 143 and 130",
  3: "embed killed at any moment: the same bytes",
  4: "one of several processes dies or hangs: all end, with its number",
  5: "other numbers of devices: the same batches and losses",
  6: "damaged checkpoints are seen",
  7: "damaged artefacts are seen before they are used",
  8: "what does not belong together is refused",
  9: "a disk that fails is one line, and running again goes on",
  10: "the second process in a workdir ends and names the first",
  12: "hostile pickles do nothing",
  13: "random bytes end in our own errors",
  14: "hostile text costs no time and no memory",
  17: "mistakes in the config are refused before anything starts",
  18: "every safeguard that is removed breaks a test",
}
_PROPERTY = "fault row"
WANTED = os.environ.get("DPR_JAX_TRIAL", "")
_LOG = os.environ.get("DPR_JAX_FAULTS_LOG")
_TALLIES = pytest.StashKey[list]()


class Tally:
  """The trials of one test that count for one row."""

  def __init__(self, row: int):
    """Args: row: a key of `ROWS`."""
    self.row, self.passed = row, 0
    self.failed: list[tuple[str, str]] = []

  def each(self, trials: Iterable) -> Iterator:
    """The trials, or those of them that DPR_JAX_TRIAL asks for."""
    return (trial for trial in trials if WANTED in str(trial))

  @contextlib.contextmanager
  def trial(self, name: object) -> Iterator[None]:
    """A block that passes unless it raises; the other trials go on."""
    try:
      yield
    except Exception as error:
      text = str(error) or repr(error)
      self.failed.append((str(name), text.partition("\nassert ")[0]))
      if _LOG:
        with open(_LOG, "a") as log:
          print(f"{name}: {self.failed[-1][1]}", file=log)
    else:
      self.passed += 1


@pytest.fixture
def tally(request):
  """Makes a `Tally` of a row for this test."""

  def make(row: int) -> Tally:
    made = Tally(row)
    request.node.stash.setdefault(_TALLIES, []).append(made)
    return made

  return make


def pytest_configure(config: pytest.Config) -> None:
  """Makes the marker known."""
  config.addinivalue_line(
    "markers",
    "fault_row(row, trials=1): counts for this row of the fault suite",
  )


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function):
  """Fails a test that had failed trials, when it has run all of them."""
  result = yield
  failed = [
    f"{name}: {text}"
    for tally in pyfuncitem.stash.get(_TALLIES, [])
    for name, text in tally.failed
  ]
  if failed:
    pytest.fail(
      f"{len(failed)} trials did not pass (DPR_JAX_TRIAL='...' repeats one):\n"
      + "\n".join(failed),
      pytrace=False,
    )
  return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
  """Sends the counts with the report: it may go to another process."""
  if call.when == "call":
    for tally in item.stash.get(_TALLIES, []):
      total = tally.passed + len(tally.failed)
      item.user_properties.append((_PROPERTY, (tally.row, tally.passed, total)))
    skipped = call.excinfo and call.excinfo.errisinstance(
      (pytest.skip.Exception, pytest.xfail.Exception)
    )
    for marker in item.iter_markers("fault_row"):
      trials = marker.kwargs.get("trials", 1)
      passed = 0 if call.excinfo else trials
      if not skipped:
        item.user_properties.append(
          (_PROPERTY, (marker.args[0], passed, trials))
        )
  return (yield)


def pytest_terminal_summary(terminalreporter) -> None:
  """The table, where trials were counted."""
  counts: dict[int, list[int]] = {}
  for reports in terminalreporter.stats.values():
    for report in reports:
      if getattr(report, "when", None) != "call":
        continue
      for name, value in report.user_properties:
        if name == _PROPERTY:
          row, passed, total = value
          both = counts.setdefault(row, [0, 0])
          both[0] += passed
          both[1] += total
  if not counts:
    return
  terminalreporter.section("faults")
  for row in sorted(counts):
    passed, total = counts[row]
    terminalreporter.line(f"{row:3} | {ROWS[row]:64} | {passed} of {total}")
