"""What users hand to `Encoder`, `Retriever` and `Answerer`, checked.

A text that is taken for a list of letters, or a mapping for its keys, gives
numbers that look right and are wrong.  So every argument is brought to one form
here, and what has no such form is refused in one line that names it.
"""

import math
import numbers
import operator
import os
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from dpr_jax.core import errors
from dpr_jax.data import records

# Annotations of public functions: checked here, where the message says how to
# mend it.
Text = Any  # str
Texts = Any  # str | Iterable[str]
Passages = Any  # a passage (see `passages`), or an iterable of them
Count = Any  # int | np.integer
Number = Any  # int | float, and NumPy's
Path = Any  # str | os.PathLike
ConfigDict = Any  # ml_collections.ConfigDict | None

_PASSAGE = (
  "a passage is a text, a (title, text), a {'title': …, 'text': …} or a Passage"
)


def text(name: str, value: Text) -> str:
  """A text; `InputError` for anything else.

  Args:
    name: of the argument, for the message.
    value: what the user gave.
  """
  if not isinstance(value, str):
    raise errors.InputError(
      f"{name}={reprlib.repr(value)}: must be a text (str)"
    )
  return str(value)


def choice(name: str, value: Text, choices: Sequence[str]) -> str:
  """One of some words; `InputError` for anything else."""
  if text(name, value) not in choices:
    raise errors.InputError(
      f"{name}={reprlib.repr(value)}: must be one of {', '.join(choices)}"
    )
  return value


def texts(name: str, value: Texts) -> list[str]:
  """Texts as a list; one text is a list of one.

  Args:
    name: of the argument, for the message.
    value: a str, or an iterable of them: a list, a generator, an array.

  Raises:
    InputError: something else, also as an item, which is named by its number.
  """
  if isinstance(value, str):
    return [str(value)]
  items = _items(name, value, "must be a text or a list of texts")
  for number, item in enumerate(items):
    if not isinstance(item, str):
      raise errors.InputError(
        f"{name}[{number}]={reprlib.repr(item)}: must be a text (str)"
      )
  return [str(item) for item in items]


def passages(name: str, value: Passages) -> list[records.Passage]:
  """Passages as a list; one passage is a list of one.

  A passage is a text without a title, a (title, text), a mapping with "text"
  and perhaps "title", or an object with `title` and `text` (`Passage`, `Hit`).

  Args:
    name: of the argument, for the message.
    value: one of these, or an iterable of them.

  Raises:
    InputError: something else, also as an item, which is named by its number;
      or two texts in a tuple, which may be one passage or two.
  """
  if isinstance(value, str | Mapping) or _has_fields(value):
    return [_passage(name, value)]
  items = _items(
    name, value, f"must be a passage or a list of them; {_PASSAGE}"
  )
  if isinstance(value, tuple) and len(items) == 2 and _are_texts(items):
    raise errors.InputError(
      f"{name}={reprlib.repr(value)}: one passage or two? Write"
      " [(title, text)] or [text, text]"
    )
  return [_passage(f"{name}[{i}]", item) for i, item in enumerate(items)]


def count(name: str, value: Count, least: int = 1) -> int:
  """A whole number, NumPy's too; `InputError` for anything else.

  Args:
    name: of the argument, for the message.
    value: what the user gave.
    least: that it may be.
  """
  try:
    if isinstance(value, bool | np.bool_):
      raise TypeError
    whole = operator.index(value)
  except TypeError as error:
    raise errors.InputError(
      f"{name}={reprlib.repr(value)}: must be a whole number"
    ) from error
  if whole < least:
    raise errors.InputError(f"{name}={whole}: must be at least {least}")
  return whole


def number(name: str, value: Number) -> float:
  """A finite number; `InputError` for anything else.

  Args:
    name: of the argument, for the message.
    value: what the user gave.
  """
  real = isinstance(value, numbers.Real) and not isinstance(value, bool)
  if not real or not math.isfinite(value):
    raise errors.InputError(
      f"{name}={reprlib.repr(value)}: must be a finite number"
    )
  return float(value)


def path(name: str, value: Path) -> str | os.PathLike:
  """A path; `InputError` for what is none."""
  if not isinstance(value, str | os.PathLike) or not value:
    raise errors.InputError(
      f"{name}={reprlib.repr(value)}: must be the path of a folder"
    )
  return value


def config(value: ConfigDict) -> ml_collections.ConfigDict | None:
  """A config or None; `InputError` for anything else."""
  if value is not None and not isinstance(value, ml_collections.ConfigDict):
    raise errors.InputError(
      f"config={reprlib.repr(value)}: must be a ConfigDict, as"
      " `configuration.base_config()` gives one, or None"
    )
  return value


def _items(name: str, value: Any, must: str) -> list[Any]:
  # A set has no order, and of bytes and mappings the items are something else.
  wrong = bytes | bytearray | memoryview | Mapping | set | frozenset
  if isinstance(value, Iterable) and not isinstance(value, wrong):
    try:
      return list(value)
    except TypeError:  # an array without dimensions
      pass
  raise errors.InputError(f"{name}={reprlib.repr(value)}: {must}")


def _passage(name: str, value: Any) -> records.Passage:
  if isinstance(value, records.Passage):
    found = (value.id, value.title, value.text)
  elif _has_fields(value):
    found = ("", value.title, value.text)
  elif isinstance(value, str):
    found = ("", "", value)
  elif isinstance(value, Mapping):
    found = ("", value.get("title", ""), value.get("text"))
  elif isinstance(value, tuple | list) and len(value) == 2:
    found = ("", *value)
  else:
    found = ()
  if not found or not _are_texts(found):
    raise errors.InputError(
      f"{name}={reprlib.repr(value)}: {_PASSAGE}, all str"
    )
  return records.Passage(*map(str, found))


def _has_fields(value: Any) -> bool:
  return all(hasattr(value, field) for field in ("title", "text"))


def _are_texts(values: Iterable[Any]) -> bool:
  return all(isinstance(each, str) for each in values)
