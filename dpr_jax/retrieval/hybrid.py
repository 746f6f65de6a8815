"""Hybrid retrieval: fuses the rankings of BM25 and a dense method.

Input: the best rows of each with their scores.  Output: the best rows of their
union.  There are three methods: BM25 + weight x dense ("linear", the paper,
weight 1.1), the same with scores scaled to one range per question ("minmax",
Pyserini), and reciprocal ranks ("reciprocal"), which need no scores.  `tune`
chooses the weight for an encoder on the dev questions only.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections
import numpy as np
from jaxtyping import Float, Int

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib

METHODS = ("linear", "minmax", "reciprocal")
FILE = "fusion.json"
# Weights to try, as multiples of (spread of BM25) / (spread of dense).
STEPS = [0.0, *(2.0 ** (power / 2) for power in range(-10, 9))]

Ranked = tuple[np.ndarray, np.ndarray]  # rows (-1: none), scores; best first


def fuse(
  sparse: Ranked,
  dense: Ranked,
  k: int,
  *,
  method: str,
  weight: float,
  rank_constant: int = 60,
) -> tuple[Int[np.ndarray, "questions k"], Float[np.ndarray, "questions k"]]:
  """The best rows of the union of two rankings, for every question.

  A passage in only one of the lists has no score from the other method.  It
  gets the lowest score in the other list of this question: the true score is
  not higher, because the passage is not in the list.  (Pyserini does the same.)
  For an empty list the score is 0.  With "reciprocal", a missing rank adds 0.

  Args:
    sparse: rows and scores of BM25, [questions, hits].
    dense: rows and scores of the dense method, [questions, hits].
    k: number of hits wanted.
    method: one of `METHODS`.
    weight: weight of the dense score.
    rank_constant: "reciprocal" scores are 1 / (rank_constant + rank), with
      ranks from 1.

  Returns:
    Rows and scores, best first, equal scores in the order of rows; row -1 and
    score 0 after the last hit.
  """
  count = len(sparse[0])
  rows = np.full((count, k), -1, np.int64)
  scores = np.zeros((count, k), np.float32)
  for number in range(count):
    union = np.union1d(_hits(sparse, number)[0], _hits(dense, number)[0])
    fused = _fused(sparse, dense, number, union, method, weight, rank_constant)
    order = np.lexsort((union, -fused))[:k]
    rows[number, : len(order)] = union[order]
    scores[number, : len(order)] = fused[order]
  return rows, scores


def _fused(
  sparse: Ranked,
  dense: Ranked,
  number: int,
  rows: np.ndarray,
  method: str,
  weight: float,
  rank_constant: int,
) -> np.ndarray:
  """Fused scores of rows for a question; ascending, with all of its hits."""
  of_sparse, of_dense = (
    _parts(rows, *_hits(ranked, number), method, rank_constant)
    for ranked in (sparse, dense)
  )
  return of_sparse + weight * of_dense


def _hits(ranked: Ranked, number: int) -> Ranked:
  rows, scores = ranked[0][number], ranked[1][number]
  return rows[rows >= 0], scores[rows >= 0].astype(np.float64)


def _parts(
  union: np.ndarray,
  rows: np.ndarray,
  scores: np.ndarray,
  method: str,
  rank_constant: int,
) -> np.ndarray:
  """The contribution of one ranking to the score of each row of the union."""
  if not len(rows):
    return np.zeros(len(union))
  if method == "reciprocal":
    values = 1 / (rank_constant + 1 + np.arange(len(rows)))
    missing = 0.0
  elif method == "minmax":
    low, high = scores.min(), scores.max()
    # Pyserini's range, -1/2 to 1/2; if all scores are equal they are 0.
    values = (scores - (low + high) / 2) / ((high - low) or 1.0)
    missing = values.min()
  else:
    values, missing = scores, scores.min()
  parts = np.full(len(union), missing)
  parts[np.searchsorted(union, rows)] = values
  return parts


class HybridRanker:
  """Searches with BM25 and with a dense ranker, and fuses their hits."""

  def __init__(
    self,
    sparse,
    dense,
    *,
    method: str,
    weight: float,
    depth: int,
    rank_constant: int,
  ):
    """Stores the rankers; opens and computes nothing.

    Args:
      sparse: ranker of BM25.
      dense: ranker of the dense method.
      method: one of `METHODS`.
      weight: weight of the dense score.
      depth: number of hits of each ranker that are fused, at least.
      rank_constant: see `fuse`.
    """
    self._sparse, self._dense = sparse, dense
    self._depth = depth
    self._options = {
      "method": method,
      "weight": weight,
      "rank_constant": rank_constant,
    }
    self.questions_at_once = getattr(dense, "questions_at_once", 0)

  def search(
    self, questions: Sequence[str], k: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Rows and scores as of `fuse`; columns are min(k, hits of both)."""
    return self.search_and_score(questions, k, ())[:2]

  def search_and_score(
    self, questions: Sequence[str], k: int, wanted: Sequence[Sequence[int]]
  ) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """As `search`, and the scores of the wanted rows of each question.

    Each wanted row is scored as `fuse` would: by its places in the two lists.
    """
    sparse, dense = self.search_both(questions, k)
    k = min(k, sparse[0].shape[1] + dense[0].shape[1])
    scores = []
    for number, rows in enumerate(wanted):
      hits = (_hits(ranked, number)[0] for ranked in (sparse, dense))
      union = np.unique(np.concatenate([*hits, np.asarray(rows, np.int64)]))
      fused = _fused(sparse, dense, number, union, **self._options)
      scores.append(fused[np.searchsorted(union, rows)].astype(np.float32))
    return *fuse(sparse, dense, k, **self._options), scores

  def search_both(
    self, questions: Sequence[str], k: int
  ) -> tuple[Ranked, Ranked]:
    """The rankings of both, as deep as they are fused."""
    depth = max(k, self._depth)
    return (
      self._sparse.search(questions, depth),
      self._dense.search(questions, depth),
    )


def settings(
  config: ml_collections.ConfigDict, workdir: workdir_lib.Workdir
) -> dict[str, Any]:
  """Settings of the fusion, with the tuned weight for a negative weight.

  Raises:
    InputError: a bad setting, or no weight has been tuned.
  """
  fusion = config.fusion
  method = config_lib.one_of("fusion.method", fusion.method, METHODS)
  weight = float(fusion.weight)
  if weight < 0:
    tuned = read_tuned(workdir).get(method)
    if tuned is None:
      raise errors.InputError(
        f"config.fusion.weight={weight:g} means the weight tuned on dev, but"
        f" {tuned_file(workdir)} has none for {method!r}: run"
        " `dpr-jax retrieve --method=hybrid --tune` first"
      )
    weight = float(tuned["weight"])
  return {
    "method": method,
    "weight": weight,
    "depth": int(config_lib.at_least("fusion.depth", fusion.depth, 1)),
    "rank_constant": int(
      config_lib.at_least("fusion.rank_constant", fusion.rank_constant, 0)
    ),
  }


def tuned_file(workdir: workdir_lib.Workdir, name: str = FILE) -> pathlib.Path:
  """Path of the file with tuned weights."""
  return workdir.root / "fusion" / name


def read_tuned(
  workdir: workdir_lib.Workdir, name: str = FILE
) -> dict[str, Any]:
  """The stored results of `tune`, by method of fusion; {} = none."""
  path = tuned_file(workdir, name)
  return workdir_lib.read_record(path) if path.exists() else {}


def store_tuned(
  workdir: workdir_lib.Workdir,
  method: str,
  tuned: dict[str, Any],
  name: str = FILE,
) -> None:
  """Stores a result of `tune` for a method of fusion."""
  stored = read_tuned(workdir, name) | {method: tuned}
  workdir_lib.write_record(tuned_file(workdir, name), stored)


def tune(
  batches: Sequence[tuple[Ranked, Ranked]],
  measure: Callable[[Sequence[np.ndarray]], float],
  options: dict[str, Any],
  k: int,
) -> dict[str, Any]:
  """The weight that ranks the dev questions best.

  Tries weights from BM25 alone to (nearly) dense alone, in steps of a factor of
  1.4, and the configured one.

  Args:
    batches: rankings of both rankers for the dev questions.
    measure: function from the rows of every batch to a number; higher is
      better.
    options: result of `settings`; its weight is tried as well.
    k: number of hits that count.

  Returns:
    "weight", "measure", and all that was "tried"; of equally good weights the
    smallest.
  """
  options = {key: options[key] for key in ("method", "weight", "rank_constant")}
  scale = 1.0
  if options["method"] == "linear":
    scale = _spread([sparse for sparse, _ in batches]) / (
      _spread([dense for _, dense in batches]) or 1.0
    )
  weights = sorted({scale * step for step in STEPS} | {options["weight"]})
  tried = []
  for weight in weights:
    rows = [
      fuse(sparse, dense, k, **options | {"weight": weight})[0]
      for sparse, dense in batches
    ]
    tried.append({"weight": weight, "measure": measure(rows)})
  best = max(tried, key=lambda each: each["measure"])
  return {**best, "tried": tried}


def _spread(rankings: Sequence[Ranked]) -> float:
  """Median over questions of the standard deviation of their scores."""
  deviations = [
    float(np.std(scores[rows >= 0]))
    for ranked in rankings
    for rows, scores in zip(*ranked, strict=True)
    if (rows >= 0).any()
  ]
  return float(np.median(deviations)) if deviations else 0.0
