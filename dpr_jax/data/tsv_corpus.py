"""Reads a corpus from a tab-separated file, such as `psgs_w100.tsv`.

Input: a path.  Output: passages in file order.  Two kinds of such files are in
use.  DPR's own is csv: a field in quotation marks may contain tabs, line breaks
and doubled quotation marks.  In others, a quotation mark is a normal character.
If the second kind is read as csv, a quotation mark that opens in one row and
closes in a later one swallows the rows between.  `choose` reads the whole file
to detect the kind.
"""

import collections
import contextlib
import csv
import io
import os
from collections.abc import Generator, Iterable, Iterator, Sequence

from dpr_jax.core import errors
from dpr_jax.data import file_streams, json_records, records

QUOTING = ("auto", "csv", "none")  # values of config.data.quoting
COLUMNS = ("id", "text", "title")

# Bytes: longer than any passage, short enough that an unclosed quote at the top
# of a 13 GB corpus is reported before memory is full.
LONGEST_FIELD = 1 << 24

_FIX = (
  "if quotation marks are plain text in this file, set config.data.quoting="
)


def read(
  path: str | os.PathLike, quoting: str, swallowing: list[str] | None = None
) -> Iterator[records.Passage]:
  """Yields the passages of a file in its order.

  Args:
    path: path of the file; its header names the columns id, text and title in
      any order, and other columns are not read.
    quoting: "csv" or "none" (see `choose`).
    swallowing: list to extend with the ids of passages that contain both a tab
      and a line break, which may have swallowed the next rows; None = no list.

  Raises:
    InputError: a row is malformed; the message names the line where it starts.
  """
  with (
    file_streams.open_bytes(path) as file,
    file_streams.stream_errors(path) as position,
    contextlib.closing(_rows(path, file, position, quoting)) as rows,
  ):
    _, header = next(rows, (1, []))
    columns = _columns(path, header)
    for line, fields in rows:
      if len(fields) != len(header):
        raise errors.InputError(
          f"{path}:{line}: {len(fields)} tab-separated fields, the header has"
          f" {len(header)}: {json_records.short(fields)}"
        )
      identifier, text, title = (
        json_records.check_unicode(fields[column], f"{path}:{line}", name)
        for column, name in zip(columns, COLUMNS, strict=True)
      )
      identifier = json_records.clean_id(identifier)
      if not identifier.strip():
        raise errors.InputError(
          f"{path}:{line}: the id is empty: every passage needs its own id"
        )
      if swallowing is not None and _swallows(fields):
        swallowing.append(identifier)
      yield records.Passage(identifier, title, text)


def choose(path: str | os.PathLike) -> str:
  """Detects the quoting of a file: "csv" or "none".

  It is csv, unless reading it as csv fails or swallows rows, while every line
  is a valid row without quoting.  Then each field with a quotation mark is a
  vote: a csv writer puts such a field in marks and doubles the marks inside; a
  field that violates either rule was written without quoting.

  Raises:
    InputError: the file cannot be read.
  """
  if _is_whole_csv(path):
    return "csv"
  votes: collections.Counter[str] = collections.Counter()
  with (
    file_streams.open_bytes(path) as file,
    file_streams.stream_errors(path) as position,
  ):
    lines = _lines(path, file, position)
    try:
      _, header = next(lines, (1, []))
      place = _columns(path, header)[0]
      for _, fields in lines:
        if len(fields) != len(header) or not fields[place].strip():
          return "csv"  # lines are not rows: `read` reports the error
        votes["rows"] += 1
        votes.update(filter(None, map(_vote, fields)))
    except errors.InputError:
      return "csv"
  if votes["either"] > votes["rows"] / 2:
    votes["csv"] += votes["either"]
  return "none" if votes["none"] > votes["csv"] else "csv"


def _vote(field: str) -> str:
  """The quoting of a field: "csv", "none" or "either"; "" = no mark in it."""
  if '"' not in field:
    return ""
  # A field that was split at a tab or a line break has only one of its marks.
  inner = field.removeprefix('"').removesuffix('"')
  if '"' in inner:
    return "none" if '"' in inner.replace('""', "") else "csv"
  whole = len(field) > 1 and field[0] == field[-1] == '"'
  return "either" if whole else "none"


def _is_whole_csv(path: str | os.PathLike) -> bool:
  """True if the file is valid csv in which no row has swallowed others."""
  with (
    file_streams.open_bytes(path) as file,
    file_streams.stream_errors(path) as position,
    contextlib.closing(_rows(path, file, position, "csv")) as rows,
  ):
    try:
      _, header = next(rows, (1, []))
      return all(
        len(fields) == len(header) and not _swallows(fields)
        for _, fields in rows
      )
    except errors.InputError as error:
      if not isinstance(error.__cause__, csv.Error):
        raise
      return False


def _swallows(fields: Sequence[str]) -> bool:
  """True if a field has a tab and a line break: it may contain other rows."""
  return any("\t" in field and "\n" in field for field in fields)


def _columns(path: str | os.PathLike, header: Sequence[str]) -> list[int]:
  """Indexes of id, text and title in the header."""
  missing = [name for name in COLUMNS if name not in header]
  if missing:
    raise errors.InputError(
      f"{path}:1: the header lacks {' and '.join(missing)}: it must name the"
      f" tab-separated columns id, text, title; it is"
      f" {json_records.short(list(header))}"
    )
  return [header.index(name) for name in COLUMNS]


def _rows(
  path: str | os.PathLike,
  file: io.BufferedIOBase,
  position: file_streams.Position,
  quoting: str,
) -> Generator[tuple[int, list[str]], None, None]:
  """Yields (line where the row starts, fields); skips blank lines."""
  if quoting == "none":
    yield from _lines(path, file, position)
    return
  with file_streams.open_text(file) as lines:
    yield from csv_rows(path, lines, position)


def csv_rows(
  path: str | os.PathLike,
  lines: Iterable[str],
  position: file_streams.Position,
  delimiter: str = "\t",
) -> Iterator[tuple[int, list[str]]]:
  """Yields (line where the row starts, fields) of csv; skips blank lines.

  Raises:
    InputError: a row is not valid csv, or too long.
  """
  csv.field_size_limit(max(LONGEST_FIELD, csv.field_size_limit()))
  reader = csv.reader(lines, delimiter=delimiter, strict=True)
  kind = "tab-separated" if delimiter == "\t" else "comma-separated"
  while True:
    line = reader.line_num + 1
    position.line = line - 1
    try:
      fields = next(reader)
    except StopIteration:
      return
    except csv.Error as error:
      raise errors.InputError(
        f"{path}:{line}: the row that starts here is not {kind} csv:"
        f" {error}; a field that begins with a quotation mark must end with"
        f" one, and marks inside it must be doubled; {_FIX}none"
      ) from error
    if fields:
      yield line, fields


def _lines(
  path: str | os.PathLike,
  file: io.BufferedIOBase,
  position: file_streams.Position,
) -> Iterator[tuple[int, list[str]]]:
  """As `_rows`, for a file without quoting: a line is a row."""
  number = 0
  while data := file.readline(LONGEST_FIELD + 1):
    position.line = number
    number += 1
    if len(data) > LONGEST_FIELD:
      raise errors.InputError(
        f"{path}:{number}: a line of more than {LONGEST_FIELD} bytes, longer"
        " than a passage can be: is this file a corpus?"
      )
    text = data.decode(
      "utf-8-sig" if number == 1 else "utf-8", "surrogateescape"
    )
    text = text.removesuffix("\n").removesuffix("\r")
    if text:
      yield number, text.split("\t")


def fields_of(line: str, delimiter: str = "\t") -> list[str]:
  """Fields of one line, read as csv if it is valid csv, else split.

  Some published files use csv quoting, others write a text that begins with a
  quotation mark unchanged, which is not valid csv.

  Args:
    line: the line, with or without its end.
    delimiter: what separates fields.

  Returns:
    The fields; [] of an empty line.
  """
  line = line.rstrip("\r\n")
  try:
    return next(csv.reader([line], delimiter=delimiter, strict=True), [])
  except csv.Error:
    return line.split(delimiter)
