"""How much an index finds of what exact search finds, and how fast.

In come an index, the vectors that it was made from and vectors of real
questions; out come recall@20 and recall@100 against exact search, questions a
second with one thread and with all, and how far the reported scores are from
the inner products.  `tune` walks how carefully is searched up to a recall.
"""

import time
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Float, Int

from dpr_jax.retrieval import faiss_index_build, faiss_index_search

RANKS = (20, 100)
TUNED_ON = 20  # the recall that `tune` looks at
BATCH = 256  # questions searched at once
LEAST_SECONDS = 0.3  # that a speed is measured for, at least
MOST_SECONDS = 10.0  # that one is measured for: then fewer questions will do
_WALK = [2**power for power in range(3, 15)]


def recall(
  found: Int[np.ndarray, "questions hits"],
  exact: Int[np.ndarray, "questions best"],
  k: int,
) -> float:
  """Share of the k best rows that are among the first k found.

  Of a corpus with fewer rows all of them count.
  """
  k = min(k, exact.shape[1])
  both = [
    len(np.intersect1d(some[:k], best[:k]))
    for some, best in zip(found, exact, strict=True)
  ]
  return float(np.sum(both) / (k * len(exact)))


def questions_per_second(
  index: faiss_index_search.Index,
  questions: Float[np.ndarray, "questions dim"],
  threads: int,
  k: int = RANKS[-1],
) -> float:
  """Speed of searching for k hits in batches, once warm."""
  with faiss_index_search.threads(threads):
    faiss_index_search.search_index(index, questions[:BATCH], k)
    done, started = 0, time.perf_counter()
    while True:
      for first in range(0, len(questions), BATCH):
        some = questions[first : first + BATCH]
        faiss_index_search.search_index(index, some, k)
        done += len(some)
        seconds = time.perf_counter() - started
        if seconds > MOST_SECONDS:
          return done / seconds
      if seconds > LEAST_SECONDS:
        return done / seconds


def measure(
  index: faiss_index_search.Index,
  vectors: faiss_index_build.Vectors,
  questions: Float[np.ndarray, "questions dim"],
  exact: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[str, Any]:
  """What stands as "recall" in an index's manifest.

  Args:
    index: its parameters are set.
    vectors: those that it was made from.
    questions: float32, at least one.
    exact: what `search_vectors` finds, where that is known already.
  """
  depth = RANKS[-1]
  if exact is None:
    exact = faiss_index_search.search_vectors(vectors, questions, depth)
  rows, scores = faiss_index_search.search_index(index, questions, depth)
  _, again = faiss_index_search.score_again(
    vectors, questions, rows, rows.shape[1]
  )
  spread = float(np.std(again[rows >= 0])) or 1.0
  # Both sorted: how far the reported scores are off, not which rows are.
  error = np.abs(np.sort(scores, axis=1) - np.sort(again, axis=1))
  with faiss_index_search.threads(0) as every:
    pass
  return {
    "questions": len(questions),
    **{f"recall@{k}": recall(rows, exact[0], k) for k in RANKS},
    "score_error": float(np.mean(error) / spread),
    "questions_per_second": {
      "1 thread": questions_per_second(index, questions, 1),
      "all threads": questions_per_second(index, questions, 0),
    },
    "threads": every,
  }


def tune(
  index: faiss_index_search.Index,
  vectors: faiss_index_build.Vectors,
  questions: Float[np.ndarray, "questions dim"],
  target: float,
) -> tuple[dict[str, float | int], list[dict[str, Any]]]:
  """The least careful search that reaches a recall@20.

  Args:
    index: left with what was chosen.
    vectors: those that it was made from.
    questions: float32, at least one.
    target: recall@20 against exact search, 0 to 1.

  Returns:
    The parameters, and every setting tried with its recalls.  Where none
    reaches the target it is the one that comes nearest, and a warning says so.
  """
  names = faiss_index_search.searchable_by(index)
  exact = faiss_index_search.search_vectors(vectors, questions, RANKS[-1])
  tried: list[dict[str, Any]] = []
  for parameters in _settings(index, names):
    parameters = faiss_index_search.set_parameters(index, parameters)
    rows, _ = faiss_index_search.search_index(index, questions, RANKS[-1])
    found = {f"recall@{k}": recall(rows, exact[0], k) for k in RANKS}
    tried.append({**parameters, **found})
    logging.info("index --tune: %s", _shown(tried[-1]))
    if found[f"recall@{TUNED_ON}"] >= target:
      break
  best = max(tried, key=lambda each: each[f"recall@{TUNED_ON}"])
  if best[f"recall@{TUNED_ON}"] < target:
    logging.warning(
      "index --tune: no setting reaches recall@%d %g: the best is %s; take a"
      " larger index (a finer quantiser, more links), or Refine",
      TUNED_ON,
      target,
      _shown(best),
    )
  chosen = faiss_index_search.set_parameters(
    index, {name: best[name] for name in names}
  )
  return chosen, tried


def _settings(index, names: tuple[str, ...]) -> list[dict[str, float | int]]:
  """From fast to careful; one alone where there is nothing to choose."""
  lists = [
    layer.nlist
    for layer in faiss_index_search.layers(index)
    if hasattr(layer, "nlist")
  ]
  if "nprobe" in names:
    steps = [step for step in [1, 2, 4, *_WALK] if step < max(lists)]
    walk = [{"nprobe": step} for step in [*steps, max(lists)]]
  elif "ef_search" in names:
    walk = [{"ef_search": step} for step in _WALK if step < index.ntotal]
    walk = walk or [{"ef_search": _WALK[-1]}]
  else:
    walk = [{}]
  if "refine_factor" in names:  # at the end, more of the fast index's hits
    walk += [walk[-1] | {"refine_factor": factor} for factor in (8.0, 16.0)]
  return walk


def _shown(values: dict[str, Any]) -> str:
  return ", ".join(f"{name} {value:.4g}" for name, value in values.items())
