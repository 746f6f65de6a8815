"""A bar on a terminal, lines elsewhere."""

import io
import sys

from absl import logging

from dpr_jax.core import progress


def _walk(**shown):
  with progress.Progress(5, "embed", "passages", first=2) as bar:
    bar.show(**shown)
    for _ in range(3):
      bar.update()


def test_lines_without_a_terminal(monkeypatch):
  """Count, total, speed since the start, and the values shown."""
  monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
  monkeypatch.setattr(sys, "stderr", io.StringIO())
  lines = []
  monkeypatch.setattr(
    logging, "info", lambda text, *args: lines.append(text % args)
  )
  _walk(loss="0.5")
  assert len(lines) == 3
  assert lines[-1].startswith("embed: 5/5 passages, ")
  assert lines[-1].endswith(" passages/s, loss 0.5")
  assert sys.stderr.getvalue() == ""


def test_a_bar_on_a_terminal(monkeypatch):
  """Tqdm's."""

  class Terminal(io.StringIO):
    def isatty(self):
      return True

  terminal = Terminal()
  monkeypatch.delenv("TQDM_DISABLE", raising=False)
  monkeypatch.setattr(sys, "stderr", terminal)
  _walk()
  assert "embed: " in terminal.getvalue()
  assert "5/5" in terminal.getvalue()


def test_the_speed_is_that_of_this_run(monkeypatch):
  """What an earlier run did took none of this one's time.

  3 passages in 6 seconds; with the 2 of the earlier run it would be 1.2 s.
  """
  lines = _lines(monkeypatch, 2.0, (5, "embed", "passages", 2))
  assert lines == [
    "embed: 3/5 passages, 2.0 s/passage, 00:04 left",
    "embed: 4/5 passages, 2.0 s/passage, 00:02 left",
    "embed: 5/5 passages, 2.0 s/passage",
  ]


def _lines(monkeypatch, seconds, arguments):
  """Lines of three updates, so many seconds each."""
  now = [100.0]
  monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
  monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
  monkeypatch.setattr(sys, "stderr", io.StringIO())
  lines = []
  monkeypatch.setattr(
    logging, "info", lambda text, *args: lines.append(text % args)
  )
  with progress.Progress(*arguments) as bar:
    for _ in range(3):
      now[0] += seconds
      bar.update()
  return lines


def test_steps(monkeypatch):
  """The number of the step first: 13.9 s each, 105 steps of them left."""
  lines = _lines(monkeypatch, 13.9, (112, "train", "steps", 4))
  assert lines[-1] == "train: step 7/112, 13.9 s/step, 24:19 left"


def test_fast_units_without_a_total(monkeypatch):
  """Units per second; without a total nothing says how long it takes."""
  lines = _lines(monkeypatch, 0.25, (None, "write", "rows", 0))
  assert lines[-1] == "write: 3 rows, 4.0 rows/s"
