"""Reads BEIR's queries and judgements.

Input: the path of a `queries.jsonl` (also gzipped, or a JSON list) or of
`qrels/*.tsv`.  Output: questions with their ids, or judgements.  BEIR has no
answer strings: its questions are judged by passage ids only.
"""

import math
import os
import pathlib
from collections.abc import Iterator, Sequence

from absl import logging

from dpr_jax.core import errors
from dpr_jax.data import file_streams, json_objects, json_records, records

# trec_eval allocates a counter per grade, up to the greatest one.
MOST_GRADE = 1_000_000
Judgements = dict[str, dict[str, int]]  # question id -> passage id -> grade

_HEADER = frozenset(
  "query-id query_id queryid qid query question topic topic-id topic_id"
  " corpus-id corpus_id doc-id doc_id docid docno document pid passage_id"
  " score relevance rel label grade iter iteration".split()
)
_ITERATIONS = ("0", "q0")  # TREC's second column; or any whole number


def is_beir(path: str | os.PathLike) -> bool:
  """Whether a file (JSON or JSONL by its name) has rows with ids and texts."""
  name = pathlib.Path(path).name.lower().removesuffix(".gz")
  if not name.endswith((".jsonl", ".json", ".ndjson")):
    return False
  if not os.path.exists(path):
    return False  # the reader reports it
  value = json_objects.first(path)
  return isinstance(value, dict) and (
    "_id" in value or json_records.is_query(value)
  )


def read_queries(
  path: str | os.PathLike,
) -> Iterator[tuple[str, records.Question]]:
  """Yields the ids and questions of a `queries.jsonl`.

  Raises:
    InputError: naming the row, the field and its value.
  """
  wanted = "queries are one JSON object per line, with _id and text"
  for where, value, marked in json_objects.read(path, wanted):
    if not isinstance(value, dict):
      raise errors.InputError(
        f"{where}: {json_records.short(value)} is not a JSON object"
      )
    yield json_records.query(value, where, marked)


def read_qrels(path: str | os.PathLike) -> Judgements:
  """Reads judgements: BEIR's TSV with a header or without, or TREC's columns.

  A line with a tab is split at tabs, so that ids may contain spaces; any other
  line is split at spaces.  A pair that is judged twice counts once.

  Raises:
    InputError: a line with other columns, a grade that is not a whole number or
      beyond `MOST_GRADE`, or two grades for one pair.
  """
  judgements: Judgements = {}
  repeated = 0
  for number, line in file_streams.text_lines(path):
    where = f"{path}:{number}"
    fields = columns(line)
    if number == 1 and _is_header(fields):
      continue
    question, passage, grade = _judgement(fields, where, line)
    grades = judgements.setdefault(question, {})
    if grades.get(passage, grade) != grade:
      raise errors.InputError(
        f"{where}: question {question!r} and passage {passage!r} have the"
        f" grade {grade} here and {grades[passage]} before: remove one"
      )
    repeated += passage in grades
    grades[passage] = grade
  if not judgements:
    raise errors.InputError(f"{path}: the file has no judgements")
  if repeated:
    logging.warning(
      "%s: %d judgements are repeated with the same grade and count once",
      path,
      repeated,
    )
  return judgements


def columns(line: str) -> list[str]:
  """Fields of a line, split at tabs if it has any, else at spaces.

  So ids may contain spaces where tabs are used.
  """
  if "\t" in line:
    return [field.strip() for field in line.strip("\r\n").split("\t")]
  return line.split()


def _is_header(fields: Sequence[str]) -> bool:
  return fields[0].lower() in _HEADER and math.isnan(_grade(fields[-1]))


def _grade(text: str) -> float:
  """The number in a text; NaN for anything else."""
  if not text.isascii() or "_" in text:
    return math.nan
  try:
    return float(text)
  except ValueError:
    return math.nan


def _judgement(
  fields: Sequence[str], where: str, line: str
) -> tuple[str, str, int]:
  """Question, passage and grade of a line's fields."""
  fields = list(fields)
  if len(fields) == 4 and _is_iteration(fields[1]):
    del fields[1]
  if len(fields) != 3 or not all(fields):
    raise errors.InputError(
      f"{where}: {json_records.short(line.strip())}: must be a question's id, a"
      " passage's id and a grade (BEIR), or these with a 0 after the first"
      " (TREC); ids with spaces need tabs between the columns"
    )
  grade = _grade(fields[2])
  if not grade.is_integer():
    raise errors.InputError(
      f"{where}: the grade {fields[2][:80]!r} is not a whole number: the"
      " measures take 0 (not relevant), 1, 2, ..."
    )
  if abs(grade) > MOST_GRADE:
    raise errors.InputError(
      f"{where}: the grade {fields[2][:80]} is out of range: -{MOST_GRADE} to"
      f" {MOST_GRADE}"
    )
  return fields[0], fields[1], int(grade)


def _is_iteration(field: str) -> bool:
  return field.lower() in _ITERATIONS or (field.isascii() and field.isdigit())
