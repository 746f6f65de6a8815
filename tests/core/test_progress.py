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
  """With place, total, speed since the start, and the values shown."""
  monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
  monkeypatch.setattr(sys, "stderr", io.StringIO())
  lines = []
  monkeypatch.setattr(
    logging, "info", lambda text, *args: lines.append(text % args)
  )
  _walk(loss="0.5")
  assert len(lines) == 3
  assert lines[-1].startswith("embed: 5 of 5 passages, ")
  assert lines[-1].endswith(" passages/s, loss 0.5")
  assert sys.stderr.getvalue() == ""


def test_a_bar_on_a_terminal(monkeypatch):
  """Tqdm's."""

  class Terminal(io.StringIO):
    def isatty(self):
      return True

  terminal = Terminal()
  monkeypatch.setattr(sys, "stderr", terminal)
  _walk()
  assert "embed: " in terminal.getvalue()
  assert "5/5" in terminal.getvalue()


def test_the_speed_is_that_of_this_run(monkeypatch):
  """What an earlier run did took none of this one's time.

  3 passages in 6 seconds; with the 2 that were there it would be 0.8.
  """
  now = [100.0]
  monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
  monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
  monkeypatch.setattr(sys, "stderr", io.StringIO())
  lines = []
  monkeypatch.setattr(
    logging, "info", lambda text, *args: lines.append(text % args)
  )
  with progress.Progress(5, "embed", "passages", first=2) as bar:
    for _ in range(3):
      now[0] += 2
      bar.update()
  assert lines == [
    f"embed: {count} of 5 passages, 0.5 passages/s" for count in (3, 4, 5)
  ]
