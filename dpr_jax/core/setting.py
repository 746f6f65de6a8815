"""One setting: its type, its range, what it means, and who reads it.

`settings_table.py` holds all of them.  Everything that is known of a setting
follows from here: the default in a config, the check of a value, how a value
is written on the command line, the row on the reference page.
"""

import dataclasses
import math
import re
from collections.abc import Iterable
from typing import Any

_TRUE = ("true", "t", "yes", "y", "on", "1")
_FALSE = ("false", "f", "no", "n", "off", "0")
_BRACKETS = {"(": ")", "[": "]"}
_NAMES = {
  int: "a whole number",
  float: "a number",
  bool: "True or False",
  str: "text",
}
_SEVERAL = {
  int: "whole numbers, as in 1,10",
  float: "numbers, as in 0.5,1",
  str: "names, as in bm25,dense",
}


@dataclasses.dataclass(frozen=True)
class Setting:
  """A key of the config.

  Attributes:
    key: "section.name", or the name alone where it is in no section.
    default: its value in `config.base_config()`; its type is the
      setting's type.
    meaning: a phrase or two, for the reference page.
    unit: of the number, "" where it has none.
    least: the value, or every item, is >= this.
    above: ... is > this.
    most: ... is <= this.
    below: ... is < this.
    choices: the value, or every item, is one of these.
    item: the type of a tuple's items.
    filled: a tuple is not empty.
    stages: that read it, and "plan".
    when: conditions under which they do, all of `settings_unread.CONDITIONS`.
    path: it may name a file or folder.
  """

  key: str
  default: Any
  meaning: str
  unit: str = ""
  least: float | int | None = None
  above: float | int | None = None
  most: float | int | None = None
  below: float | int | None = None
  choices: tuple[str, ...] = ()
  item: type | None = None
  filled: bool = False
  stages: tuple[str, ...] = ()
  when: tuple[str, ...] = ()
  path: bool = False

  @property
  def section(self) -> str:
    """The part of the key before the dot, "" where there is none."""
    return self.key.rpartition(".")[0]

  @property
  def name(self) -> str:
    """The part of the key after the dot."""
    return self.key.rpartition(".")[2]

  @property
  def kind(self) -> type:
    """int, float, bool, str or tuple."""
    return type(self.default)

  def wrong(self, value: Any) -> str:
    """What is wrong with a value, as in "must be > 0"; "" where nothing is."""
    if self.kind is not tuple:
      return self._wrong(value, self.kind)
    if not isinstance(value, tuple | list):
      return f"must be {_SEVERAL[self.item]}"
    if self.filled and not value:
      return "is empty: must be " + _SEVERAL[self.item]
    reasons = (self._wrong(each, self.item) for each in value)
    return next((reason for reason in reasons if reason), "")

  def _wrong(self, value: Any, kind: type | None) -> str:
    allowed = int | float if kind is float else kind
    is_bool = isinstance(value, bool)
    if not isinstance(value, allowed) or is_bool != (kind is bool):
      return f"must be {_NAMES[kind]}"
    if self.choices and value not in self.choices:
      return f"must be one of {', '.join(map(_shown, self.choices))}"
    if kind is float and not math.isfinite(value):
      return "must be a finite number"
    return "" if self._in_range(value) else f"must be {self.range}"

  def _in_range(self, value: Any) -> bool:
    return not (
      (self.least is not None and value < self.least)
      or (self.above is not None and value <= self.above)
      or (self.most is not None and value > self.most)
      or (self.below is not None and value >= self.below)
    )

  @property
  def range(self) -> str:
    """As in ">= 0 and < 1", "" where every value of the type is allowed."""
    bounds = (
      (">=", self.least),
      (">", self.above),
      ("<=", self.most),
      ("<", self.below),
    )
    return " and ".join(
      f"{sign} {bound}" for sign, bound in bounds if bound is not None
    )

  def parse(self, text: str) -> Any:
    """The value that a user has typed.

    A tuple is typed as `bm25,dense`, `('bm25', 'dense')` or `["bm25"]`.

    Raises:
      ValueError: it is of another type; the message is as of `wrong`.
    """
    if self.kind is not tuple:
      return _parse(text, self.kind)
    inner = text.strip()
    if inner[:1] in _BRACKETS and inner.endswith(_BRACKETS[inner[:1]]):
      inner = inner[1:-1]
    items = [_unquoted(each) for each in inner.split(",")]
    if items[-1] == "":  # nothing, or a comma at the end
      items.pop()
    try:
      return tuple(_parse(each, self.item) for each in items)
    except ValueError as error:
      raise ValueError(f"must be {_SEVERAL[self.item]}") from error


def _parse(text: str, kind: type | None) -> Any:
  if kind is str:
    return text
  word = text.strip().lower()
  if kind is bool:
    if word in _TRUE or word in _FALSE:
      return word in _TRUE
    raise ValueError(f"must be {_NAMES[kind]}")
  try:
    if kind is int and re.fullmatch(r"0x[0-9a-f]+", word):
      return int(word, 16)
    return int(word) if kind is int else float(word)
  except ValueError as error:
    raise ValueError(f"must be {_NAMES[kind]}") from error


def _unquoted(text: str) -> str:
  text = text.strip()
  if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
    return text[1:-1]
  return text


def _shown(choice: str) -> str:
  return choice or "''"


def section(
  name: str,
  stages: tuple[str, ...],
  rows: Iterable[Setting],
  when: tuple[str, ...] = (),
) -> tuple[Setting, ...]:
  """The settings of a section, from rows with the name alone as their key.

  Args:
    name: of the section.
    stages: that read those which name none themselves.
    rows: in the order of the config.
    when: conditions that hold for all of them.
  """
  return tuple(
    dataclasses.replace(
      row,
      key=f"{name}.{row.key}",
      stages=row.stages or stages,
      when=(*when, *row.when),
    )
    for row in rows
  )
