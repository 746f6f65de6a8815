"""A bar on a terminal, lines elsewhere."""

import io
import json
import sys

import pytest
from absl import logging

from dpr_jax.core import log_lines, progress


@pytest.fixture(name="now")
def fixture_now(monkeypatch):
  """A clock that a test sets, and a line for every update; no terminal."""
  now = [100.0]
  monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
  monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
  return now


@pytest.fixture(name="lines")
def fixture_lines(monkeypatch):
  """What is logged."""
  lines = []
  monkeypatch.setattr(
    logging, "info", lambda text, *args, **_: lines.append(text % args)
  )
  return lines


def test_lines_without_a_terminal(now, lines, monkeypatch):
  """With place, total, speed, time left, and the values shown; no bar.

  3 passages in 6 seconds of the 5, the first 2 of which were there before; with
  those the speed would be 0.8 passages/s.
  """
  stderr = io.StringIO()
  monkeypatch.setattr(sys, "stderr", stderr)
  with progress.Progress(5, "embed", "passages", first=2) as bar:
    for count in range(3):
      now[0] += 2
      bar.show({"loss": f"0.{count}"})
      bar.update()
  assert lines == [
    "embed: 3/5 passages, 2 s/passage, 0:04 left, loss 0.0",
    "embed: 4/5 passages, 2 s/passage, 0:02 left, loss 0.1",
    "embed: 5/5 passages, 2 s/passage, 0:00 left, loss 0.2",
  ]
  assert stderr.getvalue() == ""


def test_steps_of_a_resumed_run(now, lines):
  """The speed is that of the steps of this call.

  1 step in 13.9 s and 105 to go: 1459.5 s, 24 minutes and 20 seconds.
  """
  with progress.Progress(112, "train", "steps", first=6) as bar:
    now[0] += 13.9
    bar.show({"loss": "0.217", "in-batch accuracy": "0.94"})
    bar.update()
  assert lines == [
    "train: step 7/112, 13.9 s/step, 24:20 left, loss 0.217, in-batch accuracy"
    " 0.94"
  ]


def test_speeds_above_one_a_second(now, lines):
  """1,200 in 26 2/3 s are 45 a second; 8,800 more take 195.6 s."""
  with progress.Progress(10_000, "embed", "passages") as bar:
    now[0] += 1200 / 45
    bar.update(1200)
  with progress.Progress(40_000_000, "index", "vectors") as bar:
    now[0] += 1
    bar.update(2500)  # 39,997,500 / 2500 s: 4 h 26 min 39 s
  assert lines == [
    "embed: 1,200/10,000 passages, 45 passages/s, 3:16 left",
    "index: 2,500/40,000,000 vectors, 2,500 vectors/s, 4:26:39 left",
  ]


def test_an_unknown_total_has_no_time_left(now, lines):
  """Rows of a stream."""
  with progress.Progress(None, "write passages", "rows") as bar:
    now[0] += 2
    bar.update(3)
  assert lines == ["write passages: 3 rows, 1.5 rows/s"]


def test_the_clock_can_start_later(now, lines):
  """Work before the first unit does not count for the speed."""
  with progress.Progress(3, "train", "steps") as bar:
    now[0] += 100
    bar.start_clock()
    now[0] += 4
    bar.update()
  assert lines == ["train: step 1/3, 4 s/step, 0:08 left"]


def test_other_work_is_not_counted(now, lines):
  """20 s with 12 s of compiling, then 8 s: 8 s a step, not 14 s."""
  with progress.Progress(3, "train", "steps") as bar:
    for seconds, compiling in ((20, 12.0), (8, 0.0)):
      now[0] += seconds
      bar.exclude(compiling)
      bar.update()
  assert lines == [
    "train: step 1/3, 8 s/step, 0:16 left",
    "train: step 2/3, 8 s/step, 0:08 left",
  ]


def test_json_has_the_numbers_as_fields(now, caplog):
  """For programs: the fields beside the message."""
  with caplog.at_level("INFO"):
    with progress.Progress(5, "train", "steps", first=2) as bar:
      now[0] += 8
      bar.show({"in-batch accuracy": "0.94"})
      bar.update()
  found = json.loads(log_lines._Json().format(caplog.records[0]))
  assert found.pop("time")
  assert found == {
    "level": "info",
    "message": ("train: step 3/5, 8 s/step, 0:16 left, in-batch accuracy 0.94"),
    "label": "train",
    "unit": "steps",
    "done": 3,
    "total": 5,
    "per_second": 0.125,
    "seconds_left": 16.0,
    "in_batch_accuracy": 0.94,
  }


def test_a_bar_on_a_terminal(monkeypatch):
  """Tqdm's."""

  class Terminal(io.StringIO):
    def isatty(self):
      return True

  terminal = Terminal()
  monkeypatch.setattr(sys, "stderr", terminal)
  with progress.Progress(5, "embed", "passages", first=2) as bar:
    bar.show({"loss": "0.5"})
    bar.update(3)
  assert "embed: " in terminal.getvalue()
  assert "5/5" in terminal.getvalue()
