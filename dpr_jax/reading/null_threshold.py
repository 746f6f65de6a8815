"""Chooses the score below which the reader gives no answer (SQuAD v2.0).

Input: the scores of dev questions, some of which have no answer in their
paragraph.  Output: the threshold with the most exact matches; an answer with a
lower score is replaced by no answer.  It is stored in `fusion/null.json` and
used with `read.null_answers=tuned`.
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
  """The outcome of a question with and without its best answer.

  Attributes:
    score: score of its best answer; -inf = there is none.
    answered: exact match of that answer, 0 or 1.
    null: exact match of giving no answer, 0 or 1.
  """

  score: float
  answered: float
  null: float


def tune(questions: Sequence[Candidate]) -> dict[str, Any]:
  """The threshold with the most exact matches.

  Tries the midpoints between adjacent scores, a threshold below all scores and
  one above.

  Args:
    questions: one or more.

  Returns:
    "threshold" (of equally good ones the lowest, so that as few questions as
    possible get no answer), "measure" (share of exact matches), "without" (that
    share if every question gets its answer), and "cross_fitted": the share if
    each half of the questions is scored with the threshold chosen on the other
    half, an estimate for new questions.
  """
  halves = [questions[::2], questions[1::2]]
  right = sum(
    _right(judged, _best(tuned_on)[0])
    for judged, tuned_on in (halves, halves[::-1])
    if judged and tuned_on
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
  """Number of exact matches with a threshold."""
  return float(
    sum(q.answered if q.score >= threshold else q.null for q in questions)
  )


def _best(questions: Sequence[Candidate]) -> tuple[float, float]:
  """(threshold, share of exact matches) of the best threshold.

  With the questions sorted by score, a threshold is a cut: those before it get
  no answer, those after it get theirs.  Two cumulative sums give the number of
  exact matches of every cut, `right`, without trying them one by one.
  """
  order = sorted(questions, key=lambda each: each.score)
  scores = np.array([each.score for each in order], np.float64)
  null = np.concatenate([[0.0], np.cumsum([each.null for each in order])])
  answered = np.cumsum([each.answered for each in order][::-1])[::-1]
  right = null + np.concatenate([answered, [0.0]])
  finite = scores[np.isfinite(scores)]
  least, most = (finite[0], finite[-1]) if len(finite) else (0.0, 0.0)
  # A cut between equal scores is not possible.
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
  """Tunes the threshold on questions that were read.

  Returns:
    The setting of stage `read`.
  """
  candidates = []
  for task, readings in read:
    if answer_scores.is_judged(task.answers, task.impossible):
      best = reader_answers.answer(task.passages, task.scores, readings)
      score = float("-inf") if best.score is None else best.score
      said, silent = (
        answer_scores.v2_scores(text, task.answers)[0]
        for text in (best.prediction, "")
      )
      candidates.append(Candidate(score, said, silent))
  return {"null_threshold": choose(workdir, method, reader, candidates)}


def choose(
  workdir: workdir_lib.Workdir,
  method: str,
  reader: str,
  questions: Sequence[Candidate],
) -> float:
  """Tunes the threshold, stores it and returns it.

  Args:
    workdir: workdir to store it in.
    method: method whose results were read.
    reader: fingerprint of the reader.
    questions: outcomes to tune on.
  """
  tuned = tune(questions)
  stored = {"reader": reader, **tuned}
  hybrid.store_tuned(workdir, method, stored, FILE)
  logging.info(
    "read: no answer below a score of %.4g: %.1f %% exact matches (%.1f %% with"
    " thresholds chosen on other questions, %.1f %% with an answer to every"
    " question)",
    tuned["threshold"],
    100 * tuned["measure"],
    100 * tuned["cross_fitted"],
    100 * tuned["without"],
  )
  return tuned["threshold"]


def threshold(
  null_answers: str,
  workdir: workdir_lib.Workdir,
  method: str,
  reader: str,
) -> float | None:
  """The stored threshold; None = every question gets its answer.

  Args:
    null_answers: one of `NULL_ANSWERS`.
    workdir: workdir where it is stored.
    method: method whose results are read.
    reader: fingerprint of the reader.

  Raises:
    InputError: there is no stored threshold, or one for another reader.
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
      "config.read.null_answers=tuned means the threshold tuned on dev, but"
      f" {hybrid.tuned_file(workdir, FILE)} {lacks}: run `dpr-jax read"
      " --questions=FILE --tune` with a file in SQuAD v2.0's format first"
    )
  return float(stored["threshold"])
