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
