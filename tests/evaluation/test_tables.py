"""Tables on a terminal of some width, and off it."""

import io
import re

import pytest

from dpr_jax.evaluation import tables

HALF = {f"top{k}": 0.5 for k in (1, 20, 100)}
ROWS = {"bm25": HALF | {f"gold_{key}": 0.25 for key in HALF}}


class Terminal(io.StringIO):
  """A file that says that it is a terminal."""

  def isatty(self):
    return True


def _shown(file, rows=ROWS):
  tables.print_table(tables.comparison_table(rows, "dev"), file)
  return file.getvalue()


def test_plain_and_whole_off_a_terminal(monkeypatch):
  """No lines, no colours, no trailing spaces; COLUMNS is a terminal's."""
  monkeypatch.setenv("COLUMNS", "20")
  assert _shown(io.StringIO(), {"bm25": HALF, "a": {"top1": 1.0}}) == (
    "dev\n"
    "method  answer top-1  answer top-20  answer top-100\n"
    "bm25            50.0           50.0            50.0\n"
    "a              100.0              -               -\n"
  )


@pytest.mark.parametrize(
  ("columns", "left_out"),
  [
    # Every column has its width, two spaces and a line: 1 + 9 + 3 x answer
    # (15, 16, 17) + 3 x gold (13, 14, 15) = 100.
    (100, []),
    (99, ["gold top-100"]),
    (84, ["gold top-100", "answer top-100"]),
    (66, ["gold top-100", "answer top-100", "gold top-20"]),
    (
      10,
      [
        *("gold top-100", "answer top-100", "gold top-20", "answer top-20"),
        *("gold top-1", "answer top-1"),
      ],
    ),
  ],
)
def test_what_does_not_fit_is_left_out(monkeypatch, columns, left_out):
  """The deepest first; never a figure cut in two."""
  monkeypatch.setenv("COLUMNS", str(columns))
  shown = _shown(Terminal())
  *table, last = shown.splitlines()
  assert ("left out: " in shown) == bool(left_out)
  if left_out:
    assert last == f"left out: {', '.join(left_out)}"
  table = "\n".join(table)
  for name in ("answer top-1", "answer top-20", "gold top-100", "gold top-20"):
    shows = re.search(rf"{name}(?!\d)", table) is not None
    assert shows == (name not in left_out), name
  assert "\u2026" not in shown


def test_a_table_without_depths_stays_whole(monkeypatch):
  monkeypatch.setenv("COLUMNS", "10")
  shown = _shown(Terminal(), {"bm25": {"em": 0.125, "f1": 0.5}})
  assert "12.5" in shown
  assert "50.0" in shown
  assert "left out" not in shown


def test_table_is_plain_and_unwrapped_off_a_terminal():
  measures = {f"top{k}": 0.5 for k in (1, 5, 20, 100)}
  measures |= {f"gold_{key}": 0.25 for key in list(measures)}
  measures["questions"] = 7
  table = tables.comparison_table(
    {"a-method-with-quite-a-long-name": measures, "[dense]": {"top1": 1.0}},
    "dev",
  )
  file = io.StringIO()
  tables.print_table(table, file)
  text = file.getvalue()
  assert "\x1b" not in text
  lines = text.splitlines()
  assert "questions" not in text
  header = next(line for line in lines if "method" in line)
  for name in ("answer top-1 ", "answer top-100", "gold top-1 "):
    assert name in header
  assert header.index("top-5") < header.index("top-20")
  assert header.index("answer top-100") < header.index("gold top-1")
  (row,) = [line for line in lines if "quite-a-long-name" in line]
  assert row.count("50.0") == row.count("25.0") == 4
  (row,) = [line for line in lines if "[dense]" in line]
  assert "100.0" in row
