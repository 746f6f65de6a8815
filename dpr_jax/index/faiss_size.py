"""Predicts the size and build time of an index, and suggests alternatives.

Input: a number of vectors, their width and a limit of memory.  Output, for a
factory string: the size of the index, the peak memory of building it, and an
estimate of the time.  Sizes are computed from an empty index of that type, so
that any factory string of FAISS works.
"""

import dataclasses
import math
import time

import faiss
import ml_collections
import numpy as np
import rich.table

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors, memory
from dpr_jax.evaluation import tables
from dpr_jax.index import faiss_build
from dpr_jax.index.faiss_build import Settings, Vectors

GB = 1e9
# Bytes of blocks, heaps, the interpreter and libraries, for any index.
BUFFER = 300e6
_LIST_ROW = 4  # bytes per row for its inverted list, while building
_KMEANS_STEPS = 10
_POINTS_PER_LIST = 256  # maximum points per list in FAISS's k-means
# Seconds per distance on one thread: fixed, and per dimension; and the share of
# graph links that HNSW visits.  Fitted to the time of one CPU core for HNSW32
# over 20,000 vectors of 64 and of 768.  Larger graphs need more visits, with
# more cache misses: the power fits 100,000 to 1,000,000 vectors, and gives 11.5
# hours for the paper's 21 million on 40 threads; the paper reports 8.5 hours
# "on a single server".
_DISTANCE = (57e-9, 0.20e-9)
_GRAPH_SHARE = 0.16
_GRAPH_GROWTH = (20_000, 0.35)


@dataclasses.dataclass(frozen=True)
class Plan:
  """Predicted size and build time of an index.

  Attributes:
    factory: factory string.
    count: number of vectors.
    vector_bytes: bytes per vector.
    index_bytes: bytes of the index, on disk and in memory.
    build_bytes: peak memory of building, in bytes.
    seconds: estimated time of building, with all CPU cores of this machine.
  """

  factory: str
  count: int
  vector_bytes: float
  index_bytes: float
  build_bytes: float
  seconds: float


def plan(
  settings: Settings, count: int, dim: int, flops: float | None = None
) -> Plan:
  """Predicts an index.

  Args:
    settings: settings of the index.
    count: number of vectors.
    dim: width of the vectors.
    flops: FLOP/s of matrix products on all CPU cores; None = measured now, in a
      few hundredths of a second.

  Raises:
    InputError: FAISS does not accept the factory string.
  """
  try:
    empty = faiss_build.make_index(dim, settings)
  except RuntimeError as error:
    raise errors.InputError(
      f"config.index.factory={settings.factory!r} for width {dim}:"
      f" {faiss_build.reason(error)}"
    ) from error
  per_vector, fixed = _bytes(empty)
  index_bytes = float(per_vector * count + fixed)
  is_ivf = any(
    isinstance(layer, faiss.IndexIVF) for layer in faiss_build.layers(empty)
  )
  learning = 0.0
  if not empty.is_trained:  # the sample, and FAISS's copy of it
    learning = 2 * 4 * dim * min(count, settings.train_sample)
  filling = index_bytes + (_LIST_ROW * count if is_ivf else 0)
  return Plan(
    factory=settings.factory,
    count=count,
    vector_bytes=index_bytes / max(count, 1),
    index_bytes=index_bytes,
    build_bytes=max(learning, filling) + BUFFER,
    seconds=_seconds(empty, settings, count, flops or _matrix_speed()),
  )


def _bytes(index: faiss.Index) -> tuple[float | int, float | int]:
  """(bytes per vector, bytes that do not depend on their number)."""
  index = faiss.downcast_index(index)
  if isinstance(index, faiss.IndexPreTransform):
    each, fixed = _bytes(index.index)
    chain = [index.chain.at(i) for i in range(index.chain.size())]
    return each, fixed + sum(4 * part.d_in * part.d_out for part in chain)
  if isinstance(index, faiss.IndexRefine):
    one, other = _bytes(index.base_index), _bytes(index.refine_index)
    return one[0] + other[0], one[1] + other[1]
  if isinstance(index, faiss.IndexHNSW):
    each, fixed = _bytes(index.storage)
    links = faiss_build.links_per_vector(index.hnsw)
    return each + 4 * links + 8 + 4, fixed  # an offset and a level as well
  if isinstance(index, faiss.IndexNSG):
    each, fixed = _bytes(index.storage)
    return each + 4 * index.nsg.R, fixed
  if isinstance(index, faiss.IndexIVF):
    each, fixed = _bytes(index.quantizer)
    return index.code_size + 8, index.nlist * each + fixed + _codebook(index)
  return getattr(index, "code_size", 0), _codebook(index)


def _codebook(index: faiss.Index) -> int:
  """Bytes of a trained quantiser."""
  if hasattr(index, "pq"):
    return 4 * index.pq.M * index.pq.ksub * index.pq.dsub
  return 8 * index.d


def _seconds(
  index: faiss.Index, settings: Settings, count: int, flops: float
) -> float:
  """Estimated build time: matrix products by `flops`, graphs by distances."""
  seconds, cores = 0.0, faiss.omp_get_max_threads()
  kept = faiss.downcast_index(index)
  for layer in faiss_build.layers(kept):
    rows = count
    if isinstance(layer, faiss.IndexIVF):
      points = min(count, settings.train_sample, _POINTS_PER_LIST * layer.nlist)
      products = _KMEANS_STEPS * points + count
      graph = isinstance(faiss.downcast_index(layer.quantizer), faiss.IndexHNSW)
      lists = layer.nlist if not graph else 64 * math.log2(layer.nlist)
      seconds += 2 * products * lists * layer.d / flops
    if isinstance(layer, faiss.IndexHNSW) and layer.ntotal == 0:
      links = layer.hnsw.nb_neighbors(0)
      looked_at = settings.ef_construction * links * _GRAPH_SHARE
      looked_at = min(looked_at, count)
      each = _DISTANCE[0] + _DISTANCE[1] * layer.d
      is_quantizer = layer is not kept and _is_quantizer(kept, layer)
      grown = max(1.0, rows / _GRAPH_GROWTH[0]) ** _GRAPH_GROWTH[1]
      if not is_quantizer:
        seconds += rows * looked_at * grown * each / cores
    if hasattr(layer, "pq"):
      seconds += 2 * rows * layer.pq.ksub * layer.d / flops
  return float(seconds + 4 * index.d * count / GB)  # reading and writing


def _is_quantizer(index: faiss.Index, part: faiss.Index) -> bool:
  return any(
    isinstance(layer, faiss.IndexIVF)
    and int(layer.quantizer.this) == int(part.this)
    for layer in faiss_build.layers(index)
  )


def _matrix_speed(size: int = 1024) -> float:
  """FLOP/s of a product of two matrices, the best of two runs."""
  matrix = np.ones((size, size), np.float32)
  best = math.inf
  for _ in range(2):
    started = time.perf_counter()
    np.matmul(matrix, matrix)
    best = min(best, time.perf_counter() - started)
  return 2 * size**3 / best


def candidates(count: int, dim: int) -> list[str]:
  """Factory strings to compare, from the best recall to the smallest size."""
  lists = usual_lists(count)
  parts = most_parts(dim, 96)
  return [
    "Flat",
    "HNSW512",
    "HNSW32",
    "HNSW32_SQ8",
    f"IVF{lists},Flat",
    "SQ8",
    f"IVF{lists},SQ8",
    f"{fast_codes(count, dim)},Refine(SQ8)",
    f"IVF{lists},RaBitQ4",
    f"OPQ{parts},IVF{lists},PQ{parts}",
  ]


def usual_lists(count: int, times: float = 4.0) -> int:
  """Number of inverted lists: about `times` the square root of `count`."""
  return 2 ** max(1, round(math.log2(max(times * math.sqrt(count), 2))))


def most_parts(dim: int, most: int) -> int:
  """The greatest divisor of `dim` that is at most `most`, for PQ."""
  return max(m for m in range(1, max(most, 1) + 1) if dim % m == 0)


def fast_codes(count: int, dim: int) -> str:
  """Factory string with one bit per dimension, to be used with Refine.

  It has fewer lists, because scanning codes is faster than comparing lists.
  """
  return f"IVF{usual_lists(count, 1.0)},PQ{most_parts(dim, dim // 4)}x4fs"


def advice(plans: list[Plan], limit: float) -> str:
  """A sentence that names the best plan within a limit of bytes.

  A graph is the fastest at high recall, so HNSW32 is preferred, then smaller
  indexes; Flat, which compares all vectors, is for few vectors.
  """
  order = ["HNSW32", "HNSW32_SQ8", "IVF", "OPQ"]
  if plans and plans[0].count <= 20_000:
    order = ["Flat", *order]
  for start in order:
    for each in plans:
      exact = each.factory == start
      if (exact or start in ("IVF", "OPQ")) and each.factory.startswith(start):
        if each.build_bytes <= limit:
          return f"use {each.factory}"
  smallest = min(plans, key=lambda each: each.build_bytes)
  shards = math.ceil(smallest.index_bytes / max(limit - BUFFER, 1))
  return (
    f"none of these fits: the smallest, {smallest.factory}, needs"
    f" {smallest.build_bytes / GB:.1f} GB; build it in shards"
    f" (config.index.shards={max(shards, 2)}) on several machines"
  )


def memory_limit(config: ml_collections.ConfigDict) -> float:
  """Bytes that a build may use: the config's limit, or the free memory."""
  limit = config_lib.at_least("index.memory_gb", config.index.memory_gb, 0)
  return float(limit * GB or memory.available_memory() or math.inf)


def check_fits(
  config: ml_collections.ConfigDict,
  settings: Settings,
  vectors: Vectors,
  shards: int,
) -> None:
  """`InputError` if the build would need more memory than the limit."""
  count, dim = -(-len(vectors) // shards), vectors.dim
  limit = memory_limit(config)
  if config.index.allow_too_large or not count:
    return
  needed = plan(settings, count, dim, flops=math.inf)
  if needed.build_bytes <= limit:
    return
  plans = _plans(settings, len(vectors), dim, flops=math.inf)
  raise errors.InputError(
    f"config.index.factory={settings.factory!r}: building it over {count}"
    f" vectors of width {dim} needs {needed.build_bytes / GB:.1f} GB, there are"
    f" {limit / GB:.1f} GB: {advice(plans, limit)}; --plan shows the others,"
    " --config.index.allow_too_large=True builds it anyway"
  )


def _plans(
  settings: Settings, count: int, dim: int, flops: float
) -> list[Plan]:
  return [
    plan(dataclasses.replace(settings, factory=factory), count, dim, flops)
    for factory in candidates(count, dim)
  ]


def print_plan(
  config: ml_collections.ConfigDict, count: int, dim: int
) -> list[Plan]:
  """Prints and returns the plans of the config's index and of alternatives."""
  for flag, value in (("vectors", count), ("dim", dim)):
    if value < 1:
      raise errors.InputError(f"--{flag}={value}: must be >= 1")
  settings, flops = Settings.of(config), _matrix_speed()
  limit = memory_limit(config)
  others = _plans(settings, count, dim, flops)
  plans = [plan(settings, count, dim, flops), *others]
  table = rich.table.Table(
    title=f"{count} vectors of width {dim}, {limit / GB:.1f} GB of memory",
    title_justify="left",
  )
  table.add_column("factory", no_wrap=True)
  for name in (
    "bytes/vector",
    "index and disk, GB",
    "memory to build, GB",
    "hours, about",
    "fits",
  ):
    table.add_column(name, justify="right", no_wrap=True)
  for number, each in enumerate(plans):
    if number and each.factory == settings.factory:
      continue
    table.add_row(
      each.factory + (" (config)" if not number else ""),
      f"{each.vector_bytes:.0f}",
      f"{each.index_bytes / GB:.2f}",
      f"{each.build_bytes / GB:.2f}",
      f"{each.seconds / 3600:.2g}",
      "yes" if each.build_bytes <= limit else "no",
    )
  tables.print_table(table)
  print(f"Advice: {advice(others, limit)}.")
  return plans
