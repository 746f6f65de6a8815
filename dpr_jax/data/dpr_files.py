"""Readers of the files that dense retrieval people have on disk.

In comes a path: a corpus (`psgs_w100.tsv`), questions in DPR's JSON or JSONL,
a bare question file (`*.qa.csv`), or BEIR's files, each also gzipped.  Out goes
a stream of `records.Passage` or `records.Question`, one row at a time, so that
memory stays flat whatever the size of the file.  `prepare.py` stores what these
yield.

A row that is not what its format says raises `errors.InputError` with file,
line or row, field and value; no row is skipped or repaired silently.
"""

import ast
import csv
import io
import os
import pathlib
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from dpr_jax.core import errors
from dpr_jax.data import beir_files, file_streams, records

PASSAGE_COLUMNS = ("id", "text", "title")

# Longer than any passage, short enough that an open quote at the top of a 13 GB
# corpus is reported before it has filled the memory.
LONGEST_FIELD = 1 << 24

_ID_FIELDS = ("passage_id", "psg_id", "id")
_CTX_LISTS = ("positive_ctxs", "hard_negative_ctxs", "negative_ctxs")


def read_passages(path: str | os.PathLike) -> Iterator[records.Passage]:
  """Yields the passages of a `psgs_w100.tsv`-like file in file order.

  Tab separated, fields may be `"`-quoted as in csv (and then hold newlines);
  the header names the columns `id`, `text`, `title` in any order, further
  columns are ignored.  BEIR's `corpus.jsonl` is read as well.  Ids are not
  compared here: the writer does that.

  Raises:
    InputError: naming the line where a row starts, and what is wrong there.
  """
  if beir_files.is_beir(path):
    yield from beir_files.read_corpus(path)
    return
  with (
    file_streams.open_bytes(path) as file,
    file_streams.stream_errors(path) as position,
    file_streams.open_text(file) as lines,
  ):
    rows = _tsv_rows(path, lines, position)
    _, header = next(rows, (1, []))
    missing = [name for name in PASSAGE_COLUMNS if name not in header]
    if missing:
      raise errors.InputError(
        f"{path}:1: the header lacks {' and '.join(missing)}: it must name the"
        f" tab-separated columns id, text, title; it is {_short(header)}"
      )
    columns = [header.index(name) for name in PASSAGE_COLUMNS]
    for line, fields in rows:
      if len(fields) != len(header):
        raise errors.InputError(
          f"{path}:{line}: {len(fields)} tab-separated fields, the header has"
          f" {len(header)}: {_short(fields)}"
        )
      identifier, text, title = (
        _check_unicode(fields[column], f"{path}:{line}", name)
        for column, name in zip(columns, PASSAGE_COLUMNS, strict=True)
      )
      identifier = _clean_id(identifier)
      if not identifier:
        raise errors.InputError(
          f"{path}:{line}: the id is empty: every passage needs its own id"
        )
      yield records.Passage(identifier, title, text)


def read_questions(path: str | os.PathLike) -> Iterator[records.Question]:
  """Yields the questions of a file in file order.

  `*.csv` and `*.tsv` (before a `.gz`) hold a question, a tab and a Python list
  of answers; any other name is DPR JSON if its first character is `[`, JSONL if
  it is `{`, and BEIR's `queries.jsonl` if that has an `_id`.  A row
  without positives is yielded like the others.

  Raises:
    InputError: naming the row (and the line, where the format has lines), the
      field and the value.
  """
  if _is_csv(path):
    yield from _read_question_answers(path)
    return
  if beir_files.is_beir(path):
    yield from (question for _, question in beir_files.read_queries(path))
    return
  with (
    file_streams.open_bytes(path) as file,
    file_streams.stream_errors(path) as position,
  ):
    first = file_streams.first_byte(file)
    if first == b"[":
      yield from _read_json_array(path, file, position)
    elif first == b"{":
      yield from _read_json_lines(path, file, position)
    else:
      raise errors.InputError(
        f"{path}:1: {'is empty' if not first else f'starts with {first!r}'}:"
        " a question file is a JSON array of objects, one JSON object a line,"
        " or is called *.csv and holds a question, a tab and a list of answers"
      )


def _is_csv(path: str | os.PathLike) -> bool:
  name = pathlib.Path(path).name.lower().removesuffix(".gz")
  return name.endswith((".csv", ".tsv"))


def _read_question_answers(
  path: str | os.PathLike,
) -> Iterator[records.Question]:
  with (
    file_streams.open_bytes(path) as file,
    file_streams.stream_errors(path) as position,
    file_streams.open_text(file) as lines,
  ):
    for line, text in enumerate(lines, start=1):
      position.line = line
      if not text.strip():
        continue
      where = f"{path}:{line}"
      fields = _split_line(_check_unicode(text, where, "line"))
      if len(fields) != 2:
        raise errors.InputError(
          f"{where}: {len(fields)} tab-separated fields instead of 2, a"
          f" question and a list of answers: {_short(text)}"
        )
      yield records.Question(
        _straighten(fields[0]), _answer_literal(fields[1], where)
      )


def _split_line(line: str) -> list[str]:
  """Fields of one line: csv where it is csv, else what stands between tabs.

  Some published files quote as csv does, some write a question that begins with
  a quotation mark as it is.  The latter is not csv, and means itself.
  """
  line = line.rstrip("\r\n")
  try:
    return next(csv.reader([line], delimiter="\t", strict=True))
  except csv.Error:
    return line.split("\t")


def _answer_literal(literal: str, where: str) -> tuple[str, ...]:
  try:
    with warnings.catch_warnings():
      # Regular expressions as answers ('\d+ BC'): the escapes mean themselves.
      warnings.simplefilter("ignore")
      answers = ast.literal_eval(literal.strip())
  except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
    raise errors.InputError(
      f"{where}: the answers are not a Python list like ['a', 'b']:"
      f" {_short(literal)}"
    ) from error
  return _strings(answers, where, "answers")


def _read_json_lines(
  path: str | os.PathLike,
  file: io.BufferedIOBase,
  position: file_streams.Position,
) -> Iterator[records.Question]:
  row = 0
  for line, text in enumerate(file, start=1):
    position.line = line
    if not text.strip():
      continue
    row += 1
    where = f"{path}: row {row} (line {line})"
    yield _question(file_streams.parse_json(text, where), where)


def _read_json_array(
  path: str | os.PathLike,
  file: io.BufferedIOBase,
  position: file_streams.Position,
) -> Iterator[records.Question]:
  for where, value, marked in file_streams.json_array(path, file, position):
    yield _question(value, where, marked)


def _question(value: Any, where: str, marked: bool = False) -> records.Question:
  """Checks and converts one object of DPR's training JSON."""
  if not isinstance(value, dict):
    raise errors.InputError(
      f"{where}: {_short(value)} is not an object with a question"
    )
  if "question" not in value:
    raise errors.InputError(
      f"{where}: no field question, only {_short(sorted(value))}"
    )
  positives, hard_negatives, negatives = (
    tuple(
      _passage(ctx, where, f"{name}[{i}]", marked)
      for i, ctx in enumerate(_list(value.get(name), where, name))
    )
    for name in _CTX_LISTS
  )
  return records.Question(
    _straighten(_string(value["question"], where, "question", marked)),
    _strings(value.get("answers"), where, "answers", marked),
    positives,
    hard_negatives,
    negatives,
  )


def _passage(
  value: Any, where: str, field: str, marked: bool
) -> records.Passage:
  if not isinstance(value, dict) or "text" not in value:
    raise errors.InputError(
      f"{where}, {field}: {_short(value)} is not an object with a text"
    )
  title = value.get("title")
  return records.Passage(
    _ctx_id(value, where, field, marked),
    "" if title is None else _string(title, where, f"{field}.title", marked),
    _string(value["text"], where, f"{field}.text", marked),
  )


def _ctx_id(value: dict, where: str, field: str, marked: bool) -> str:
  for name in _ID_FIELDS:
    identifier = value.get(name)
    if identifier is None:
      continue
    if isinstance(identifier, int) and not isinstance(identifier, bool):
      return str(identifier)
    return _clean_id(_string(identifier, where, f"{field}.{name}", marked))
  return ""


def _clean_id(identifier: str) -> str:
  """Released DPR files write `wiki:17` for passage 17."""
  return identifier.removeprefix("wiki:")


def _straighten(question: str) -> str:
  """The curly apostrophe becomes the plain one, as in all DPR training."""
  return question.replace("\u2019", "'")


def _list(value: Any, where: str, field: str) -> list:
  """Any list may be missing: that is an empty one."""
  if value is None:
    return []
  if not isinstance(value, list):
    raise errors.InputError(f"{where}, {field}: {_short(value)} is not a list")
  return value


def _strings(
  value: Any, where: str, field: str, marked: bool = False
) -> tuple[str, ...]:
  return tuple(
    _string(item, where, f"{field}[{i}]", marked)
    for i, item in enumerate(_list(value, where, field))
  )


def _string(value: Any, where: str, field: str, marked: bool = False) -> str:
  if not isinstance(value, str):
    raise errors.InputError(
      f"{where}, {field}: {_short(value)} is a {type(value).__name__}, not a"
      " string"
    )
  if marked and file_streams.LoneSurrogates.MARK in value:
    raise _not_unicode(where, field, value)
  return _check_unicode(value, where, field)


def _check_unicode(value: str, where: str, field: str) -> str:
  if value.isascii():
    return value
  try:
    value.encode("utf-8")
  except UnicodeEncodeError as error:
    raise _not_unicode(where, field, value) from error
  return value


def _not_unicode(where: str, field: str, value: str) -> errors.InputError:
  return errors.InputError(
    f"{where}, {field}: not valid UTF-8, or half of a surrogate pair, in"
    f" {_short(value)}: the file was written in another encoding or cut"
  )


def _short(value: Any, length: int = 80) -> str:
  """A value as an error shows it: on one line, and not a whole passage."""
  if isinstance(value, str):
    value = value[: length + 1]
  text = ascii(value) if _has_surrogates(str(value)) else repr(value)
  return text if len(text) <= length else text[: length - 3] + "..."


def _has_surrogates(text: str) -> bool:
  return any("\ud800" <= character <= "\udfff" for character in text)


def _tsv_rows(
  path: str | os.PathLike, lines: Iterable[str], position: file_streams.Position
) -> Iterator[tuple[int, list[str]]]:
  """Yields (line where the row starts, fields); blank lines hold no row."""
  csv.field_size_limit(max(LONGEST_FIELD, csv.field_size_limit()))
  reader = csv.reader(lines, delimiter="\t", strict=True)
  while True:
    line = reader.line_num + 1
    position.line = line - 1
    try:
      fields = next(reader)
    except StopIteration:
      return
    except csv.Error as error:
      raise errors.InputError(
        f"{path}:{line}: the row that starts here is not tab-separated csv:"
        f" {error}; a field that begins with a quotation mark must end with"
        " one, and those within it are doubled"
      ) from error
    if fields:
      yield line, fields
