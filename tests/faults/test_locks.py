"""Row 10: two commands in one workdir, and a first one that was killed.

The second ends within five seconds, with exit code 2 and the number of the
process that has the workdir; when that is gone, however it went, the workdir
is free.
"""

import random
import shutil
import signal
import time

import pytest

from tests.faults.amounts import amount

TRIALS = amount(50, 6)
HOLDERS = ("prepare", "mine", "train", "embed", "index", "retrieve")
SECONDS = ("mine", "train", "embed", "evaluate", "prepare")
# Holds the lock for a moment longer: a tiny stage would be over at once.
SLOW = """
import time
from dpr_jax.cli import run_stages
stages = run_stages._do
def slow(*arguments):
  time.sleep(0.5)
  return stages(*arguments)
run_stages._do = slow
"""


def _wait_for_lock(root, run):
  deadline = time.monotonic() + 30
  while not (root / "w/.lock.json").exists():
    assert time.monotonic() < deadline, "the lock was never taken"
    assert not run.ended(), run.wait().stderr
    time.sleep(0.005)


def _check_second(ended, run):
  assert ended.code == 2, f"exit {ended.code}: {ended.stderr[-300:]}"
  assert len(ended.lines) == 1, ended.stderr
  assert f"is in use by process {run.pid}" in ended.lines[0], ended.lines[0]
  assert ended.seconds < 5, f"{ended.seconds:.1f} s"


def _while_it_works(flow, root, holder, second):
  """The first is stopped while it has the lock; the second is refused."""
  run = flow.zygote.start(*flow.argv(holder, root), cwd=root, hook=SLOW)
  _wait_for_lock(root, run)
  run.signal(signal.SIGSTOP)
  try:
    _check_second(flow.run(second, root), run)
  finally:
    run.signal(signal.SIGCONT)
  ended = run.wait()
  assert ended.code == 0, ended.stderr[-300:]


def _killed(flow, root, holder, chance):
  """The first is killed at any moment; the next one does the work."""
  run = flow.zygote.start(*flow.argv(holder, root), cwd=root)
  _wait_for_lock(root, run)
  time.sleep(chance.uniform(0, 0.5))
  run.signal(signal.SIGKILL)
  run.wait()
  ended = flow.run(holder, root)
  assert ended.code == 0, f"after a kill: {ended.stderr[-300:]}"


def _at_once(flow, root, holder):
  """Both start at the same time: one works, the other is refused."""
  runs = [
    flow.zygote.start(*flow.argv(holder, root), cwd=root, hook=SLOW)
    for _ in range(2)
  ]
  ends = [run.wait() for run in runs]
  assert sorted(end.code for end in ends) == [0, 2], [e.stderr for e in ends]
  first, second = (0, 1) if ends[0].code == 0 else (1, 0)
  assert len(ends[second].lines) == 1, ends[second].stderr
  line = ends[second].lines[0]
  # Between taking the lock and saying whose it is, there is a moment.
  assert "is in use by" in line, line
  assert f"process {runs[first].pid}" in line or "another process" in line, line
  assert ends[second].seconds < 5


@pytest.mark.slow
def test_one_at_a_time(flow, tally, tmp_path):
  rows, chance = tally(10), random.Random(10)
  kinds = ("second", "killed", "at once")
  trials = [
    (n, kinds[n % 3], chance.choice(HOLDERS), chance.choice(SECONDS))
    for n in range(TRIALS)
  ]
  for number, kind, holder, second in rows.each(trials):
    root = tmp_path / "root"
    shutil.rmtree(root, ignore_errors=True)
    flow.copy_before(holder, root)
    with rows.trial((number, kind, holder, second)):
      if kind == "second":
        _while_it_works(flow, root, holder, second)
      elif kind == "killed":
        _killed(flow, root, holder, chance)
      else:
        _at_once(flow, root, holder)
      left = [p.name for p in (root / "w").iterdir() if p.name.startswith(".")]
      assert left == [".lock"], f"left: {left}"
      other = flow.differences(holder, root)
      assert not other, f"other files: {other}"
      checked = flow.check(root)
      assert checked.code == 0, f"check: {checked.stdout[-300:]}"
