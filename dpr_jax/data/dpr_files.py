"""Readers of the files that dense retrieval people have on disk.

In comes a path: a corpus (`psgs_w100.tsv`, or JSON in BEIR's or Pyserini's
form), questions in DPR's JSON or JSONL, a bare question file (`*.qa.csv`), or
BEIR's queries, each also gzipped.  Out goes a stream of `records.Passage` or
`records.Question`, one row at a time, so that memory stays flat whatever the
size of the file.  `prepare.py` stores what these yield.

A row that is not what its format says raises `errors.InputError` with file,
line or row, field and value; no row is skipped or repaired silently.
docs/reference/formats.md has the table of what is read.
"""

import ast
import csv
import os
import pathlib
import warnings
from collections.abc import Iterator

from dpr_jax.core import errors
from dpr_jax.data import (
  beir_files,
  file_streams,
  json_objects,
  json_records,
  records,
  tsv_corpus,
)


def read_passages(
  path: str | os.PathLike,
  quoting: str = "auto",
  swallowing: list[str] | None = None,
) -> Iterator[records.Passage]:
  """Yields the passages of a corpus in file order.

  A file whose first character is `{` or `[` holds an object a passage, any
  other is a table with tabs.  Ids are not compared here: the writer does that.

  Args:
    path: of the corpus.
    quoting: of a table: "csv", "none", or "auto" = `tsv_corpus.choose`.
    swallowing: as in `tsv_corpus.read`.

  Raises:
    InputError: naming the line where a row starts, and what is wrong there.
  """
  if is_json(path):
    yield from beir_files.read_corpus(path)
    return
  if quoting == "auto":
    quoting = tsv_corpus.choose(path)
  yield from tsv_corpus.read(path, quoting, swallowing)


def is_json(path: str | os.PathLike) -> bool:
  """Whether a file begins as JSON does, and no table with a header."""
  with file_streams.open_bytes(path) as file, file_streams.stream_errors(path):
    return file_streams.first_byte(file) in (b"{", b"[")


def read_questions(
  path: str | os.PathLike, unread: json_records.Unread | None = None
) -> Iterator[records.Question]:
  """Yields the questions of a file in file order.

  `*.csv` and `*.tsv` (before a `.gz`) hold a question, a tab and a Python list
  of answers; any other name is a JSON list if its first character is `[`, JSONL
  if it is `{`, and BEIR's `queries.jsonl` if that has ids and texts.  A row
  without positives is yielded like the others.

  Args:
    path: of the questions.
    unread: gets the fields that are not looked at, with how many rows have
      them.

  Raises:
    InputError: naming the row (and the line, where the format has lines), the
      field and the value.
  """
  if _is_csv(path):
    yield from _read_question_answers(path)
  elif beir_files.is_beir(path):
    yield from (question for _, question in beir_files.read_queries(path))
  else:
    wanted = (
      "a question file is a JSON array of objects, one JSON object a line, or"
      " is called *.csv and holds a question, a tab and a list of answers"
    )
    for where, value, marked in json_objects.read(path, wanted):
      yield json_records.question(value, where, marked, unread)


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
      fields = _split_line(json_records.check_unicode(text, where, "line"))
      if len(fields) != 2:
        raise errors.InputError(
          f"{where}: {len(fields)} tab-separated fields instead of 2, a"
          f" question and a list of answers: {json_records.short(text)}"
        )
      yield records.Question(
        json_records.straighten(fields[0]), _answer_literal(fields[1], where)
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
      f" {json_records.short(literal)}"
    ) from error
  return json_records.strings(answers, where, "answers")
