"""Checks the arguments of `Encoder`, `Retriever` and `Answerer`.

A text that is treated as a list of letters, or a mapping as its keys, gives
results that look right and are wrong.  So every argument is converted to one
form here; other types are refused in one line that names the argument.
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

# Annotations of public functions.  They are `Any` because the functions below
# check them, with messages that say how to fix the call.
Text = Any  # str
Texts = Any  # str | Iterable[str]
Passages = Any  # a passage (see `passages`), or an iterable of them
Count = Any  # int | np.integer
Number = Any  # int | float, and NumPy's
Switch = Any  # bool
Path = Any  # str | os.PathLike
ConfigDict = Any  # ml_collections.ConfigDict | None

_PASSAGE = (
  "a passage is a text, a (title, text), a {'title': …, 'text': …} or a Passage"
)


def text(name: str, value: Text) -> str:
  """Returns a text; `InputError` for anything else.

  Args:
    name: name of the argument, for the message.
    value: value from the user.
  """
  if not isinstance(value, str):
    raise errors.InputError(
      f"{name}={reprlib.repr(value)}: must be a text (str)"
    )
  return str(value)


def choice(name: str, value: Text, choices: Sequence[str]) -> str:
  """Returns one of `choices`; `InputError` for anything else."""
  if text(name, value) not in choices:
    raise errors.InputError(
      f"{name}={reprlib.repr(value)}: must be one of {', '.join(choices)}"
    )
  return value


def texts(name: str, value: Texts) -> list[str]:
  """Returns texts as a list; one text becomes a list of one.

  Args:
    name: name of the argument, for the message.
    value: a str, or an iterable of them: a list, a generator, an array.

  Raises:
    InputError: the value or an item, named by its index, has another type.
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
  """Returns passages as a list; one passage becomes a list of one.

  A passage is a text without a title, a (title, text), a mapping with "text"
  and optionally "title", or an object with `title` and `text` (`Passage`,
  `Hit`).

  Args:
    name: name of the argument, for the message.
    value: one of these, or an iterable of them.

  Raises:
    InputError: the value or an item, named by its index, has another type; or
      the value is a tuple of two texts, which may be one passage or two.
  """
  if is_one(value):
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


def is_one(value: Passages) -> bool:
  """True for one text or passage, False for a list of them."""
  return isinstance(value, str | Mapping) or _has_fields(value)


def count(name: str, value: Count, least: int = 1) -> int:
  """Returns a whole number, also of NumPy; `InputError` for anything else.

  Args:
    name: name of the argument, for the message.
    value: value from the user.
    least: smallest allowed value.
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
  """Returns a finite number; `InputError` for anything else.

  Args:
    name: name of the argument, for the message.
    value: value from the user.
  """
  real = isinstance(value, numbers.Real) and not isinstance(value, bool)
  if not real or not math.isfinite(value):
    raise errors.InputError(
      f"{name}={reprlib.repr(value)}: must be a finite number"
    )
  return float(value)


def switch(name: str, value: Switch) -> bool:
  """Returns True or False; `InputError` for anything else."""
  if not isinstance(value, bool | np.bool_):
    raise errors.InputError(
      f"{name}={reprlib.repr(value)}: must be True or False"
    )
  return bool(value)


def path(name: str, value: Path) -> str | os.PathLike:
  """Returns a path; `InputError` for anything else."""
  if not isinstance(value, str | os.PathLike) or not value:
    raise errors.InputError(
      f"{name}={reprlib.repr(value)}: must be the path of a folder"
    )
  return value


def config(value: ConfigDict) -> ml_collections.ConfigDict | None:
  """Returns a config or None; `InputError` for anything else."""
  if value is not None and not isinstance(value, ml_collections.ConfigDict):
    raise errors.InputError(
      f"config={reprlib.repr(value)}: must be a ConfigDict, as"
      " `configuration.base_config()` gives one, or None"
    )
  return value


def _items(name: str, value: Any, must: str) -> list[Any]:
  # Sets have no order; items of bytes are numbers, items of mappings keys.
  wrong = bytes | bytearray | memoryview | Mapping | set | frozenset
  if isinstance(value, Iterable) and not isinstance(value, wrong):
    try:
      return list(value)
    except TypeError:  # an array without dimensions
      pass
  raise errors.InputError(f"{name}={reprlib.repr(value)}: {must}")


def _passage(name: str, value: Any) -> records.Passage:
  if isinstance(value, records.Passage):
    fields = (value.id, value.title, value.text)
  elif _has_fields(value):
    fields = ("", value.title, value.text)
  elif isinstance(value, str):
    fields = ("", "", value)
  elif isinstance(value, Mapping):
    fields = ("", value.get("title", ""), value.get("text"))
  elif isinstance(value, tuple | list) and len(value) == 2:
    fields = ("", *value)
  else:
    fields = ()
  if not fields or not _are_texts(fields):
    raise errors.InputError(
      f"{name}={reprlib.repr(value)}: {_PASSAGE}, all str"
    )
  return records.Passage(*map(str, fields))


def _has_fields(value: Any) -> bool:
  return all(hasattr(value, field) for field in ("title", "text"))


def _are_texts(values: Iterable[Any]) -> bool:
  return all(isinstance(each, str) for each in values)
