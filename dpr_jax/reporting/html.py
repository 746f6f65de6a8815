"""Text, tables and notes of a report as HTML.

Everything that comes from data goes through `text`, which leaves no markup and
no character that HTML cannot hold; `json_script` does the same for JSON.
"""

import dataclasses
import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# What HTML does not allow in a text: controls, surrogates, noncharacters.
_REFUSED = re.compile(
  "[\0-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)
# Characters that reorder the text around them.
_BIDI = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
# In a script element these could end it, or open a comment.
_IN_SCRIPT = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


@dataclasses.dataclass(frozen=True)
class Safe:
  """A piece of HTML, in contrast to a text that is still to be escaped."""

  html: str


@dataclasses.dataclass(frozen=True)
class Section:
  """One section of the page.

  Attributes:
    key: id of the element.
    title: heading, and entry in the contents.
    body: its HTML.
  """

  key: str
  title: str
  body: str


def text(value: Any) -> str:
  """A value as HTML text, also for attributes in double quotes."""
  if isinstance(value, Safe):
    return value.html
  return html.escape(clean(str(value)), quote=True)


def clean(value: str) -> str:
  """A text without the characters that HTML refuses or that reorder text."""
  return _BIDI.sub("", _REFUSED.sub("\ufffd", value))


def json_script(key: str, value: Any) -> str:
  """A script element that holds JSON and cannot be ended by what is in it."""
  dumped = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
  for character, escape in _IN_SCRIPT.items():
    dumped = dumped.replace(character, escape)
  return f'<script type="application/json" id="{text(key)}">{dumped}</script>'


def table(
  head: Sequence[Any], rows: Iterable[Sequence[Any]], caption: str = ""
) -> str:
  """A table: the first column is a heading, cells of digits are aligned.

  Args:
    head: titles of the columns.
    rows: cells of each row; texts are escaped, `Safe` is kept.
    caption: text above it; "" = none.
  """
  rows = [list(row) for row in rows]
  kinds = [
    ' class="n"' if number and all(map(_is_number, column)) else ""
    for number, column in enumerate(zip(head, *rows, strict=True))
    for column in [column[1:]]
  ]
  titles = "".join(
    f'<th scope="col"{kind}>{text(cell)}</th>'
    for cell, kind in zip(head, kinds, strict=True)
  )
  body = "".join(f"<tr>{_row(row, kinds)}</tr>" for row in rows)
  said = f"<caption>{text(caption)}</caption>" if caption else ""
  return (
    f'<div class="wide" tabindex="0"><table>{said}<thead><tr>{titles}</tr>'
    f"</thead><tbody>{body}</tbody></table></div>"
  )


def _is_number(cell: Any) -> bool:
  shown = cell.html if isinstance(cell, Safe) else str(cell)
  return re.match(r"[-+−<]?\d[\d.,]*(?= |$)|–?$", shown) is not None


def _row(cells: Sequence[Any], kinds: Sequence[str]) -> str:
  first, *others = cells
  return f'<th scope="row">{text(first)}</th>' + "".join(
    f"<td{kind}>{text(cell)}</td>"
    for cell, kind in zip(others, kinds[1:], strict=True)
  )


def paragraph(said: Any, kind: str = "") -> str:
  """A paragraph; `kind` is its class, "" = none."""
  attribute = f' class="{kind}"' if kind else ""
  return f"<p{attribute}>{text(said)}</p>"


def missing(what: str, command: str) -> str:
  """The line in place of a part that the workdir does not have."""
  return (
    f'<p class="missing">{text(what)} To add it:'
    f" <code>{text(command)}</code></p>"
  )


def definition(values: Mapping[str, Any]) -> str:
  """A list of names and values."""
  return (
    "<dl>"
    + "".join(
      f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>"
      for name, value in values.items()
    )
    + "</dl>"
  )


def percent(share: float | int | None) -> str:
  """78.4; an en dash for None."""
  return "–" if share is None else f"{100 * share:.1f}"


def points(difference: float | int) -> str:
  """+1.9 or −1.9: a difference of shares, in points."""
  return f"{100 * difference:+.1f}".replace("-", "−")


def interval(bounds: Sequence[float | int], signed: bool = False) -> str:
  """76.1 to 80.5, as `percent` or (signed) as `points`."""
  show = points if signed else percent
  return f"{show(bounds[0])} to {show(bounds[1])}"


def probability(p: float | int) -> str:
  """0.034, or <0.001."""
  return "<0.001" if p < 0.001 else f"{p:.3f}"


def number(value: float | int) -> str:
  """1,234 or 0.0123: whole numbers in full, others to 4 digits."""
  if isinstance(value, int) or float(value).is_integer():
    return f"{int(value):,}".replace("-", "−")
  shown = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
  return shown.replace("-", "−")
