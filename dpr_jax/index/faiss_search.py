"""Searching a FAISS index: how carefully, in which order, over its shards.

In come an index of `faiss_build` and question vectors, out come the rows
with the largest inner products, equal ones in the order of their rows.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import faiss
import numpy as np
from faiss.contrib import exhaustive_search
from jaxtyping import Float, Int

from dpr_jax.core import errors
from dpr_jax.index import faiss_build

_AGAIN = 50_000  # hits whose vectors are in memory at once
TIES = 16  # equal scores at the end of a list that are put in order
# Names of FAISS's parameters, and what they are before anything is tuned.
DEFAULTS = {"ef_search": 128, "nprobe": 64, "refine_factor": 4.0}


class ShardedIndex:
  """Indexes of ranges of rows, searched as if they were one.

  Not `faiss.IndexShards`: of equal scores it keeps any, and it numbers rows
  without gaps, which the shards of one process among several have.

  Attributes:
    shards: the parts, in the order of their rows.
    first_rows: the row where each begins.
    ntotal: vectors in all of them.
    d: width of a vector.
    metric_type: FAISS's number for the inner product.
    parameters: as `set_parameters` has set them last.
  """

  metric_type = faiss.METRIC_INNER_PRODUCT

  def __init__(
    self, shards: Sequence[faiss.Index], first_rows: Sequence[int], dim: int
  ):
    """Takes the parts, the row where each begins, and the vectors' width."""
    self.shards = list(shards)
    self.ntotal = sum(shard.ntotal for shard in self.shards)
    self.d = dim
    self.parameters: dict[str, float | int] = {}
    self.first_rows = list(first_rows)

  def search(
    self, questions: Float[np.ndarray, "questions dim"], k: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Scores and rows, as FAISS returns them."""
    none = (len(questions), 0)
    rows, scores = [np.zeros(none, np.int64)], [np.zeros(none, np.float32)]
    for shard, first in zip(self.shards, self.first_rows, strict=True):
      found, numbers = shard.search(questions, min(k, shard.ntotal))
      rows.append(np.where(numbers < 0, -1, numbers + first))
      scores.append(found)
    rows, scores = in_order(np.hstack(rows), np.hstack(scores), k)
    return scores, rows


Index = faiss.Index | ShardedIndex


def layers(index: Index) -> Iterator[faiss.Index]:
  """As `faiss_build.layers`, of all shards."""
  for part in getattr(index, "shards", [index]):
    yield from faiss_build.layers(part)


def searchable_by(index: Index) -> tuple[str, ...]:
  """Which of `DEFAULTS` make a difference to this index."""
  found = []
  kinds = list(layers(index))
  if any(isinstance(layer, faiss.IndexHNSW) for layer in kinds):
    found.append("ef_search")
  if any(isinstance(layer, faiss.IndexIVF) for layer in kinds):
    found.append("nprobe")
  if any(isinstance(layer, faiss.IndexRefine) for layer in kinds):
    found.append("refine_factor")
  return tuple(found)


def set_parameters(
  index: Index, parameters: Mapping[str, float | int]
) -> dict[str, float | int]:
  """Sets how carefully is searched; returns what holds for this index.

  Args:
    index: changed in place.
    parameters: any of `DEFAULTS`; others of them keep their default.
  """
  values = {**DEFAULTS, **parameters}
  if isinstance(index, ShardedIndex):
    index.parameters = dict(values)
  for layer in layers(index):
    if isinstance(layer, faiss.IndexHNSW):
      layer.hnsw.efSearch = int(values["ef_search"])
    elif isinstance(layer, faiss.IndexIVF):
      layer.nprobe = min(int(values["nprobe"]), layer.nlist)
    elif isinstance(layer, faiss.IndexRefine):
      layer.k_factor = float(values["refine_factor"])
  for layer in layers(index):  # a graph over the lists must see them all
    if isinstance(layer, faiss.IndexIVF):
      quantizer = faiss.downcast_index(layer.quantizer)
      if isinstance(quantizer, faiss.IndexHNSW):
        quantizer.hnsw.efSearch = max(
          int(values["ef_search"]), 2 * layer.nprobe
        )
  return {name: values[name] for name in searchable_by(index)}


def scores_are_exact(index: Index) -> bool:
  """Whether its scores are inner products of the vectors themselves."""
  return all(
    _keeps_vectors(faiss.downcast_index(part))
    for part in getattr(index, "shards", [index])
  )


def _keeps_vectors(index: faiss.Index) -> bool:
  if isinstance(index, faiss.IndexFlat | faiss.IndexIVFFlat):
    return True
  if isinstance(index, faiss.IndexHNSW | faiss.IndexNSG):
    return _keeps_vectors(faiss.downcast_index(index.storage))
  if isinstance(index, faiss.IndexRefine):
    return _keeps_vectors(faiss.downcast_index(index.refine_index))
  return False


@contextlib.contextmanager
def threads(count: int) -> Iterator[int]:
  """FAISS works with so many threads inside the block, 0 = as it likes.

  Yields:
    How many those are.
  """
  before = faiss.omp_get_max_threads()
  if count:
    faiss.omp_set_num_threads(count)
  try:
    yield faiss.omp_get_max_threads()
  finally:
    faiss.omp_set_num_threads(before)


def search_index(
  loaded: Index, questions: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
  """The rows with the largest inner products.

  Equal scores stand in the order of their rows, also where the list is cut
  off (FAISS leaves it open there: a few more hits are asked for and sorted).
  Only where more than 16 other passages have the very score of the last hit,
  which of them are in the list is FAISS's own choice.

  Args:
    loaded: from `build_index` or `load_index`.
    questions: float32 [questions, dim].
    k: hits wanted; columns are min(k, vectors in the index).

  Returns:
    int64 rows and float32 scores, both [questions, columns], best first; row
    -1 with score 0 after the last hit, where an approximate index found fewer.

  Raises:
    InputError: the questions have another width than the index.
  """
  questions = np.ascontiguousarray(questions, np.float32)
  check_width(questions, loaded.d)
  columns = min(k, loaded.ntotal)
  if not len(questions):
    return np.zeros((0, columns), np.int64), np.zeros((0, columns), np.float32)
  scores, rows = loaded.search(questions, min(k + TIES, loaded.ntotal))
  return in_order(rows, scores, columns)


def check_width(questions: np.ndarray, dim: int) -> None:
  """`InputError` where question vectors have another width than passages."""
  if questions.ndim != 2 or questions.shape[1] != dim:
    raise errors.InputError(
      f"question vectors of shape {list(questions.shape)} for passage vectors"
      f" of width {dim}: they are of another model; run `dpr-jax embed` and"
      " `dpr-jax index` again"
    )


def search_vectors(
  vectors: faiss_build.Vectors, questions: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
  """As `search_index` of a Flat index, without one: a block at a time.

  Memory is that of the questions, their hits and one block, however many
  vectors there are.

  Args:
    vectors: read once, in blocks.
    questions: float32 [questions, dim].
    k: hits wanted; columns are min(k, vectors).

  Returns:
    As of `search_index`.

  Raises:
    InputError: a vector is not finite, or questions have another width.
  """
  questions = np.ascontiguousarray(questions, np.float32)
  check_width(questions, vectors.dim)
  wanted = min(k + TIES, len(vectors))
  blocks = (block for _, block in faiss_build.finite_blocks(vectors))
  scores, rows = exhaustive_search.knn_ground_truth(
    questions, blocks, wanted, faiss.METRIC_INNER_PRODUCT
  )
  return in_order(rows, scores, min(k, len(vectors)))


def score_again(
  vectors: faiss_build.Vectors,
  questions: Float[np.ndarray, "questions dim"],
  rows: Int[np.ndarray, "questions hits"],
  columns: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Hits of a compressed index, scored and sorted by their own vectors.

  Reads the distinct rows and nothing else of the vectors, those of a bounded
  number of hits at a time.

  Args:
    vectors: those that the index was made from.
    questions: float32.
    rows: what was found, -1 for no hit.
    columns: hits to return.
  """
  scores = np.zeros(rows.shape, np.float32)
  step = max(1, _AGAIN // max(rows.shape[1], 1))
  for first in range(0, len(rows), step):
    batch = rows[first : first + step]
    distinct = np.unique(batch[batch >= 0])
    if not len(distinct):
      continue
    found = vectors.take(distinct)
    for number, some in enumerate(batch, start=first):
      places = np.searchsorted(distinct, np.maximum(some, distinct[0]))
      scores[number] = found[places] @ questions[number]
  return in_order(rows, scores, columns)


def in_order(
  rows: np.ndarray, scores: np.ndarray, columns: int
) -> tuple[np.ndarray, np.ndarray]:
  """The first columns by score, then by row; those without a hit last."""
  scores = np.where(rows < 0, -np.inf, scores).astype(np.float32)
  # Only lists with ties, or put together from several, need to be sorted.
  mixed = ~(scores[:, 1:] < scores[:, :-1]).all(axis=1)
  if mixed.any():
    order = np.lexsort((rows[mixed], -scores[mixed]), axis=-1)
    rows = rows.copy()
    rows[mixed] = np.take_along_axis(rows[mixed], order, axis=-1)
    scores[mixed] = np.take_along_axis(scores[mixed], order, axis=-1)
  rows, scores = rows[:, :columns], scores[:, :columns]
  return rows, np.where(rows < 0, np.float32(0), scores)
