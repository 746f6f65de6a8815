"""Reads questions with their answers, without passages: `*.qa.csv`.

Input: a path.  Output: questions, one per line: the question, a tab, and a
Python list of answers.
"""

import ast
import os
import warnings
from collections.abc import Iterator

from dpr_jax.core import errors
from dpr_jax.data import file_streams, json_records, records, tsv_corpus


def read(
  path: str | os.PathLike,
) -> Iterator[records.Question]:
  """Yields the questions of a file in its order.

  Raises:
    InputError: a line has other fields; names the line.
  """
  for line, text in file_streams.text_lines(path):
    where = f"{path}:{line}"
    fields = tsv_corpus.fields_of(text)
    if len(fields) != 2:
      raise errors.InputError(
        f"{where}: {len(fields)} tab-separated fields instead of 2, a"
        f" question and a list of answers: {json_records.short(text)}"
      )
    yield records.Question(
      json_records.straighten(fields[0]), _answer_literal(fields[1], where)
    )


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
