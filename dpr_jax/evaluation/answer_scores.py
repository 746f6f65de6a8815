"""Exact match and F1 of a whole file of answers.

In comes `answers/<questions>.json`, out come means over the questions that can
be judged, and how many cannot.  A file in which some question is impossible
(SQuAD v2.0) is scored by v2's protocol: no answer is the right answer to those,
and the share of both kinds is reported.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.evaluation import exact_match

IMPOSSIBLE = "impossible"  # in a row: the right answer is none


def v2_scores(prediction: str, answers: Sequence[str]) -> tuple[float, float]:
  """(exact match, F1) by the rules of SQuAD v2.0's own evaluation.

  Args:
    prediction: "" for no answer.
    answers: accepted ones; those that normalise to nothing do not count, and
      where none is left, no answer is the right one.
  """
  right = [each for each in answers if exact_match.normalize(each)]
  if not right or not exact_match.normalize(prediction):
    equal = float(not right and not exact_match.normalize(prediction))
    return equal, equal
  return (
    exact_match.exact_match(prediction, right),
    exact_match.f1(prediction, right),
  )


def file_scores(path: pathlib.Path) -> dict[str, float | int]:
  """Scores of an answers file (`dpr-jax read` writes them).

  Returns:
    "em" and "f1"; where several numbers of passages were read also "em_1",
    "f1_1", "em_10", … by that number.  With impossible questions also
    "em_answerable" and "em_impossible", and their number as
    "questions_impossible"; the number of questions without an answer as
    "questions_not_scored", where there are some.  {} where none has one.

  Raises:
    InputError: the file is malformed or empty.
  """
  rows: list[Mapping[str, Any]] = workdir_lib.read_json(path)
  if not isinstance(rows, list) or not rows:
    raise errors.InputError(f"{path}: no questions in it")
  try:
    impossible = [bool(row.get(IMPOSSIBLE)) for row in rows]
    answers = [row["answers"] for row in rows]
    unknown = len(rows) - sum(map(is_judged, answers, impossible))
    scores: dict[str, float | int] = {}
    if unknown:
      logging.warning(
        "evaluate: %s: %d of %d questions have no answers to compare with: EM"
        " and F1 are of the others",
        path.name,
        unknown,
        len(rows),
      )
      scores["questions_not_scored"] = unknown
    scores |= means([row["prediction"] for row in rows], answers, impossible)
    for count in rows[0].get("by_passages", {}):
      some = [row["by_passages"][count]["prediction"] for row in rows]
      for name, value in means(some, answers, impossible).items():
        if name in ("em", "f1"):
          scores[f"{name}_{count}"] = value
  except (KeyError, TypeError, AttributeError) as error:
    raise errors.InputError(
      f"{path}: not an answers file ({error!r}): [{{question, answers,"
      " prediction, passage_id, score}]"
    ) from error
  return scores


def is_judged(answers: Sequence[str], impossible: bool) -> bool:
  """Whether it is known what is right: an answer, or none."""
  return impossible or bool(answers)


def means(
  predictions: Sequence[str],
  answers: Sequence[Sequence[str]],
  impossible: Sequence[bool],
) -> dict[str, float | int]:
  """Means over the questions that are judged, {} where none is.

  Args:
    predictions: "" for no answer.
    answers: accepted ones; none where nobody knows.
    impossible: questions to which no answer is the right one; where there is
      one, v2.0's rules hold for all.
  """
  judged = [
    row
    for row in zip(predictions, answers, impossible, strict=True)
    if is_judged(*row[1:])
  ]
  if not judged:
    return {}
  if not any(impossible):
    return exact_match.mean_scores(
      [prediction for prediction, _, _ in judged],
      [right for _, right, _ in judged],
    )
  found = [
    (none, *v2_scores(prediction, [] if none else right))
    for prediction, right, none in judged
  ]
  shares: dict[str, float | int] = {
    "em": sum(em for _, em, _ in found) / len(found),
    "f1": sum(f1 for _, _, f1 in found) / len(found),
  }
  for name, kind in (("em_impossible", True), ("em_answerable", False)):
    ems = [em for none, em, _ in found if none == kind]
    if ems:
      shares[name] = sum(ems) / len(ems)
  return shares | {"questions_impossible": sum(impossible)}
