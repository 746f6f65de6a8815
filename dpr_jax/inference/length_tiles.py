"""Rows of many lengths as calls of few shapes, several calls under way at once.

Rows are sorted by length and cut into tiles: so many rows of one width that a
tile is about so many tokens; what does not fill a tile goes along with the next
width.  What a tile holds depends on the rows alone, not on the number of cores,
so that neither does what is computed from it.  A call takes a tile on each
core; several are under way at once, so that no core waits for the host.
"""

import collections
import concurrent.futures
import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Int

from dpr_jax.core import devices as devices_lib
from dpr_jax.core import memory

# Widths are multiples of it.
STEP = 8
# A tile that a CPU core's cache holds; one that fills a TPU's core.
CPU_TOKENS, TPU_TOKENS = 640, 32_768
# Products of matrices on one thread each: cores get calls of their own, which
# costs no waiting, and no sum depends on how many threads there are.
_CPU_OPTIONS = {
  "xla_cpu_multi_thread_eigen": False,
  "xla_cpu_prefer_vector_width": 512,
}
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Tile:
  """Some rows, texts or reader inputs, that one core computes together.

  Attributes:
    rows: which ones; at most `size` of them.
    size: rows of the array; what is missing is padded.
    width: its tokens per row.
    full: no token is padding, and the program need not ask.
  """

  rows: Int[np.ndarray, " rows"]
  size: int
  width: int
  full: bool = False


def choose_widths(
  histogram: Int[np.ndarray, " lengths"], shapes: int, step: int = STEP
) -> tuple[int, ...]:
  """At most `shapes` widths, multiples of `step`, that pad the least.

  The greatest is the least that holds every text, at most the greatest length.

  Args:
    histogram: number of texts of each length from 0.
    shapes: how many, at least 1.
    step: of which they are multiples.
  """
  limit = len(histogram) - 1
  used = np.flatnonzero(histogram)
  longest = int(used[-1]) if len(used) else 1
  ends = [*range(step, longest, step), min(-(-longest // step) * step, limit)]
  counts = np.add.reduceat(
    histogram[: ends[-1] + 1], [0, *(end + 1 for end in ends[:-1])]
  )
  before = np.concatenate([[0], np.cumsum(counts)])
  # cost[e]: padded tokens of all texts up to ends[e - 1], in so many widths.
  cost = np.array([0, *(ends * before[1:])], float)
  cuts = []
  for _ in range(min(shapes, len(ends)) - 1):
    # Texts between the e-th and the later end f go to width ends[f - 1].
    steps = np.array([0, *ends])[:, None] * (before[:, None] - before[None])
    table = np.where(np.tri(len(cost), k=-1) > 0, cost[None] + steps, np.inf)
    table[0, 0] = 0
    cuts.append(table.argmin(axis=1))
    cost = table.min(axis=1)
  chosen, end = [], len(ends)
  while end:
    chosen.append(ends[end - 1])
    end = int(cuts.pop()[end]) if cuts else 0
  return tuple(sorted(chosen))


def plan(
  lengths: Int[np.ndarray, " rows"], widths: Sequence[int], tokens: int
) -> list[Tile]:
  """Tiles that hold every row once, the widest first.

  Args:
    lengths: tokens of each row.
    widths: ascending; the last holds every row.
    tokens: a tile has at most so many, or one row.
  """
  order = np.argsort(lengths, kind="stable")
  ordered = lengths[order]
  tiles, start = [], 0
  for width in widths:
    size = max(1, tokens // width)
    end = int(np.searchsorted(ordered, width, side="right"))
    if width == widths[-1]:
      exact = max(start, int(np.searchsorted(ordered, width, side="left")))
      whole = end - (end - exact) // size * size
      stops = [*range(start, whole, size), *range(whole, end, size), end]
    else:
      stops = list(range(start, end + 1, size))
    for one, other in zip(stops[:-1], stops[1:], strict=True):
      last = width == widths[-1]
      full = last and other - one == size and bool(ordered[one] == width)
      tiles.append(Tile(order[one:other], size, width, full))
    start = stops[-1] if stops else start
  return tiles[::-1]


def calls(tiles: Sequence[Tile], cores: int) -> Iterator[list[Tile]]:
  """Tiles of one shape, a core each; the last of a shape may be fewer."""
  waiting: dict[tuple[int, bool], list[Tile]] = collections.defaultdict(list)
  for tile in tiles:
    some = waiting[tile.width, tile.full]
    some.append(tile)
    if len(some) == cores:
      yield some
      waiting[tile.width, tile.full] = []
  yield from (some for some in waiting.values() if some)


def usual_tokens(devices: Sequence[jax.Device]) -> int:
  """Tokens of a tile where the config says none."""
  return CPU_TOKENS if devices[0].platform == "cpu" else TPU_TOKENS


def stepped_widths(
  lengths: Int[np.ndarray, " rows"], step: int, limit: int
) -> list[int]:
  """The multiples of `step` that rows of these lengths need, up to `limit`."""
  return np.unique(np.minimum(-(-lengths // step) * step, limit)).tolist()


class Programs:
  """Functions for one core, compiled for the shapes that come.

  Several threads may ask.
  """

  def __init__(self):
    self._compiled: dict[Any, Any] = {}
    self._lock = threading.Lock()

  def get(
    self,
    name: Any,
    function: Callable,
    params: Any,
    batch: Any,
    devices: Sequence[jax.Device],
  ) -> Callable:
    """`function(params, batch)` over `devices`, for arrays like these.

    Args:
      name: tells functions apart.
      function: for one core.
      params: replicated.
      batch: its arrays have a leading axis of devices.
      devices: of this process.
    """
    key = (name, len(devices), *map(np.shape, jax.tree.leaves(batch)))
    with self._lock:
      if key not in self._compiled:
        options = _CPU_OPTIONS if devices[0].platform == "cpu" else {}
        self._compiled[key] = devices_lib.compile_over_cores(
          function, (params, batch), devices, options
        )
      return self._compiled[key]

  def __len__(self) -> int:
    return len(self._compiled)


def run(
  tiles: Sequence[Tile],
  cores: int,
  call: Callable[[list[Tile]], Result],
) -> Iterator[Result]:
  """Yields `call(a tile for each core)` in order, several under way at once."""
  # A device that is no CPU takes one call after the other.
  cpus = memory.usable_cpus() if jax.default_backend() == "cpu" else 1
  workers = max(2, cpus // cores)
  pending: collections.deque = collections.deque()
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    for some in calls(tiles, cores):
      pending.append(pool.submit(call, some))
      if len(pending) > workers:
        yield pending.popleft().result()
    while pending:
      yield pending.popleft().result()
