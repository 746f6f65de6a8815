"""Readers of BEIR's files: corpus, queries and judgements.

In comes a path of `corpus.jsonl`, `queries.jsonl` (each also gzipped) or
`qrels/*.tsv`; out come passages, questions with their ids, and judgements.
BEIR has no answer strings: its questions are judged by passage ids alone.
"""

import os
import pathlib
from collections.abc import Iterator
from typing import Any

from dpr_jax.core import errors
from dpr_jax.data import file_streams, records

_LONGEST_LINE = 1 << 24
_LONGEST_GRADE = 9  # digits; the measures take 32 bits
Judgements = dict[str, dict[str, int]]  # question id -> passage id -> grade


def is_beir(path: str | os.PathLike) -> bool:
  """Whether a file is a `*.jsonl[.gz]` whose first object has an `_id`."""
  name = pathlib.Path(path).name.lower().removesuffix(".gz")
  if not name.endswith(".jsonl"):
    return False
  with file_streams.open_bytes(path) as file, file_streams.stream_errors(path):
    if file_streams.first_byte(file) != b"{":
      return False
    while True:
      line = file.readline(_LONGEST_LINE)
      if line.strip() or not line:
        break
  try:
    return "_id" in file_streams.parse_json(line, str(path))
  except errors.InputError:
    return False


def read_corpus(path: str | os.PathLike) -> Iterator[records.Passage]:
  """Yields the passages of a `corpus.jsonl`; a title may be missing.

  Raises:
    InputError: naming the line, the field and its value.
  """
  for where, value in _rows(path):
    yield records.Passage(
      _text(value, "_id", where),
      _text(value, "title", where) if value.get("title") else "",
      _text(value, "text", where),
    )


def read_queries(
  path: str | os.PathLike,
) -> Iterator[tuple[str, records.Question]]:
  """Yields the ids and questions of a `queries.jsonl`; errors as above."""
  for where, value in _rows(path):
    question = _text(value, "text", where).replace("\u2019", "'")
    yield _text(value, "_id", where), records.Question(question)


def read_qrels(path: str | os.PathLike) -> Judgements:
  """Reads judgements: BEIR's TSV with a header, or TREC's four columns.

  Raises:
    InputError: a line with other columns, or a grade that is no number.
  """
  found: Judgements = {}
  with (
    file_streams.open_bytes(path) as file,
    file_streams.stream_errors(path) as position,
    file_streams.open_text(file) as lines,
  ):
    for number, line in enumerate(lines, start=1):
      position.line = number
      fields = line.split()
      if len(fields) == 4:  # question 0 passage grade
        del fields[1]
      if number == 1 and fields and not _is_number(fields[-1]):
        continue  # the header
      if len(fields) != 3 or not _is_number(fields[2]):
        raise errors.InputError(
          f"{path}:{number}: {line.strip()[:80]!r}: must be a question's id, a"
          " passage's id and a grade (BEIR), or these with a 0 behind the first"
          " (TREC)"
        )
      found.setdefault(fields[0], {})[fields[1]] = int(fields[2])
  if not found:
    raise errors.InputError(f"{path}: no judgements in it")
  return found


def _is_number(text: str) -> bool:
  digits = text.removeprefix("-")
  return digits.isascii() and digits.isdigit() and len(digits) <= _LONGEST_GRADE


def _rows(path: str | os.PathLike) -> Iterator[tuple[str, dict[str, Any]]]:
  """(where it stands, object) of every line."""
  with (
    file_streams.open_bytes(path) as file,
    file_streams.stream_errors(path) as position,
  ):
    for line, text in enumerate(file, start=1):
      position.line = line
      if not text.strip():
        continue
      value = file_streams.parse_json(text, f"{path}:{line}:")
      if not isinstance(value, dict):
        raise errors.InputError(f"{path}:{line}: is not a JSON object")
      yield f"{path}:{line}", value


def _text(value: dict[str, Any], field: str, where: str) -> str:
  found = file_streams.string(value.get(field), where, field)
  if field == "_id" and not found:
    raise errors.InputError(f"{where}: the field _id is '', not an id")
  return found
