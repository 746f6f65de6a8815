"""Tables for people: methods side by side, in percent.

In come the fractions of `evaluation/<questions>.json`; out comes a rich table.
Off a terminal it has the width that its columns need: nothing is wrapped or
cut.
"""

import io
import re
import sys
from collections.abc import Mapping, Sequence

import rich.console
import rich.table

_MEASURE = re.compile(r"(gold_)?top(\d+)|[A-Za-z]+@(\d+)")
_ANSWERS = re.compile(r"(em|f1)(?:_(\d+))?")
_NAMES = {"em": "EM", "f1": "F1"}
_WIDTH = 1000  # wider than any table: rich wraps and cuts at this width


def comparison_table(
  rows: Mapping[str, Mapping[str, float | int]], title: str
) -> rich.table.Table:
  """Methods as rows; answer top-k, gold top-k, judged measures, in percent.

  Behind them EM and F1 of the answers, also by the number of passages read, but
  the last, which is that of EM and F1 themselves.

  Args:
    rows: {"dense": {"top20": 0.784, "gold_top20": 0.65}, ...}; keys that are
      not such measures (counts) are not shown.
    title: above the table.
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
  """A measure as people read it."""
  if match := _ANSWERS.fullmatch(column):
    name = _NAMES[match[1]]
    return f"{name}, {match[2]} read" if match[2] else name
  gold, rank, judged = _MEASURE.fullmatch(column).groups()
  return column if judged else f"{'gold' if gold else 'answer'} top-{rank}"


def _columns(rows: Sequence[Mapping[str, float | int]]) -> list[str]:
  """Measures of any row: answers, gold passages, judgements; by rank."""
  keys = {key for row in rows for key in row}
  found = sorted(
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
  return found + [
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
  """Prints at the table's own width, to standard output unless told."""
  console = rich.console.Console(
    file=file or sys.stdout, width=_WIDTH, highlight=False, markup=False
  )
  console.print(table)
