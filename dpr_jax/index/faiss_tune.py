"""Measures the recall and speed of an index, and tunes its search parameters.

Input: an index, the vectors that it was built from and vectors of questions.
Output: recall@20 and recall@100 against exact search, questions per second with
one thread and with all, and the mean error of the reported scores.  `tune`
finds the fastest search parameters for a target recall; as they are the best of
many tries, their recall is measured on other questions (`halves`).
"""

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Float, Int

from dpr_jax.core import multiprocess
from dpr_jax.index import faiss_build, faiss_search

RANKS = (20, 100)
TUNED_ON = 20  # k of the recall that `tune` uses
BATCH = 256  # questions searched at once
LEAST_SECONDS = 0.3  # minimum time of a speed measurement
MOST_SECONDS = 10.0  # a measurement stops here, even with questions left
SURE = 1.645  # standard errors of a one-sided 95 % bound
_RECALL, _BOUND = "recall@20", "recall@20, lower bound"
_FACTORS = (16.0, 8.0, 4.0, 2.0, 1.0)  # of Refine
_LEAST_EF_SEARCH, _MOST_EF_SEARCH = 8, 16_384


def recall(
  found: Int[np.ndarray, "questions hits"],
  exact: Int[np.ndarray, "questions best"],
  k: int,
) -> float:
  """Mean of `recalls`."""
  return float(recalls(found, exact, k).mean())


def recalls(
  found: Int[np.ndarray, "questions hits"],
  exact: Int[np.ndarray, "questions best"],
  k: int,
) -> Float[np.ndarray, " questions"]:
  """Per question: share of the k best rows among the first k found.

  With fewer than k rows in the corpus, k is their number.  (FAISS's
  `knn_intersection_measure` only gives the mean, and needs k columns of both.)
  """
  k = min(k, exact.shape[1])
  both = [
    len(np.intersect1d(some[:k], best[:k]))
    for some, best in zip(found, exact, strict=True)
  ]
  return np.array(both, np.float64) / k


def questions_per_second(
  index: faiss_search.Index,
  questions: Float[np.ndarray, "questions dim"],
  threads: int,
  k: int = RANKS[-1],
) -> float:
  """Speed of searching for k hits in batches, after a warm-up.

  With several processes all call it; process 0 measures the time and decides
  when to stop.
  """
  with faiss_search.threads(threads):
    faiss_search.search_index(index, questions[:BATCH], k)
    done, started = 0, time.perf_counter()
    while True:
      for first in range(0, len(questions), BATCH):
        some = questions[first : first + BATCH]
        faiss_search.search_index(index, some, k)
        done += len(some)
        seconds = multiprocess.first_alone(
          lambda: time.perf_counter() - started
        )
        if seconds > MOST_SECONDS:
          return done / seconds
      if seconds > LEAST_SECONDS:
        return done / seconds


def measure(
  index: faiss_search.Index,
  vectors: faiss_build.Vectors,
  questions: Float[np.ndarray, "questions dim"],
  exact: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[str, Any]:
  """Measures recall and speed, the entry "recall" of an index's manifest.

  With several processes all call it; only process 0 gets the result.

  Args:
    index: the index, with its search parameters set.
    vectors: vectors that it was built from.
    questions: float32 vectors, at least one.
    exact: result of `search_vectors`; None = computed here.
  """
  depth = RANKS[-1]
  rows, scores = faiss_search.search_index(index, questions, depth)
  speeds = {
    "1 thread": questions_per_second(index, questions, 1),
    "all threads": questions_per_second(index, questions, 0),
  }
  if not multiprocess.is_first():
    return {}
  if exact is None:
    exact = faiss_search.search_vectors(vectors, questions, depth)
  _, again = faiss_search.score_again(vectors, questions, rows, rows.shape[1])
  spread = float(np.std(again[rows >= 0])) or 1.0
  # Both are sorted: the error of the reported scores, not of the ranking.
  error = np.abs(np.sort(scores, axis=1) - np.sort(again, axis=1))
  with faiss_search.threads(0) as every:
    pass
  return {
    "questions": len(questions),
    **{f"recall@{k}": recall(rows, exact[0], k) for k in RANKS},
    "score_error": float(np.mean(error) / spread),
    "questions_per_second": speeds,
    "threads": every,
  }


def halves(
  questions: Float[np.ndarray, "questions dim"],
) -> tuple[Float[np.ndarray, "half dim"], Float[np.ndarray, "rest dim"]]:
  """Splits questions: those to tune on, and those held out for measuring.

  The first, third, ... are tuned on, the second, fourth, ... are held out; a
  single question is tuned on, and none is held out.
  """
  return questions[::2], questions[1::2]


def chosen_recall(
  chosen: dict[str, float | int], tried: list[dict[str, Any]]
) -> dict[str, float]:
  """Recall of the parameters that `tune` chose, and its lower bound.

  {} if nothing was tried: with several processes only process 0 measures.
  """
  return next(
    (
      {key: each[key] for key in (_RECALL, _BOUND)}
      for each in reversed(tried)
      if chosen.items() <= each.items()
    ),
    {},
  )


def tune(
  index: faiss_search.Index,
  vectors: faiss_build.Vectors,
  questions: Float[np.ndarray, "questions dim"],
  target: float,
  depth: int = TUNED_ON,
) -> tuple[dict[str, float | int], list[dict[str, Any]]]:
  """Finds the fastest search whose recall@20 reaches a target with confidence.

  The lower bound of the recall, the mean over the questions minus `SURE`
  standard errors, must reach the target, so that other questions of the same
  kind reach it too.  nprobe or efSearch is doubled until it does, then reduced
  by bisection; with Refine this is done for every factor, and the fastest pair,
  measured with one thread, is chosen.  With several processes all call it: all
  search, process 0 decides.

  Args:
    index: the index; the chosen parameters are set in it.
    vectors: vectors that it was built from.
    questions: float32 vectors, at least one.
    target: recall@20 against exact search, 0 to 1.
    depth: number of hits to search for, at least 20.  With more hits the best
      20 are found as well or better, because graphs and Refine visit more
      passages.

  Returns:
    The parameters, and every setting tried with its recall and its bound.  If
    no bound reaches the target, the parameters with the greatest bound, and a
    warning is logged.
  """
  names, effort, least, most = multiprocess.first_alone(lambda: _effort(index))
  exact = functools.cache(  # only called in process 0
    lambda: faiss_search.search_vectors(vectors, questions, depth)[0]
  )
  tried: list[dict[str, Any]] = []

  def reaches(parameters: dict[str, float | int]) -> bool:
    parameters = faiss_search.set_parameters(index, parameters)
    rows, _ = faiss_search.search_index(index, questions, depth)
    return multiprocess.first_alone(lambda: is_sure(parameters, rows))

  def is_sure(parameters: dict[str, float | int], rows: np.ndarray) -> bool:
    each = recalls(rows, exact(), TUNED_ON)
    bound = each.mean() - SURE * each.std() / math.sqrt(len(each))
    tried.append({**parameters, _RECALL: float(each.mean())})
    tried[-1][_BOUND] = float(bound)
    logging.info("index --tune: %s", _shown(tried[-1]))
    return tried[-1][_BOUND] >= target

  good = []
  for factor in _FACTORS if "refine_factor" in names else [None]:
    fixed = {} if factor is None else {"refine_factor": factor}
    # A smaller factor needs at least the effort of the larger one before it.
    least_effort = _least(
      lambda step, fixed=fixed: reaches({**fixed, effort: step}), least, most
    )
    if least_effort is None:
      break
    least = least_effort
    good.append({**fixed, effort: least})
  if good:
    best = (
      good[0] if len(good) == 1 else _fastest(index, questions, good, depth)
    )
  else:
    best = multiprocess.first_alone(lambda: _nearest(tried, target))
  return faiss_search.set_parameters(index, best), tried


def _effort(
  index: faiss_search.Index,
) -> tuple[tuple[str, ...], str, int, int]:
  """(all parameters, the one to search over, its least and greatest value).

  The two values are equal if the index has no such parameter.
  """
  names = faiss_search.searchable_by(index)
  if "nprobe" in names:
    layers = faiss_search.layers(index)
    lists = [layer.nlist for layer in layers if hasattr(layer, "nlist")]
    return names, "nprobe", 1, max(lists)
  if "ef_search" in names:
    most = min(_MOST_EF_SEARCH, index.ntotal)
    return names, "ef_search", min(_LEAST_EF_SEARCH, most), most
  return names, "nprobe", 1, 1


def _least(reaches: Callable[[int], bool], least: int, most: int) -> int | None:
  """The smallest step that reaches the target, within 1/8; None = none does."""
  step, failed = least, None
  while not reaches(step):
    if step >= most:
      return None
    failed, step = step, min(2 * step, most)
  while failed is not None and step - failed > max(1, failed // 8):
    middle = (failed + step) // 2
    if reaches(middle):
      step = middle
    else:
      failed = middle
  return step


def _nearest(tried: list[dict[str, Any]], target: float) -> dict[str, Any]:
  """The setting with the greatest bound, if none reaches the target; warns."""
  best = max(tried, key=lambda each: each[_BOUND])
  logging.warning(
    "index --tune: no setting is sure to reach recall@%d %g: the best is %s;"
    " use a larger index (a finer quantiser, more links), or Refine",
    TUNED_ON,
    target,
    _shown(best),
  )
  return best


def _fastest(
  index: faiss_search.Index,
  questions: Float[np.ndarray, "questions dim"],
  settings: list[dict[str, float | int]],
  depth: int,
) -> dict[str, float | int]:
  """The fastest of some settings, by questions per second on one thread."""
  speeds = []
  for setting in settings:
    faiss_search.set_parameters(index, setting)
    speeds.append(questions_per_second(index, questions, 1, depth))
    logging.info(
      "index --tune: %s: %.0f questions/s", _shown(setting), speeds[-1]
    )
  return settings[multiprocess.first_alone(lambda: int(np.argmax(speeds)))]


def _shown(values: dict[str, Any]) -> str:
  return ", ".join(f"{name} {value:.4g}" for name, value in values.items())
