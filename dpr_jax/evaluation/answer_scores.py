"""Computes exact match and F1 of a whole file of answers.

Input: `answers/<questions>.json`.  Output: means over the questions with known
answers, and the number of the others.  A file with impossible questions (SQuAD
v2.0) is scored by v2's protocol: "no answer" is correct for them, and the
scores of both kinds are reported.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.evaluation import exact_match

IMPOSSIBLE = "impossible"  # key of a row: "no answer" is correct


def v2_scores(prediction: str, answers: Sequence[str]) -> tuple[float, float]:
  """(exact match, F1) by the rules of SQuAD v2.0's own evaluation.

  Args:
    prediction: the predicted answer; "" = no answer.
    answers: accepted answers; those that normalise to "" are ignored, and if
      none is left, "no answer" is correct.
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
    "em" and "f1"; if several passage counts were compared, also "em_1", "f1_1",
    "em_10", … by count.  With impossible questions also "em_answerable",
    "em_impossible" and "questions_impossible" (their number).  If some
    questions have no known answers, "questions_not_scored" is their number; no
    scores if none has.

  Raises:
    InputError: the file is malformed or empty.
  """
  rows: list[Mapping[str, Any]] = workdir_lib.read_json(path)
  if not isinstance(rows, list) or not rows:
    raise errors.InputError(
      f"{path}: the file has no questions: run `dpr-jax read --overwrite`"
    )
  try:
    impossible = [bool(row.get(IMPOSSIBLE)) for row in rows]
    answers = [row["answers"] for row in rows]
    unknown = len(rows) - sum(map(is_judged, answers, impossible))
    scores: dict[str, float | int] = {}
    if unknown:
      logging.warning(
        "evaluate: %s: %d of %d questions have no accepted answers: EM and F1"
        " are over the others",
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
  """True if the correct result is known: an answer, or "no answer"."""
  return impossible or bool(answers)


def exact_matches(rows: Sequence[Mapping[str, Any]]) -> list[bool | None]:
  """Whether each row of an answers file is correct; None = not known."""
  impossible = [bool(row.get(IMPOSSIBLE)) for row in rows]
  return [
    means([row["prediction"]], [row["answers"]], [none])["em"] == 1.0
    if is_judged(row["answers"], none)
    else None
    for row, none in zip(rows, impossible, strict=True)
  ]


def means(
  predictions: Sequence[str],
  answers: Sequence[Sequence[str]],
  impossible: Sequence[bool],
) -> dict[str, float | int]:
  """Means over the questions with a known result; {} if there are none.

  Args:
    predictions: predicted answers; "" = no answer.
    answers: accepted answers; empty = unknown.
    impossible: True where "no answer" is correct; if any is True, v2.0's rules
      apply to all questions.
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
  scored = [
    (none, *v2_scores(prediction, [] if none else right))
    for prediction, right, none in judged
  ]
  shares: dict[str, float | int] = {
    "em": sum(em for _, em, _ in scored) / len(scored),
    "f1": sum(f1 for _, _, f1 in scored) / len(scored),
  }
  for name, kind in (("em_impossible", True), ("em_answerable", False)):
    ems = [em for none, em, _ in scored if none == kind]
    if ems:
      shares[name] = sum(ems) / len(ems)
  return shares | {"questions_impossible": sum(impossible)}
