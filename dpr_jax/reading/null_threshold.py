"""From which score on an answer is given at all.

In come the scores of dev questions of which some have no answer in their
paragraph (SQuAD v2.0), out comes the threshold with the most exact matches:
below it the answer is none.  It is stored in `fusion/null.json` and stands for
`read.null_answers=tuned`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.evaluation import answer_scores
from dpr_jax.inference import reader_answers
from dpr_jax.reading import retriever_weight
from dpr_jax.retrieval import hybrid

FILE = "null.json"
NULL_ANSWERS = ("never", "tuned")  # of config.read.null_answers


class Candidate(NamedTuple):
  """What may be said to one question.

  Attributes:
    score: of its best answer; -inf where it has none.
    answered: exact match of that answer, 0 or 1.
    null: exact match of no answer, 0 or 1.
  """

  score: float
  answered: float
  null: float


def tune(questions: Sequence[Candidate]) -> dict[str, Any]:
  """The threshold with the most exact matches.

  Thresholds between neighbouring scores are tried, one below all of them and
  one above.

  Args:
    questions: one or more.

  Returns:
    "threshold" (of equal ones the least, so that as few questions as possible
    go without an answer), "measure" (share of exact matches), "without" (that
    share where every question gets its answer), and "cross_fitted": the share
    where every other question is judged with the threshold that the rest would
    choose, which is what new questions may expect.
  """
  halves = [questions[::2], questions[1::2]]
  right = sum(
    _right(half, _best(other)[0])
    for half, other in (halves, halves[::-1])
    if half and other
  )
  threshold, measure = _best(questions)
  cross = right / len(questions) if all(halves) else measure
  return {
    "threshold": threshold,
    "measure": measure,
    "without": _right(questions, -np.inf) / len(questions),
    "cross_fitted": cross,
    "questions": len(questions),
  }


def _right(questions: Sequence[Candidate], threshold: float) -> float:
  return float(
    sum(q.answered if q.score >= threshold else q.null for q in questions)
  )


def _best(questions: Sequence[Candidate]) -> tuple[float, float]:
  """(threshold, share of exact matches); all questions are sorted once."""
  order = sorted(questions, key=lambda each: each.score)
  scores = np.array([each.score for each in order], np.float64)
  null = np.concatenate([[0.0], np.cumsum([each.null for each in order])])
  answered = np.cumsum([each.answered for each in order][::-1])[::-1]
  right = null + np.concatenate([answered, [0.0]])
  finite = scores[np.isfinite(scores)]
  least, most = (finite[0], finite[-1]) if len(finite) else (0.0, 0.0)
  # Equal scores are on one side: there is no threshold between them.
  cuts = [0, *(np.flatnonzero(scores[1:] > scores[:-1]) + 1), len(order)]
  cut = max(cuts, key=lambda place: (right[place], -place))
  if cut == len(order):
    threshold = most + 1
  elif cut == 0 or not np.isfinite(scores[cut - 1]):
    threshold = least - 1
  else:
    threshold = (scores[cut - 1] + scores[cut]) / 2
  return float(threshold), _right(order, threshold) / len(order)


def setting(
  workdir: workdir_lib.Workdir,
  method: str,
  reader: str,
  read: retriever_weight.Read,
) -> dict[str, float]:
  """The setting of stage `read` that `choose` gives for what was read."""
  candidates = []
  for task, readings in read:
    if answer_scores.is_judged(task.answers, task.impossible):
      found = reader_answers.answer(task.passages, task.scores, readings)
      score = float("-inf") if found.score is None else found.score
      said, silent = (
        answer_scores.v2_scores(text, task.answers)[0]
        for text in (found.prediction, "")
      )
      candidates.append(Candidate(score, said, silent))
  return {"null_threshold": choose(workdir, method, reader, candidates)}


def choose(
  workdir: workdir_lib.Workdir,
  method: str,
  reader: str,
  questions: Sequence[Candidate],
) -> float:
  """The threshold that `tune` finds for a reader (a fingerprint); stores it."""
  found = tune(questions)
  stored = {"reader": reader, **found}
  hybrid.store_tuned(workdir, method, stored, FILE)
  logging.info(
    "read: no answer below a score of %.4g: %.1f %% exact matches, %.1f %% with"
    " thresholds chosen on other questions, %.1f %% with an answer to all",
    found["threshold"],
    100 * found["measure"],
    100 * found["cross_fitted"],
    100 * found["without"],
  )
  return found["threshold"]


def threshold(
  null_answers: str,
  workdir: workdir_lib.Workdir,
  method: str,
  reader: str,
) -> float | None:
  """What `tune` has stored; None where every question gets its answer.

  Args:
    null_answers: one of `NULL_ANSWERS`.
    workdir: where it is stored.
    method: in whose place the questions are read.
    reader: its fingerprint.

  Raises:
    InputError: nothing is stored, or what was chosen for another reader.
  """
  if null_answers not in NULL_ANSWERS:
    raise errors.InputError(
      f"config.read.null_answers={null_answers!r}: must be one of"
      f" {', '.join(NULL_ANSWERS)}"
    )
  if null_answers != "tuned":
    return None
  stored = hybrid.read_tuned(workdir, FILE).get(method)
  if stored is None or stored["reader"] != reader:
    lacks = "has none" if stored is None else "has that of another reader"
    raise errors.InputError(
      "config.read.null_answers=tuned stands for the threshold tuned on dev,"
      f" and {hybrid.tuned_file(workdir, FILE)} {lacks}: run `dpr-jax read"
      " --questions=FILE --tune` with a file in SQuAD v2.0's format first"
    )
  return float(stored["threshold"])
