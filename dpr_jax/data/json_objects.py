"""Reads the rows of a JSON file: a list of objects, or one object per line.

Input: a path.  Output: its objects one at a time, each with its position for
errors.  A file of another shape (one object around all rows, an object over
several lines) is refused with a line that names its shape, the expected one,
and a command that converts it.
"""

import contextlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ijson

from dpr_jax.core import errors
from dpr_jax.data import file_streams

SHAPE = "a list [...] of objects, or one object per line,"

_OF_A_ROW = {"question", "text", "contents", "_id", "query"}
_MOST_EVENTS = 100_000  # parser events to read for a file's outline


def read(
  path: str | os.PathLike, wanted: str
) -> Iterator[tuple[str, Any, bool]]:
  """Yields the rows of a file.

  Args:
    path: JSON if its first character is `[`, JSONL if it is `{`.
    wanted: description of the expected file, for the error if it is neither.

  Yields:
    (path and row, the row, whether it may contain the mark of a lone surrogate,
    see `file_streams.LoneSurrogates`).  The caller checks that a row is an
    object.

  Raises:
    InputError: the file is malformed; names the row, and the line of JSONL.
  """
  with (
    file_streams.open_bytes(path) as file,
    file_streams.stream_errors(path) as position,
  ):
    first = file_streams.first_byte(file)
    if first == b"[":
      yield from file_streams.json_array(path, file, position)
      return
    if first != b"{":
      raise errors.InputError(
        f"{path}:1: {'is empty' if not first else f'starts with {first!r}'}:"
        f" {wanted}"
      )
    row = 0
    for line, text in enumerate(file, start=1):
      position.line = line
      if not text.strip():
        continue
      row += 1
      where = f"{path}: row {row} (line {line})"
      try:
        value = file_streams.parse_json(text, where)
      except errors.InputError as error:
        if row > 1 or isinstance(error.__cause__, RecursionError):
          raise
        raise _shape_error(path, text, error) from error
      yield where, value, False


def first(path: str | os.PathLike) -> Any:
  """The first row of a JSONL file; None for any other file."""
  with (
    file_streams.open_bytes(path) as file,
    file_streams.stream_errors(path),
  ):
    if file_streams.first_byte(file) != b"{":
      return None
    line = next((text for text in _short_lines(file) if text.strip()), b"")
  try:
    return file_streams.parse_json(line, str(path))
  except errors.InputError:
    return None


def around(value: Mapping[str, Any]) -> str:
  """How to extract the rows inside an object; "" where it has none."""
  for name, inner in value.items():
    if isinstance(inner, list) and inner and isinstance(inner[0], dict):
      return _fix([name], name)
  if value and all(isinstance(inner, dict) for inner in value.values()):
    return _fix([], "")
  return ""


def _fix(lists: Sequence[str], name: str) -> str:
  jq = f"`jq .{name} FILE`" if lists else "`jq -c '.[]' FILE`"
  what = f"the list in its field {name!r}" if lists else "its values"
  return f"{SHAPE} is expected: if the rows are {what}, {jq} converts them"


def _short_lines(file) -> Iterator[bytes]:
  while line := file.readline(1 << 24):
    yield line


def _shape_error(
  path: str | os.PathLike, line: bytes, error: errors.InputError
) -> errors.InputError:
  """The error for a first line that is not JSON, or only part of an object."""
  with contextlib.suppress(ValueError):
    json.JSONDecoder().raw_decode(line.decode("utf-8-sig").lstrip())
    return error  # a whole object, followed by something else
  fields, lists, squad, whole = _outline(path)
  if not whole:
    return error
  named = ", ".join(list(fields)[:5])
  if fields.keys() & _OF_A_ROW:
    return errors.InputError(
      f"{path}:1: the object that starts here, with the fields {named}, spans"
      f" several lines: {SHAPE} is expected; `jq -c . FILE` converts it"
    )
  fix = _fix(lists, lists[0] if lists else "")
  if squad:
    fix = "it is in SQuAD's format, which config.reader.train and `dpr-jax read"
    fix += " --questions` accept"
  return errors.InputError(
    f"{path}:1: the file is one object, with the fields {named}: {fix}"
  )


def _outline(
  path: str | os.PathLike,
) -> tuple[dict[str, None], list[str], bool, bool]:
  """Outline of the first object of a file, which may span many lines.

  Returns:
    (its fields, the fields that are lists, whether it has SQuAD's paragraphs,
    whether the part that was read is valid JSON).
  """
  fields: dict[str, None] = {}
  lists, squad, whole, depth, key = [], False, False, 0, ""
  with file_streams.open_bytes(path) as file, file_streams.stream_errors(path):
    file_streams.first_byte(file)
    events = ijson.basic_parse(
      file, use_float=True, multiple_values=True, buf_size=1 << 13
    )
    try:
      for event, value in itertools.islice(events, _MOST_EVENTS):
        if event == "map_key":
          squad |= value == "paragraphs"
          if depth == 1:
            key, fields[value] = value, None
        depth += event in ("start_map", "start_array")
        depth -= event in ("end_map", "end_array")
        if event == "start_array" and depth == 2:
          lists.append(key)
        whole = depth == 0
        if whole or depth > file_streams.DEEPEST:
          break
      else:
        whole = bool(fields)  # too large to see its end
    except (ijson.JSONError, ValueError, OverflowError):
      whole = False
  return fields, lists, squad, whole
