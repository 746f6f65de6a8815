"""How much an index finds of what exact search finds, and how fast.

In come an index, the vectors that it was made from and vectors of real
questions; out come recall@20 and recall@100 against exact search, questions a
second with one thread and with all, and how far the reported scores are from
the inner products.  `tune` finds how carefully to search for a recall; what it
finds is the best of many tries, so its recall is measured on other questions
(`halves`).
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
TUNED_ON = 20  # the recall that `tune` looks at
BATCH = 256  # questions searched at once
LEAST_SECONDS = 0.3  # that a speed is measured for, at least
MOST_SECONDS = 10.0  # that one is measured for: then fewer questions will do
SURE = 1.645  # standard errors above the target: 95 of 100 samples
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
  """Of every question: share of the k best rows among the first k found.

  Of a corpus with fewer rows all of them count.  (FAISS's own
  `knn_intersection_measure` gives the mean alone, and wants k columns of both.)
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
  """Speed of searching for k hits in batches, once warm; by the first's clock.

  Of several processes all call it, and search as often as the first.
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
  """What stands as "recall" in an index's manifest.

  Of several processes all call it; only of the first the result counts.

  Args:
    index: its parameters are set.
    vectors: those that it was made from.
    questions: float32, at least one.
    exact: what `search_vectors` finds, where that is known already.
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
  # Both sorted: how far the reported scores are off, not which rows are.
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
  """Questions to tune on, and those held out to measure what that gave.

  The first, third, ... are tuned on, the second, fourth, ... are held out: of
  one question none is.
  """
  return questions[::2], questions[1::2]


def chosen_recall(
  chosen: dict[str, float | int], tried: list[dict[str, Any]]
) -> dict[str, float]:
  """Recall and its bound of the setting that `tune` chose, as it was tried.

  {} where nothing was: of several processes only the first measures.
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
  """The fastest search that is sure of a recall@20.

  Sure: the mean over the questions is above the target by `SURE` of its
  standard errors, so that other questions of the kind will reach it as well.
  nprobe or efSearch is doubled and then narrowed down; with Refine that is done
  for every factor, and the fastest pair, measured with one thread, is taken.
  Of several processes all call it: all search, the first decides.

  Args:
    index: left with what was chosen.
    vectors: those that it was made from.
    questions: float32, at least one.
    target: recall@20 against exact search, 0 to 1.
    depth: hits asked for, at least 20.  Asking for more than that finds no
      fewer of the best 20 (graphs and Refine look at more passages then).

  Returns:
    The parameters, and every setting tried with its recall and the bound that
    was compared.  Where no bound reaches the target it is the setting that
    comes nearest, and a warning says so.
  """
  names, effort, least, most = multiprocess.first_alone(lambda: _effort(index))
  exact = functools.cache(  # in the first process alone
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
    given = {} if factor is None else {"refine_factor": factor}
    # A smaller factor needs no less effort than the larger one before it.
    found = _least(
      lambda step, given=given: reaches({**given, effort: step}), least, most
    )
    if found is None:
      break
    least = found
    good.append({**given, effort: least})
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
  """All parameters, and which is walked from where to where.

  One step where there is nothing to walk.
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
  """The smallest step that will do, to an eighth; None where none does."""
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
  """Of settings none of which will do; says so."""
  best = max(tried, key=lambda each: each[_BOUND])
  logging.warning(
    "index --tune: no setting is sure to reach recall@%d %g: the best is %s;"
    " take a larger index (a finer quantiser, more links), or Refine",
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
  """Of settings that will do, by questions a second with one thread."""
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
