"""Reads TREC runs: the retrieved passages of each question, by rank.

Input: a file of lines `question Q0 passage rank score tag`.  Output: the
passages of each question, best first.  Ranks determine the order, and scores
only where ranks are equal, so that all measures use the same order, also of
equal scores.
"""

import math
import pathlib

from absl import logging

from dpr_jax.core import errors
from dpr_jax.data import beir_files, file_streams, records

Run = dict[str, list[str]]  # question id -> passage ids, best first


def read(path: pathlib.Path) -> Run:
  """Reads a run.

  Passages are sorted by rank, equal ranks by score, and equal scores by their
  line in the file.  A passage that a question has twice keeps its better rank,
  and is counted in a warning; so are questions whose scores contradict their
  ranks.

  Raises:
    InputError: the file is missing, or a line is not one of a run.
  """
  rows: dict[str, list[tuple[int, float, int, str]]] = {}
  for number, line in file_streams.text_lines(path):
    fields = beir_files.columns(line)
    if len(fields) != 6:
      raise errors.InputError(
        f"{path}:{number} is not a line of a TREC run (question Q0 passage"
        f" rank score tag): {line.strip()[:80]!r}"
      )
    question, _, passage, rank, score, _ = fields
    try:
      place, value = int(rank), float(score)
      if math.isnan(value):
        raise ValueError("NaN is not a score")
    except ValueError as error:
      raise errors.InputError(
        f"{path}:{number} is not a line of a TREC run: the rank {rank[:80]!r}"
        f" or the score {score[:80]!r} is not a number"
      ) from error
    rows.setdefault(records.trec_id(question), []).append(
      (place, -value, number, records.trec_id(passage))
    )
  _warn(path, rows)
  return {question: _ordered(found) for question, found in rows.items()}


def _ordered(rows: list[tuple[int, float, int, str]]) -> list[str]:
  return list(dict.fromkeys(passage for *_, passage in sorted(rows)))


def _warn(
  path: pathlib.Path, rows: dict[str, list[tuple[int, float, int, str]]]
) -> None:
  """Warns where a run contradicts itself."""
  twice = sum(len(r) - len({row[-1] for row in r}) for r in rows.values())
  if twice:
    logging.warning(
      "%s: %d passages are repeated for one question: the better rank counts",
      path,
      twice,
    )
  rising = 0
  for found in rows.values():
    scores = [row[1] for row in sorted(found)]
    rising += scores != sorted(scores)
  if rising:
    logging.warning(
      "%s: the scores of %d of %d questions contradict their ranks: passages"
      " are sorted by rank",
      path,
      rising,
      len(rows),
    )
