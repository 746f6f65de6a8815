"""Prints tables that compare methods, in percent.

Input: the fractions of `evaluation/<questions>.json`.  Output: a rich table.
On a terminal it fits the width: columns that do not fit are left out, top-100
first, and named below.  Elsewhere it is plain text without lines, complete,
never wrapped or cut.
"""

import io
import os
import re
import sys
from collections.abc import Mapping, Sequence

import rich.console
import rich.table

_MEASURE = re.compile(r"(gold_)?top(\d+)|[A-Za-z]+@(\d+)")
_ANSWERS = re.compile(r"(em|f1)(?:_(\d+))?")
_NAMES = {"em": "EM", "f1": "F1"}
_WIDTH = 1000  # wider than any table: rich wraps and cuts at this width
# Columns that may be left out to fit the width, the deepest first.
_DEPTH = re.compile(r"top-(\d+)|@(\d+)")


def comparison_table(
  rows: Mapping[str, Mapping[str, float | int]], title: str
) -> rich.table.Table:
  """A table with methods as rows and measures as columns, in percent.

  Columns are answer top-k, gold top-k, judged measures, then EM and F1 of the
  answers, also by the number of passages read, except the largest, whose scores
  are EM and F1 themselves.

  Args:
    rows: {"dense": {"top20": 0.784, "gold_top20": 0.65}, ...}; other keys
      (counts) are not shown.
    title: title above the table.
  """
  columns = _columns([*rows.values()])
  table = rich.table.Table(title=title, title_justify="left")
  table.add_column("method", no_wrap=True)
  for column in columns:
    table.add_column(_title(column), justify="right", no_wrap=True)
  for name, measures in rows.items():
    table.add_row(name, *(_percent(measures.get(key)) for key in columns))
  return table


def _title(column: str) -> str:
  """Title of a measure's column."""
  if match := _ANSWERS.fullmatch(column):
    name = _NAMES[match[1]]
    return f"{name}, {match[2]} read" if match[2] else name
  gold, rank, judged = _MEASURE.fullmatch(column).groups()
  return column if judged else f"{'gold' if gold else 'answer'} top-{rank}"


def _columns(rows: Sequence[Mapping[str, float | int]]) -> list[str]:
  """Measures in any row, sorted: answers, gold passages, judgements; by k."""
  keys = {key for row in rows for key in row}
  measures = sorted(
    filter(_MEASURE.fullmatch, keys),
    key=lambda key: (
      "@" in key,
      key.startswith("gold_"),
      int(re.search(r"\d+$", key)[0]),
      key,
    ),
  )
  read = filter(None, map(_ANSWERS.fullmatch, keys))
  counts = sorted({int(match[2]) for match in read if match[2]})
  suffixes = ["", *(f"_{count}" for count in counts[:-1])]
  return measures + [
    name + suffix
    for suffix in reversed(suffixes)
    for name in _NAMES
    if name + suffix in keys
  ]


def _percent(fraction: float | int | None) -> str:
  return "-" if fraction is None else f"{100 * fraction:.1f}"


def print_table(
  table: rich.table.Table, file: io.TextIOBase | None = None
) -> None:
  """Prints a table, narrowed for a terminal, or as plain text elsewhere.

  Args:
    table: the table; it is changed to be narrower or plain.
    file: output file; None = standard output.
  """
  file = file or sys.stdout
  terminal = file.isatty()
  left_out = _fit(table, _terminal_width(file)) if terminal else []
  if not terminal:
    table.box, table.pad_edge = None, False
    table.padding, table.title_style = (0, 2, 0, 0), ""
  console = rich.console.Console(
    file=file,
    width=_WIDTH,
    highlight=False,
    markup=False,
    color_system="auto" if terminal else None,
  )
  with console.capture() as captured:
    console.print(table)
  text = captured.get()
  if not terminal:  # rich fills every line up to the width of the table
    text = "\n".join(line.rstrip() for line in text.split("\n"))
  file.write(text)
  if left_out:
    file.write(f"left out: {', '.join(left_out)}\n")


def _terminal_width(file: io.TextIOBase) -> int:
  """Width of a terminal in characters: COLUMNS, or the terminal's own size."""
  typed = os.environ.get("COLUMNS", "")
  if typed.isdigit() and int(typed):
    return int(typed)
  try:
    return os.get_terminal_size(file.fileno()).columns or 80
  except OSError:
    return 80


def _fit(table: rich.table.Table, width: int) -> list[str]:
  """Removes columns of a table until it fits; returns their names.

  A table that is still too wide without them is not changed further: figures
  are never cut.
  """
  console = rich.console.Console(width=_WIDTH)
  left_out = []
  while console.measure(table).maximum > width:
    deep = [column for column in table.columns if _depth(column)]
    if not deep:
      break
    # Of equal depth the last column is removed first: gold before answers.
    deepest = max(reversed(deep), key=_depth)
    table.columns.remove(deepest)
    left_out.append(str(deepest.header))
  return left_out


def _depth(column: rich.table.Column) -> int:
  match = _DEPTH.search(str(column.header))
  return int(match[1] or match[2]) if match else 0
