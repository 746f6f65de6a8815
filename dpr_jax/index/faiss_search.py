"""Searches a FAISS index: sets its parameters, sorts ties, merges shards.

Input: an index of `faiss_build` and question vectors.  Output: the rows with
the largest inner products, equal scores in the order of their rows.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

import faiss
import numpy as np
from faiss.contrib import exhaustive_search
from jaxtyping import Float, Int

from dpr_jax.core import errors
from dpr_jax.index import faiss_build

_AGAIN = 50_000  # hits whose vectors are in memory at once
TIES = 16  # extra hits to fetch, to sort equal scores at the end of a list
# Search parameters and their defaults, used until an index is tuned.
DEFAULTS = {"ef_search": 128, "nprobe": 64, "refine_factor": 4.0}


class ShardedIndex:
  """Indexes of ranges of rows, searched as one index.

  `faiss.IndexShards` is not used, because it does not sort equal scores, and
  numbers rows without gaps, which the shards of one of several processes have.

  Attributes:
    shards: the shards, in the order of their rows.
    first_rows: first row of each shard.
    ntotal: number of vectors in all shards.
    d: width of a vector.
    metric_type: FAISS's number for the inner product.
    parameters: parameters that `set_parameters` has set last.
  """

  metric_type = faiss.METRIC_INNER_PRODUCT

  def __init__(
    self, shards: Sequence[faiss.Index], first_rows: Sequence[int], dim: int
  ):
    """Takes the shards, the first row of each, and the vectors' width."""
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
      scored, numbers = shard.search(questions, min(k, shard.ntotal))
      rows.append(np.where(numbers < 0, -1, numbers + first))
      scores.append(scored)
    rows, scores = in_order(np.hstack(rows), np.hstack(scores), k)
    return scores, rows


Index = faiss.Index | ShardedIndex


@runtime_checkable
class Searchable(Protocol):
  """What `search_index` needs of an index: an `Index`, or a search engine.

  Attributes:
    ntotal: number of vectors.
    d: width of a vector.
  """

  ntotal: int
  d: int

  def search(self, questions: np.ndarray, k: int) -> tuple:
    """Scores and rows, both [questions, k], as FAISS returns them."""


def layers(index: Index) -> Iterator[faiss.Index]:
  """As `faiss_build.layers`, over all shards."""
  for part in getattr(index, "shards", [index]):
    yield from faiss_build.layers(part)


def searchable_by(index: Index) -> tuple[str, ...]:
  """The parameters of `DEFAULTS` that this type of index uses."""
  names = []
  kinds = list(layers(index))
  if any(isinstance(layer, faiss.IndexHNSW) for layer in kinds):
    names.append("ef_search")
  if any(isinstance(layer, faiss.IndexIVF) for layer in kinds):
    names.append("nprobe")
  if any(isinstance(layer, faiss.IndexRefine) for layer in kinds):
    names.append("refine_factor")
  return tuple(names)


def set_parameters(
  index: Index, parameters: Mapping[str, float | int]
) -> dict[str, float | int]:
  """Sets the search parameters; returns those that this index uses.

  Args:
    index: the index, changed in place.
    parameters: values for any of `DEFAULTS`; the others get their default.
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
  for layer in layers(index):  # a graph over the lists must find nprobe lists
    if isinstance(layer, faiss.IndexIVF):
      quantizer = faiss.downcast_index(layer.quantizer)
      if isinstance(quantizer, faiss.IndexHNSW):
        quantizer.hnsw.efSearch = max(
          int(values["ef_search"]), 2 * layer.nprobe
        )
  return {name: values[name] for name in searchable_by(index)}


@runtime_checkable
class Takes(Protocol):
  """Vectors that can be read by row: `faiss_build.Vectors`, `IndexVectors`."""

  def take(self, rows: np.ndarray) -> np.ndarray:
    """Float32 vectors of some rows."""
    ...


class IndexVectors:
  """The vectors of an index that keeps all of them (`keeps_all`)."""

  def __init__(self, index: Index):
    """Copies nothing."""
    shards = getattr(index, "shards", None)
    self._shards = [index] if shards is None else shards
    self._first_rows = np.array(getattr(index, "first_rows", [0]))

  def take(
    self, rows: Int[np.ndarray, " rows"]
  ) -> Float[np.ndarray, "rows dim"]:
    """Float32 vectors of some rows, in their order."""
    shards = np.searchsorted(self._first_rows, rows, side="right") - 1
    return np.stack(
      [
        self._shards[shard].reconstruct(int(row - self._first_rows[shard]))
        for shard, row in zip(shards.tolist(), rows.tolist(), strict=True)
      ]
    )


def keeps_all(index: Searchable) -> bool:
  """True if every vector can be read from the index, in this process."""
  parts = getattr(index, "shards", [index])
  if sum(part.ntotal for part in parts) < index.ntotal:  # of other processes
    return False
  return all(
    isinstance(part, faiss.Index)
    and isinstance(_stored_by(faiss.downcast_index(part)), faiss.IndexFlat)
    for part in parts
  )


def _stored_by(index: faiss.Index) -> faiss.Index:
  """The index that holds the vectors of a graph; others: the index itself."""
  if isinstance(index, faiss.IndexHNSW | faiss.IndexNSG):
    return faiss.downcast_index(index.storage)
  return index


def scores_are_exact(index: Index) -> bool:
  """True if scores are inner products of the original vectors."""
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
  """Sets FAISS's number of threads inside the block; 0 = unchanged.

  Yields:
    The number of threads.
  """
  before = faiss.omp_get_max_threads()
  if count:
    faiss.omp_set_num_threads(count)
  try:
    yield faiss.omp_get_max_threads()
  finally:
    faiss.omp_set_num_threads(before)


def search_index(
  loaded: Searchable, questions: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
  """The rows with the largest inner products.

  Equal scores are in the order of their rows, also at the end of the list:
  FAISS does not define their order, so `TIES` more hits are fetched and sorted.
  Only if more than 16 other passages have the score of the last hit, FAISS
  decides which of them are in the list.

  Args:
    loaded: index from `build_index` or `load_index`, or a search engine.
    questions: float32 vectors [questions, dim].
    k: number of hits; columns are min(k, vectors in the index).

  Returns:
    int64 rows and float32 scores, both [questions, columns], best first; row
    -1 with score 0 where an approximate index found fewer hits.

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
  """`InputError` if question vectors have another width than passages."""
  if questions.ndim != 2 or questions.shape[1] != dim:
    raise errors.InputError(
      f"question vectors of shape {list(questions.shape)} for passage vectors"
      f" of width {dim}: they are of another model; run `dpr-jax embed` and"
      " `dpr-jax index` again"
    )


def search_vectors(
  vectors: faiss_build.Vectors, questions: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
  """As `search_index` with a Flat index, without building it.

  Memory is that of the questions, their hits and one block of vectors.

  Args:
    vectors: vectors, read once, in blocks.
    questions: float32 vectors [questions, dim].
    k: number of hits; columns are min(k, vectors).

  Returns:
    As in `search_index`.

  Raises:
    InputError: a vector is not finite, or the questions have another width.
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
  """Scores and sorts the hits of a compressed index by the original vectors.

  Args:
    vectors: vectors that the index was built from.
    questions: float32 vectors.
    rows: rows of the hits; -1 = no hit.
    columns: number of hits to return.
  """
  return in_order(rows, score_rows(vectors, questions, rows), columns)


def score_rows(
  vectors: Takes,
  questions: Float[np.ndarray, "questions dim"],
  rows: Int[np.ndarray, "questions hits"],
) -> Float[np.ndarray, "questions hits"]:
  """Inner products of questions with passages by row; any value for row -1.

  Only reads these rows, of a limited number of hits at a time.
  """
  scores = np.zeros(rows.shape, np.float32)
  step = max(1, _AGAIN // max(rows.shape[1], 1))
  for first in range(0, len(rows), step):
    batch = rows[first : first + step]
    distinct = np.unique(batch[batch >= 0])
    if not len(distinct):
      continue
    originals = vectors.take(distinct)
    for number, some in enumerate(batch, start=first):
      places = np.searchsorted(distinct, np.maximum(some, distinct[0]))
      scores[number] = originals[places] @ questions[number]
  return scores


def in_order(
  rows: np.ndarray, scores: np.ndarray, columns: int
) -> tuple[np.ndarray, np.ndarray]:
  """The first columns, sorted by score, then row; places without hit last."""
  scores = np.where(rows < 0, -np.inf, scores).astype(np.float32)
  # Only lists with ties, or joined from several lists, need sorting.
  mixed = ~(scores[:, 1:] < scores[:, :-1]).all(axis=1)
  if mixed.any():
    order = np.lexsort((rows[mixed], -scores[mixed]), axis=-1)
    rows = rows.copy()
    rows[mixed] = np.take_along_axis(rows[mixed], order, axis=-1)
    scores[mixed] = np.take_along_axis(scores[mixed], order, axis=-1)
  rows, scores = rows[:, :columns], scores[:, :columns]
  return rows, np.where(rows < 0, np.float32(0), scores)
