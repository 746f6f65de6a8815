"""Reads a model's `config.json` and checks each value by its field's type."""

import dataclasses
import pathlib
from typing import Any

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib

_LARGEST = 1 << 30
_MOST_LAYERS = 1000


def read(path: pathlib.Path) -> dict[str, Any]:
  """Content of a file; `InputError` where it is not a JSON object."""
  raw = workdir_lib.read_json(path)
  if not isinstance(raw, dict):
    raise errors.InputError(f"{path}: {str(raw)[:80]} is not a JSON object")
  return raw


def build(path: pathlib.Path, raw: dict[str, Any], kind: type) -> Any:
  """A dataclass from the part of `raw` that it has fields for.

  Args:
    path: path of the file, for errors.
    raw: content of the file.
    kind: a dataclass of `int`s (sizes), `float`s (shares) and `str`s.

  Raises:
    InputError: a value does not have its field's type or range, or two values
      contradict each other.
  """
  fields = [field for field in dataclasses.fields(kind) if field.name in raw]
  for field in fields:
    _check(path, field, raw[field.name])
  try:
    return kind(**{field.name: raw[field.name] for field in fields})
  except errors.InputError as error:
    raise errors.InputError(f"{path}: {error}") from error


def _check(path: pathlib.Path, field: dataclasses.Field, value: Any) -> None:
  most = _MOST_LAYERS if field.name == "num_hidden_layers" else _LARGEST
  whole = isinstance(value, int) and not isinstance(value, bool)
  good, wanted = {
    str: (isinstance(value, str), "a text"),
    int: (
      whole and 1 <= value <= most,
      f"a whole number from 1 to {most}",
    ),
    float: (
      (whole or isinstance(value, float)) and 0 <= value < 1,
      "a number from 0 to below 1",
    ),
  }[field.type]
  if not good:
    raise errors.InputError(
      f"{path}: {field.name} is {str(value)[:80]!r}, not {wanted}"
    )
