"""`Setting`: the type of a row in the settings table (`settings_table.py`).

A row defines everything about a setting: its default, the check of its values,
how values are written on the command line, and its entry on the reference page.
"""

import dataclasses
import math
import re
from collections.abc import Iterable
from typing import Any

_TRUE = ("true", "t", "yes", "y", "on", "1")
_FALSE = ("false", "f", "no", "n", "off", "0")
AUTO = "auto"
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
    key: "section.name", or only the name for a setting without a section.
    default: default value; its type is the type of the setting.
    meaning: one or two phrases for the reference page.
    unit: unit of the number; "" = none.
    least: lower bound, included, of the value or of every item; None = none.
    above: lower bound, excluded; None = none.
    most: upper bound, included; None = none.
    below: upper bound, excluded; None = none.
    choices: allowed values, or items of a tuple; () = any.
    item: type of a tuple's items.
    filled: whether a tuple must not be empty.
    stages: stages that read the setting; may include "plan".
    when: conditions under which they read it, keys of
      `settings_unread.CONDITIONS`; all of them must hold.
    path: whether the value may be a file or folder.
    or_auto: whether "auto" is allowed besides True and False.
    or_zero: whether 0 is allowed besides the range.
    words: words that are allowed instead of a number, such as "none".
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
  or_auto: bool = False
  or_zero: bool = False
  words: tuple[str, ...] = ()

  @property
  def section(self) -> str:
    """The part of the key before the dot; "" = no section."""
    return self.key.rpartition(".")[0]

  @property
  def name(self) -> str:
    """The part of the key after the dot."""
    return self.key.rpartition(".")[2]

  @property
  def kind(self) -> type:
    """int, float, bool, str or tuple."""
    if self.words:
      return float
    return bool if self.or_auto else type(self.default)

  @property
  def _words(self) -> tuple[str, ...]:
    """Words that are allowed besides values of `kind`."""
    return (AUTO,) if self.or_auto else self.words

  @property
  def _or_words(self) -> str:
    """The end of a message, as in ", or none"; "" without words."""
    return f", or {' or '.join(self._words)}" if self._words else ""

  def wrong(self, value: Any) -> str:
    """The error in a value, as in "must be > 0"; "" = the value is allowed."""
    if isinstance(value, str) and value in self._words:
      return ""
    if self.kind is not tuple:
      reason = self._wrong(value, self.kind)
      return reason and reason + self._or_words
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
    if self.or_zero and value == 0:
      return True
    return not (
      (self.least is not None and value < self.least)
      or (self.above is not None and value <= self.above)
      or (self.most is not None and value > self.most)
      or (self.below is not None and value >= self.below)
    )

  @property
  def range(self) -> str:
    """The bounds, as in ">= 0 and < 1"; "" = none."""
    bounds = (
      (">=", self.least),
      (">", self.above),
      ("<=", self.most),
      ("<", self.below),
    )
    return ("0 or " if self.or_zero else "") + " and ".join(
      f"{sign} {bound}" for sign, bound in bounds if bound is not None
    )

  def parse(self, text: str) -> Any:
    """Parses a typed value.

    A tuple is typed as `bm25,dense`, `('bm25', 'dense')` or `["bm25"]`.

    Raises:
      ValueError: the text is not of the setting's type; message as of `wrong`.
    """
    word = _unquoted(text).lower()
    if word in self._words:
      return word
    if self.kind is not tuple:
      try:
        return _parse(text, self.kind)
      except ValueError as error:
        raise ValueError(f"{error}{self._or_words}") from error
    inner = text.strip()
    if inner[:1] in _BRACKETS and inner.endswith(_BRACKETS[inner[:1]]):
      inner = inner[1:-1]
    items = [_unquoted(each) for each in inner.split(",")]
    if items[-1] == "":  # empty text, or a trailing comma
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
  """The settings of a section, from rows whose key is only the name.

  Args:
    name: name of the section.
    stages: stages of the rows that name none.
    rows: settings in the order of the config.
    when: conditions added to all rows.
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
