"""Reads corpora and question files in the formats of DPR, BEIR and Pyserini.

Input: the path of a corpus (`psgs_w100.tsv`, or JSON in BEIR's or Pyserini's
format), of questions in DPR's JSON or JSONL, of a question file without
passages (`*.qa.csv`), or of BEIR's queries, each also gzipped.  Output: a
stream of `records.Passage` or `records.Question`, one row at a time, so that
memory does not grow with the file.  `prepare.py` stores the rows.

A row that violates its format raises `errors.InputError` with file, line or
row, field and value; no row is skipped or repaired silently.
docs/reference/formats.md lists the formats.
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

  A file whose first character is `{` or `[` has one JSON object per passage;
  any other is a table with tabs.  Repeated ids are detected by the writer, not
  here.

  Args:
    path: path of the corpus.
    quoting: quoting of a table: "csv", "none", or "auto" = chosen by
      `tsv_corpus.choose`.
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
  """Whether a file begins as JSON does; a table begins with its header."""
  with file_streams.open_bytes(path) as file, file_streams.stream_errors(path):
    return file_streams.first_byte(file) in (b"{", b"[")


def read_questions(
  path: str | os.PathLike, unread: json_records.Unread | None = None
) -> Iterator[records.Question]:
  """Yields the questions of a file in file order.

  A `*.csv` or `*.tsv` (also `.gz`) holds a question, a tab and a Python list of
  answers per line.  Any other file is a JSON list if its first character is
  `[`, and JSONL if it is `{`: BEIR's queries if its rows have ids and texts,
  DPR's format otherwise.  Rows without positives are yielded too.

  Args:
    path: path of the questions.
    unread: counter to update with the names of fields that are not read; None =
      do not count.

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
      "a question file is a JSON array of objects, one JSON object per line, or"
      " a *.csv with a question, a tab and a list of answers per line"
    )
    for where, value, marked in json_objects.read(path, wanted):
      yield json_records.question(value, where, marked, unread)


def _is_csv(path: str | os.PathLike) -> bool:
  name = pathlib.Path(path).name.lower().removesuffix(".gz")
  return name.endswith((".csv", ".tsv"))


def _read_question_answers(
  path: str | os.PathLike,
) -> Iterator[records.Question]:
  for line, text in file_streams.text_lines(path):
    where = f"{path}:{line}"
    fields = _split_line(text)
    if len(fields) != 2:
      raise errors.InputError(
        f"{where}: {len(fields)} tab-separated fields instead of 2, a"
        f" question and a list of answers: {json_records.short(text)}"
      )
    yield records.Question(
      json_records.straighten(fields[0]), _answer_literal(fields[1], where)
    )


def _split_line(line: str) -> list[str]:
  """Fields of one line, read as csv if it is valid csv, else split at tabs.

  Some published files use csv quoting, others write a question that begins with
  a quotation mark unchanged, which is not valid csv.
  """
  line = line.rstrip("\r\n")
  try:
    return next(csv.reader([line], delimiter="\t", strict=True))
  except csv.Error:
    return line.split("\t")


def _answer_literal(literal: str, where: str) -> tuple[str, ...]:
  try:
    with warnings.catch_warnings():
      # Answers may be regular expressions ('\d+ BC'), whose escapes Python
      # would warn about.
      warnings.simplefilter("ignore")
      answers = ast.literal_eval(literal.strip())
  except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
    raise errors.InputError(
      f"{where}: the answers are not a Python list like ['a', 'b']:"
      f" {json_records.short(literal)}"
    ) from error
  return json_records.strings(answers, where, "answers")
