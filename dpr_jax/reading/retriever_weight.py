"""How much the retriever's score counts when an answer is chosen.

In come the readings of dev questions, out comes the weight that gives the most
exact matches (`passage_reader.choose` says what it multiplies).  It is stored
in `fusion/reader.json`, by method of retrieval, and stands for
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


# Questions with what was read for each.
Read = Sequence[tuple[reader_tasks.Task, Sequence[passage_reader.Reading]]]


class Candidates(NamedTuple):
  """What may be the answer to one question.

  Attributes:
    readings: of its passages, in the order of retrieval.
    scores: the retriever's, of the same passages.
    right: whether the answer in each of them is an exact match.
  """

  readings: Sequence[passage_reader.Reading]
  scores: Sequence[float]
  right: Sequence[bool]

  def score(self, weight: float) -> bool:
    """Whether the chosen answer is right."""
    index, _ = passage_reader.choose(self.readings, self.scores, weight)
    return index >= 0 and bool(self.right[index])


def candidates(
  predictions: Sequence[str],
  answers: Sequence[str],
  readings: Sequence[passage_reader.Reading],
  scores: Sequence[float],
) -> Candidates:
  """Of a question whose passages gave these predictions."""
  right = [
    bool(text) and exact_match.exact_match(text, answers)
    for text in predictions
  ]
  return Candidates(readings, scores, right)


def tune(questions: Sequence[Candidates]) -> dict[str, Any]:
  """The weight that gives the most exact matches.

  Weights are tried from the reader alone to (nearly) the retriever alone, in
  steps of a factor of 1.4.

  Args:
    questions: one or more, with answers.

  Returns:
    "weight", "measure" (share of exact matches), everything "tried", of equal
    ones the least weight, and "cross_fitted": the measure where every other
    question is answered with the weight that the rest would choose.  That is
    what new questions may expect; "measure" itself is chosen to be high.
  """
  spreads = [
    float(np.std(ranks))
    for each in questions
    if len(ranks := [r.rank for r in each.readings if r.end > r.start]) > 1
  ]
  # Scaled scores of the retriever spread over 1, and so does the first weight.
  scale = 4 * float(np.median(spreads)) if spreads else 1.0
  weights = [scale * step for step in hybrid.STEPS]
  found = np.array([[q.score(weight) for q in questions] for weight in weights])
  measures = found.mean(1)
  best = int(np.argmax(measures))
  halves = [slice(None, None, 2), slice(1, None, 2)]
  right = sum(
    found[np.argmax(found[:, other].mean(1)), half].sum()
    for half, other in (halves, halves[::-1])
    if found[:, other].size
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
  """The setting of stage `read` that `choose` gives for what was read."""
  found = [
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
  weight = choose(workdir, method, reader, passages, found)
  return {"retriever_weight": weight}


def choose(
  workdir: workdir_lib.Workdir,
  method: str,
  reader: reader_model.Reader,
  passages: int,
  questions: Sequence[Candidates],
) -> float:
  """The weight that `tune` finds for a method and a reader; stores it."""
  found = tune(questions)
  stored = {"passages": passages, "reader": reader.fingerprint, **found}
  hybrid.store_tuned(workdir, method, stored, FILE)
  logging.info(
    "read: %s, %d passages: with weight %.4g of the retriever %.1f %% exact"
    " matches, %.1f %% with weights chosen on other questions, %.1f %% without",
    method,
    passages,
    found["weight"],
    100 * found["measure"],
    100 * found["cross_fitted"],
    100 * found["tried"][0]["measure"],
  )
  return found["weight"]


def weight(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  method: str,
  reader: reader_model.Reader,
) -> float:
  """`read.retriever_weight`, or what `tune` has stored where that is negative.

  Raises:
    InputError: it is negative, and nothing is stored for the method, or what
      was chosen for another reader.
  """
  given = float(config.read.retriever_weight)
  if given >= 0:
    return given
  stored = hybrid.read_tuned(workdir, FILE).get(method)
  if stored is None or stored["reader"] != reader.fingerprint:
    lacks = "has none" if stored is None else "has that of another reader"
    raise errors.InputError(
      f"config.read.retriever_weight={given:g} stands for the weight tuned on"
      f" dev, and {hybrid.tuned_file(workdir, FILE)} {lacks} for {method!r}:"
      f" run `dpr-jax read --method={method} --tune` first"
    )
  return float(stored["weight"])
