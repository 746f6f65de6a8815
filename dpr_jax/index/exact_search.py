"""Exact search on the devices: compares every passage with every question.

Input: the vectors of a corpus and of questions.  Output: the rows with the
largest inner products, equal scores in the order of their rows, as a sort of
all scores would give.  The rows are split over the devices; each device
computes the scores of one block of rows after another and keeps its best hits;
then the hits of all devices are gathered and merged.  A corpus that is too
large for the devices is streamed through them in parts, once per call.

There is no index and no approximation: 21 million vectors of 768 in bfloat16
take 30 GiB over all devices.  With several processes each one searches its
share of the rows (`all_processes`).
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dpr_jax.core import config as config_lib
from dpr_jax.core import devices as devices_lib
from dpr_jax.core import forks, memory
from dpr_jax.index import faiss_build, faiss_search

STORAGES = ("float32", "bfloat16")
QUESTIONS = 256  # questions compared at once; the last batch is padded
BLOCK = 4096  # rows that a device compares at once
CANDIDATES = 4  # candidates per hit, where float32 scores are computed later
_NONE = np.iinfo(np.int32).max  # row number of padding
_ALIGNMENT = 64  # bytes: JAX uses an aligned array without a copy on a CPU


@dataclasses.dataclass(frozen=True)
class Settings:
  """Precision and memory of the search.

  Attributes:
    storage: "float32", or "bfloat16" with half the memory, where float32 scores
      are computed for the best `CANDIDATES` x k.
    approximate: use `lax.approx_max_k` instead of a sort; only fast on a TPU.
    recall_target: expected recall of `approximate`, 0 to 1.
    core_bytes: bytes of each device's memory to use for vectors.
    block: rows that a device compares at once.
  """

  storage: str = "float32"
  approximate: bool = False
  recall_target: float = 0.95
  core_bytes: int = 4_000_000_000
  block: int = BLOCK

  @classmethod
  def of(cls, config: ml_collections.ConfigDict) -> "Settings":
    """From `config.exact`; `InputError` for a value that makes no sense."""
    exact = config.exact
    return cls(
      config_lib.one_of("exact.storage", exact.storage, STORAGES),
      bool(exact.approximate),
      float(
        config_lib.at_least("exact.recall_target", exact.recall_target, 0.0)
      ),
      int(config_lib.at_least("exact.core_gb", exact.core_gb, 0.0) * 1e9),
    )


class ExactSearch:
  """`ExactSearch(vectors).search(question_vectors, k)`.

  Vectors that fit on the devices stay there between calls.

  Attributes:
    rows: rows that this process searches.
    scores_again: float32 scores are computed for the best candidates.
  """

  def __init__(
    self,
    vectors: faiss_build.Vectors,
    settings: Settings = Settings(),
    *,
    process: int = 0,
    processes: int = 1,
  ):
    """Splits the rows evenly over the devices of all processes.

    Blocks have the same rows for any division into processes, so that scores
    are bit-identical on 1 process with 4 devices and on 2 with 2 each.

    Args:
      vectors: vectors of the corpus; only this process's rows are read.
      settings: precision and memory.
      process: index of this process.
      processes: number of processes, all with the same number of devices.
    """
    self._home = forks.Home()
    self._vectors = vectors
    self._settings = settings
    self._cores = devices_lib.cores()
    # Rows per device, rounded up to whole blocks: `share` rows per process.
    even = max(-(-len(vectors) // (self._cores * processes)), 1)
    self._block = min(settings.block, even)
    blocks = -(-even // self._block)
    share = self._cores * self._block * blocks
    bounds = (min(share * n, len(vectors)) for n in (process, process + 1))
    self.rows = range(*bounds)
    width = 4 if settings.storage == "float32" else 2
    fitting = _core_bytes(settings) // (width * max(vectors.dim, 1))
    self._per_core = self._block * max(1, min(fitting // self._block, blocks))
    self.scores_again = settings.storage != "float32"
    self._resident: list | None = None

  @property
  def streams(self) -> bool:
    """True if every call copies the vectors to the devices again."""
    return len(self.rows) > self._cores * self._per_core

  def search(
    self, questions: Float[np.ndarray, "questions dim"], k: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """The rows with the largest inner products.

    Args:
      questions: float32 vectors.
      k: number of hits; columns are min(k, vectors searched).

    Returns:
      int64 rows in the corpus and float32 scores, both [questions, columns],
      best first.

    Raises:
      InputError: a vector is not finite, or the questions have another width.
    """
    k = min(k, len(self.rows))
    rows, scores = self.search_only(questions, self.candidates(k))
    if self.scores_again:
      return self.score_again(questions, rows, k)
    return rows, scores

  def candidates(self, k: int) -> int:
    """Number of candidates to search for k hits."""
    return CANDIDATES * k if self.scores_again else k

  def search_only(
    self, questions: Float[np.ndarray, "questions dim"], k: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """As `search`, with scores in the stored precision."""
    self._home.check(self)
    faiss_search.check_width(questions, self._vectors.dim)
    k = min(k, len(self.rows))
    if not len(questions) or not k:
      shape = (len(questions), k)
      return np.zeros(shape, np.int64), np.zeros(shape, np.float32)
    return self._search(np.asarray(questions, np.float32), k)

  def score_again(
    self,
    questions: Float[np.ndarray, "questions dim"],
    rows: Int[np.ndarray, "questions hits"],
    k: int,
  ) -> tuple[np.ndarray, np.ndarray]:
    """The best k by float32 scores of rows of this process; -1 = no row."""
    return faiss_search.score_again(self._vectors, questions, rows, k)

  def holds(
    self, rows: Int[np.ndarray, "questions hits"]
  ) -> Bool[np.ndarray, "questions hits"]:
    """True for rows that this process searches."""
    return (self.rows.start <= rows) & (rows < self.rows.stop)

  def _search(
    self, questions: np.ndarray, k: int
  ) -> tuple[np.ndarray, np.ndarray]:
    width = min(k, self._cores * self._per_core)
    function = _mapped(
      width,
      self._block,
      self._settings.approximate,
      self._settings.recall_target,
    )
    count = len(questions)
    filled = np.zeros((-(-count // QUESTIONS) * QUESTIONS, questions.shape[1]))
    filled = filled.astype(np.float32)
    filled[:count] = questions
    best_rows = np.zeros((count, 0), np.int64)
    best_scores = np.zeros((count, 0), np.float32)
    for part in self._parts():
      rows = np.empty((len(filled), width), np.int64)
      scores = np.empty((len(filled), width), np.float32)
      pending: list[tuple[int, tuple]] = []
      for first in range(0, len(filled), QUESTIONS):
        some = filled[first : first + QUESTIONS]
        pending.append((first, function(some, part)))
        if len(pending) > 1:  # fetch one batch while the next one is computed
          _fetch(*pending.pop(0), rows, scores)
      for first, hits in pending:
        _fetch(first, hits, rows, scores)
      rows, scores = rows[:count], scores[:count]
      rows = np.where(rows == _NONE, -1, rows)
      best_rows, best_scores = faiss_search.in_order(
        np.hstack([best_rows, rows]), np.hstack([best_scores, scores]), k
      )
    return best_rows, best_scores

  def _parts(self) -> Iterator[dict[str, Array]]:
    """Yields the corpus on the devices, part after part."""
    if self._resident is not None:
      yield from self._resident
      return
    parts = self._placed_parts()
    if self.streams:
      yield from parts
    else:
      self._resident = list(parts)
      yield from self._resident

  def _placed_parts(self) -> Iterator[dict[str, Array]]:
    """Yields consecutive rows, split over the devices; pads the last part.

    Host memory has the rows of one device at a time.
    """
    devices = jax.local_devices()
    placed: list[dict[str, Array]] = []
    for rows in self._host_rows():
      device = devices[len(placed)]
      placed.append(jax.block_until_ready(jax.device_put(rows, device)))
      del rows
      if len(placed) == len(devices):
        yield devices_lib.assemble(placed, devices)
        placed = []

  def _host_rows(self) -> Iterator[dict[str, np.ndarray]]:
    """Yields the rows of one device after another; pads the last part."""
    size, count = self._per_core, len(self.rows)
    shape = (1, size, self._vectors.dim)
    dtype = jnp.dtype(self._settings.storage)
    part, filled, first = _aligned_zeros(shape, dtype), 0, self.rows.start
    ends = -(-count // (size * self._cores)) * size * self._cores
    for _, block in faiss_build.finite_blocks(self._vectors, self.rows):
      while len(block):
        some = block[: size - filled]
        part[0, filled : filled + len(some)] = some
        filled, block = filled + len(some), block[len(some) :]
        if filled == size:
          yield {
            "vectors": part,
            "rows": _numbers(first, size, self.rows.stop),
          }
          part = _aligned_zeros(shape, dtype)
          filled, first = 0, first + size
    for start in range(first, self.rows.start + ends, size):
      yield {"vectors": part, "rows": _numbers(start, size, self.rows.stop)}
      part = _aligned_zeros(shape, dtype)


def _numbers(first: int, size: int, end: int) -> Int[np.ndarray, "1 rows"]:
  """Row numbers from `first`; `_NONE` from `end` on."""
  rows = np.arange(first, first + size)
  return np.where(rows < end, rows, _NONE).astype(np.int32)[None]


def _aligned_zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
  """Zeros that a CPU device can use without a copy."""
  size = math.prod(shape) * dtype.itemsize
  raw = np.zeros(size + _ALIGNMENT, np.uint8)
  start = -raw.ctypes.data % _ALIGNMENT
  return raw[start : start + size].view(dtype).reshape(shape)


def _core_bytes(settings: Settings) -> int:
  """Bytes of each device's memory to use for vectors.

  CPU devices share the host's memory, in which, when streaming, the next part
  is loaded while one is searched.
  """
  available = memory.available_memory()
  if jax.default_backend() != "cpu" or available is None:
    return settings.core_bytes
  return min(settings.core_bytes, available // (3 * devices_lib.cores()))


@functools.lru_cache(maxsize=32)
def _mapped(k: int, block: int, approximate: bool, recall_target: float):
  """`best_of_core` over the devices: compiled once for all corpora."""
  return devices_lib.map_over_cores(
    functools.partial(
      best_of_core,
      k=k,
      block=block,
      approximate=approximate,
      recall_target=recall_target,
    )
  )


def best_of_core(
  questions: Float[Array, "questions dim"],
  part: dict[str, Array],
  *,
  k: int,
  block: int,
  approximate: bool = False,
  recall_target: float = 0.95,
) -> tuple[Int[Array, "questions k"], Float[Array, "questions k"]]:
  """The k best rows and scores of all devices, computed on each device.

  Ties are in the order of rows: blocks are in that order, and `top_k` keeps the
  first of equal scores.

  Args:
    questions: float32 vectors, the same on every device.
    part: "vectors" [rows, dim] and "rows" [rows], the row numbers, `_NONE` for
      padding; rows is a multiple of `block`.
    k: number of hits, at most the rows of all devices.
    block: rows compared at once.
    approximate: see `Settings`.
    recall_target: see `Settings`.
  """
  vectors, rows = part["vectors"], part["rows"]
  blocks = rows.shape[0] // block
  asked = questions.astype(vectors.dtype)
  precision = "highest" if vectors.dtype == jnp.float32 else "default"
  k_core = min(k, rows.shape[0])
  k_block = min(k_core, block)

  def step(best, this):
    best_rows, best_scores = best
    scores = jax.lax.dot_general(
      asked,
      this["vectors"],
      (((1,), (1,)), ((), ())),
      precision=precision,
      preferred_element_type=jnp.float32,
    )
    # `top_k` sorts -0 after 0: make them equal.
    scores = jnp.where(scores == 0, 0.0, scores)
    scores = jnp.where(this["rows"] == _NONE, -jnp.inf, scores)
    if approximate:
      scores, places = jax.lax.approx_max_k(
        scores, k_block, recall_target=recall_target
      )
    else:
      scores, places = jax.lax.top_k(scores, k_block)
    # [questions, k_core + k_block], earlier rows first, so that ties keep them.
    both_rows = jnp.concatenate([best_rows, this["rows"][places]], axis=1)
    both_scores = jnp.concatenate([best_scores, scores], axis=1)
    scores, places = jax.lax.top_k(both_scores, k_core)
    return (jnp.take_along_axis(both_rows, places, axis=1), scores), None

  start = (
    jnp.full((questions.shape[0], k_core), _NONE, jnp.int32),
    jnp.full((questions.shape[0], k_core), -jnp.inf, jnp.float32),
  )
  split = {
    "vectors": vectors.reshape(blocks, block, -1),
    "rows": rows.reshape(blocks, block),
  }
  best, _ = jax.lax.scan(step, start, split)
  all_rows, all_scores = (
    # [devices, questions, k] to [questions, devices * k]; the order of the
    # devices is that of the rows.
    jnp.moveaxis(each, 0, 1).reshape(each.shape[1], -1)
    for each in jax.lax.all_gather(best, devices_lib.AXIS)
  )
  scores, places = jax.lax.top_k(all_scores, k)
  return jnp.take_along_axis(all_rows, places, axis=1), scores


def _fetch(
  first: int, found: tuple[Array, Array], rows: np.ndarray, scores: np.ndarray
) -> None:
  """Copies the results of a batch from one device: all have the same."""
  for each, place in zip(found, (rows, scores), strict=True):
    place[first : first + QUESTIONS] = each.addressable_shards[0].data[0]
