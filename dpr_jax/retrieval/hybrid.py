"""BM25 and dense together: one ranking out of two.

In come the best rows of each with their scores, out come the best rows of
their union.  Three ways: BM25 + weight x dense (the paper, weight 1.1), the
same of scores that are brought to one range per question (Pyserini), and
reciprocal ranks, which need no scores.  A weight that suits the scores of an
encoder is chosen on the dev questions, and on nothing else.
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
# Weights tried, as multiples of (spread of BM25) / (spread of dense).
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
  """The best rows of both rankings' union, for every question.

  A passage that only one of them found has no score from the other.  It gets
  the lowest that the other gave to any passage of this question: the true one
  is at most that, as it is not in the list.  (So does Pyserini.)  Of an empty
  list it is 0.  With "reciprocal", what is missing adds nothing.

  Args:
    sparse: rows and scores of BM25, [questions, hits].
    dense: the same of the dense method.
    k: hits wanted.
    method: one of `METHODS`.
    weight: of dense.
    rank_constant: "reciprocal" is 1 / (rank_constant + rank), ranks from 1.

  Returns:
    Rows and scores, best first, equal scores in the order of rows; -1 with 0
    after the last hit.
  """
  count = len(sparse[0])
  rows = np.full((count, k), -1, np.int64)
  scores = np.zeros((count, k), np.float32)
  for number in range(count):
    one = _hits(sparse, number)
    other = _hits(dense, number)
    union = np.union1d(one[0], other[0])
    parts = [
      _parts(union, *each, method, rank_constant) for each in (one, other)
    ]
    both = parts[0] + weight * parts[1]
    order = np.lexsort((union, -both))[:k]
    rows[number, : len(order)] = union[order]
    scores[number, : len(order)] = both[order]
  return rows, scores


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
  """What one ranking says of each row of the union."""
  if not len(rows):
    return np.zeros(len(union))
  if method == "reciprocal":
    values = 1 / (rank_constant + 1 + np.arange(len(rows)))
    missing = 0.0
  elif method == "minmax":
    low, high = scores.min(), scores.max()
    # Pyserini's range, -1/2 to 1/2; equal scores stand in the middle.
    values = (scores - (low + high) / 2) / ((high - low) or 1.0)
    missing = values.min()
  else:
    values, missing = scores, scores.min()
  found = np.full(len(union), missing)
  found[np.searchsorted(union, rows)] = values
  return found


class HybridRanker:
  """Searches with BM25 and with a dense ranker, and joins what they find."""

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
    """Takes two rankers; the others as of `fuse` and `config.fusion`."""
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
    """As of `fuse`, from texts; columns are min(k, what can be found)."""
    sparse, dense = self.search_both(questions, k)
    k = min(k, sparse[0].shape[1] + dense[0].shape[1])
    return fuse(sparse, dense, k, **self._options)

  def search_both(
    self, questions: Sequence[str], k: int
  ) -> tuple[Ranked, Ranked]:
    """What each of the two finds, as deep as it is joined."""
    depth = max(k, self._depth)
    return (
      self._sparse.search(questions, depth),
      self._dense.search(questions, depth),
    )


def settings(
  config: ml_collections.ConfigDict, workdir: workdir_lib.Workdir
) -> dict[str, Any]:
  """How the config joins, with the tuned weight where it asks for that.

  Raises:
    InputError: a bad setting, or nothing was tuned yet.
  """
  fusion = config.fusion
  method = config_lib.one_of("fusion.method", fusion.method, METHODS)
  weight = float(fusion.weight)
  if weight < 0:
    tuned = read_tuned(workdir).get(method)
    if tuned is None:
      raise errors.InputError(
        f"config.fusion.weight={weight:g} stands for the weight tuned on dev,"
        f" and {tuned_file(workdir)} has none for {method!r}: run"
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
  """Where tuned weights are kept."""
  return workdir.root / "fusion" / name


def read_tuned(
  workdir: workdir_lib.Workdir, name: str = FILE
) -> dict[str, Any]:
  """What `tune` has stored, by method of fusion."""
  path = tuned_file(workdir, name)
  return workdir_lib.read_record(path) if path.exists() else {}


def store_tuned(
  workdir: workdir_lib.Workdir,
  method: str,
  found: dict[str, Any],
  name: str = FILE,
) -> None:
  """Keeps what `tune` has chosen for a method of fusion."""
  stored = read_tuned(workdir, name) | {method: found}
  workdir_lib.write_record(tuned_file(workdir, name), stored)


def tune(
  batches: Sequence[tuple[Ranked, Ranked]],
  measure: Callable[[Sequence[np.ndarray]], float],
  options: dict[str, Any],
  k: int,
) -> dict[str, Any]:
  """The weight that ranks the dev questions best.

  Weights are tried over the whole range between BM25 alone and (nearly) dense
  alone, in steps of a factor of 1.4, beside the configured one.

  Args:
    batches: what both rankers found for the dev questions.
    measure: of the rows of every batch; more is better.
    options: as of `settings`; its weight is tried as well.
    k: hits looked at.

  Returns:
    "weight", "measure", and everything "tried"; of equal ones the least weight.
  """
  options = {key: options[key] for key in ("method", "weight", "rank_constant")}
  scale = 1.0
  if options["method"] == "linear":
    scale = _spread([one for one, _ in batches]) / (
      _spread([other for _, other in batches]) or 1.0
    )
  weights = sorted({scale * step for step in STEPS} | {options["weight"]})
  tried = []
  for weight in weights:
    rows = [
      fuse(one, other, k, **options | {"weight": weight})[0]
      for one, other in batches
    ]
    tried.append({"weight": weight, "measure": measure(rows)})
  best = max(tried, key=lambda each: each["measure"])
  return {**best, "tried": tried}


def _spread(rankings: Sequence[Ranked]) -> float:
  """Median over questions of the standard deviation of their scores."""
  found = [
    float(np.std(scores[rows >= 0]))
    for ranked in rankings
    for rows, scores in zip(*ranked, strict=True)
    if (rows >= 0).any()
  ]
  return float(np.median(found)) if found else 0.0
