"""Chooses the weight of the retriever's score in choosing an answer.

Input: the readings of dev questions.  Output: the weight with the most exact
matches (`passage_reader.choose` defines what it multiplies).  It is stored in
`fusion/reader.json`, by method of retrieval, and used with
`read.retriever_weight=-1`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from absl import logging

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.evaluation import exact_match, reader_tasks
from dpr_jax.inference import passage_reader, reader_answers
from dpr_jax.models import reader_model
from dpr_jax.retrieval import hybrid

FILE = "reader.json"


# Questions, each with the readings of its passages.
Read = Sequence[tuple[reader_tasks.Task, Sequence[passage_reader.Reading]]]


class Candidates(NamedTuple):
  """The candidate answers to a question, one per passage.

  Attributes:
    readings: readings of its passages, in the order of retrieval.
    scores: the retriever's scores of the same passages.
    right: for each passage, whether its answer is an exact match.
  """

  readings: Sequence[passage_reader.Reading]
  scores: Sequence[float]
  right: Sequence[bool]

  def score(self, weight: float) -> bool:
    """True if the answer chosen with this weight is an exact match."""
    index, _ = passage_reader.choose(self.readings, self.scores, weight)
    return index >= 0 and bool(self.right[index])


def candidates(
  predictions: Sequence[str],
  answers: Sequence[str],
  readings: Sequence[passage_reader.Reading],
  scores: Sequence[float],
) -> Candidates:
  """The candidates of a question, from the prediction of each passage."""
  right = [
    bool(text) and exact_match.exact_match(text, answers)
    for text in predictions
  ]
  return Candidates(readings, scores, right)


def tune(questions: Sequence[Candidates]) -> dict[str, Any]:
  """The weight that gives the most exact matches.

  Tries weights from the reader alone to (nearly) the retriever alone, in steps
  of a factor of 1.4.

  Args:
    questions: one or more, with answers.

  Returns:
    "weight" (of equally good ones the smallest), "measure" (share of exact
    matches), all that was "tried", and "cross_fitted": the measure if each half
    of the questions is answered with the weight chosen on the other half.  This
    is an estimate for new questions; "measure" itself is optimistic.
  """
  spreads = [
    float(np.std(ranks))
    for each in questions
    if len(ranks := [r.rank for r in each.readings if r.end > r.start]) > 1
  ]
  # The retriever's scores of a question are scaled to 0 to 1, and the reader's
  # are not: the weights to try are multiples of the reader's spread.
  scale = 4 * float(np.median(spreads)) if spreads else 1.0
  weights = [scale * step for step in hybrid.STEPS]
  correct = np.array(
    [[q.score(weight) for q in questions] for weight in weights]
  )
  measures = correct.mean(1)
  best = int(np.argmax(measures))
  halves = [slice(None, None, 2), slice(1, None, 2)]
  right = sum(
    correct[np.argmax(correct[:, tuned_on].mean(1)), judged].sum()
    for judged, tuned_on in (halves, halves[::-1])
    if correct[:, tuned_on].size
  )
  return {
    "weight": weights[best],
    "measure": float(measures[best]),
    "cross_fitted": float(right / len(questions)),
    "tried": [
      {"weight": weight, "measure": float(measure)}
      for weight, measure in zip(weights, measures, strict=True)
    ],
  }


def setting(
  workdir: workdir_lib.Workdir,
  method: str,
  reader: reader_model.Reader,
  passages: int,
  read: Read,
) -> dict[str, float]:
  """Tunes the weight on questions that were read.

  Returns:
    The setting of stage `read`.
  """
  questions = [
    candidates(
      [
        reader_answers.cut(*pair)
        for pair in zip(task.passages, readings, strict=True)
      ],
      task.answers,
      readings,
      task.scores,
    )
    for task, readings in read
    if task.answers
  ]
  weight = choose(workdir, method, reader, passages, questions)
  return {"retriever_weight": weight}


def choose(
  workdir: workdir_lib.Workdir,
  method: str,
  reader: reader_model.Reader,
  passages: int,
  questions: Sequence[Candidates],
) -> float:
  """Tunes the weight for a method and a reader, stores it and returns it.

  Args:
    workdir: workdir to store it in.
    method: method of retrieval.
    reader: reader that read the passages.
    passages: number of passages read per question.
    questions: candidates to tune on.
  """
  tuned = tune(questions)
  stored = {"passages": passages, "reader": reader.fingerprint, **tuned}
  hybrid.store_tuned(workdir, method, stored, FILE)
  logging.info(
    "read: %s, %d passages: the best weight of the retriever is %.4g: %.1f %%"
    " exact matches (%.1f %% with weights chosen on other questions, %.1f %%"
    " without the retriever)",
    method,
    passages,
    tuned["weight"],
    100 * tuned["measure"],
    100 * tuned["cross_fitted"],
    100 * tuned["tried"][0]["measure"],
  )
  return tuned["weight"]


def weight(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  method: str,
  reader: reader_model.Reader,
) -> float:
  """The weight to use: `read.retriever_weight`, or the tuned one if negative.

  Raises:
    InputError: it is negative, and no weight, or one for another reader, is
      stored for the method.
  """
  configured = float(config.read.retriever_weight)
  if configured >= 0:
    return configured
  stored = hybrid.read_tuned(workdir, FILE).get(method)
  if stored is None or stored["reader"] != reader.fingerprint:
    lacks = "has none" if stored is None else "has that of another reader"
    raise errors.InputError(
      f"config.read.retriever_weight={configured:g} means the weight tuned on"
      f" dev, but {hybrid.tuned_file(workdir, FILE)} {lacks} for {method!r}:"
      f" run `dpr-jax read --method={method} --tune` first"
    )
  return float(stored["weight"])
