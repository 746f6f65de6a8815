"""Batches rows of many lengths into tiles of few shapes, and runs them.

Rows are sorted by length and cut into tiles: arrays of one width (padded
length) with about a fixed number of tokens; rows that do not fill a tile are
put into the next width.  The rows of a tile depend only on the lengths, not on
the number of devices, and so do the results.  A call computes one tile on each
device; several calls run at once, so that no device waits for the host.
"""

import collections
import concurrent.futures
import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Bool, Int

from dpr_jax.core import devices as devices_lib
from dpr_jax.core import memory

# Widths are multiples of this.
STEP = 8
# Tokens of a tile that fits into the cache of a CPU core; that fills a TPU, or
# a GPU.
CPU_TOKENS, TPU_TOKENS = 640, 32_768
# One thread per matrix product: CPU cores compute separate calls instead, which
# needs no synchronisation, and no sum depends on the number of threads.
_CPU_OPTIONS = {
  "xla_cpu_multi_thread_eigen": False,
  "xla_cpu_prefer_vector_width": 512,
}
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Tile:
  """Rows (texts or reader inputs) that one device computes together.

  Attributes:
    rows: indexes of the rows; at most `size`.
    size: rows of the array; missing ones are padded.
    width: tokens per row.
    full: there is no padding, so that the program needs no mask.
  """

  rows: Int[np.ndarray, " rows"]
  size: int
  width: int
  full: bool = False


def choose_widths(
  histogram: Int[np.ndarray, " lengths"], shapes: int, step: int = STEP
) -> tuple[int, ...]:
  """Chooses at most `shapes` widths with the least padding.

  The greatest width is the smallest that fits every text.

  Args:
    histogram: number of texts of each length from 0.
    shapes: maximum number of widths, at least 1.
    step: widths are multiples of it (the last may be the greatest length).

  Returns:
    The widths, ascending.
  """
  limit = len(histogram) - 1
  used = np.flatnonzero(histogram)
  longest = int(used[-1]) if len(used) else 1
  ends = [*range(step, longest, step), min(-(-longest // step) * step, limit)]
  counts = np.add.reduceat(
    histogram[: ends[-1] + 1], [0, *(end + 1 for end in ends[:-1])]
  )
  before = np.concatenate([[0], np.cumsum(counts)])
  # Dynamic program over the number of widths.  before[e]: texts that fit into
  # ends[e - 1].  cost[e]: least padded tokens of these texts with the widths
  # allowed so far, of which ends[e - 1] is the greatest.
  cost = np.array([0, *(ends * before[1:])], float)
  cuts = []
  for _ in range(min(shapes, len(ends)) - 1):
    # One more width: steps[f, e] are the padded tokens of the texts longer than
    # ends[e - 1] in width ends[f - 1], for e < f; table[f, e] adds the least
    # cost of all shorter texts.
    steps = np.array([0, *ends])[:, None] * (before[:, None] - before[None])
    table = np.where(np.tri(len(cost), k=-1) > 0, cost[None] + steps, np.inf)
    table[0, 0] = 0
    cuts.append(table.argmin(axis=1))
    cost = table.min(axis=1)
  # Follow the cuts back from the greatest width; without a cut left, all
  # shorter texts share one width.
  chosen, end = [], len(ends)
  while end:
    chosen.append(ends[end - 1])
    end = int(cuts.pop()[end]) if cuts else 0
  return tuple(sorted(chosen))


def plan(
  lengths: Int[np.ndarray, " rows"], widths: Sequence[int], tokens: int
) -> list[Tile]:
  """Tiles that contain every row once, the widest first.

  Args:
    lengths: tokens of each row.
    widths: widths of tiles, ascending; the last must fit every row.
    tokens: maximum tokens of a tile; longer rows get a tile each.
  """
  order = np.argsort(lengths, kind="stable")
  ordered = lengths[order]
  tiles, start = [], 0
  for width in widths:
    size = max(1, tokens // width)
    end = int(np.searchsorted(ordered, width, side="right"))
    # All but the last width make whole tiles only, and leave the remaining rows
    # to the next width.  In the last width, rows of exactly that length need no
    # mask: their tiles are cut from the end, so that as many as possible are
    # full.
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


def only(
  tiles: Sequence[Tile], wanted: Bool[np.ndarray, " rows"]
) -> list[Tile]:
  """Tiles of the same shapes that contain the wanted rows alone, packed anew.

  A row stays in a tile of the shape that it had, and so keeps its vector.
  """
  groups: dict[tuple[int, int, bool], list[np.ndarray]] = {}
  for tile in tiles:
    rows = groups.setdefault((tile.size, tile.width, tile.full), [])
    rows.append(tile.rows[wanted[tile.rows]])
  packed = []
  for (size, width, full), pieces in groups.items():
    rows = np.concatenate(pieces)
    packed += [
      Tile(rows[start : start + size], size, width, full)
      for start in range(0, len(rows), size)
    ]
  return packed


def calls(tiles: Sequence[Tile], cores: int) -> Iterator[list[Tile]]:
  """Yields one tile per device, all of one shape; the last may be fewer."""
  waiting: dict[tuple[int, bool], list[Tile]] = collections.defaultdict(list)
  for tile in tiles:
    some = waiting[tile.width, tile.full]
    some.append(tile)
    if len(some) == cores:
      yield some
      waiting[tile.width, tile.full] = []
  yield from (some for some in waiting.values() if some)


def usual_tokens(devices: Sequence[jax.Device]) -> int:
  """Default tokens of a tile on these devices."""
  return CPU_TOKENS if devices[0].platform == "cpu" else TPU_TOKENS


def stepped_widths(
  lengths: Int[np.ndarray, " rows"], step: int, limit: int
) -> list[int]:
  """The multiples of `step` that rows of these lengths need, up to `limit`."""
  return np.unique(np.minimum(-(-lengths // step) * step, limit)).tolist()


class Programs:
  """Compiles functions for the devices, once per shape.

  May be used from several threads.
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
    """Compiles `function(params, batch)` over `devices` for these shapes.

    Args:
      name: name of the function, part of the cache's key.
      function: function for one device.
      params: replicated parameters.
      batch: tree of arrays with a leading axis of devices.
      devices: devices of this process.
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
  workers: int = 0,
) -> Iterator[Result]:
  """Yields `call(a tile per device)` in order; several calls run at once.

  Args:
    tiles: the tiles, see `plan`.
    cores: devices that a call computes on.
    call: computes at most one tile per device.
    workers: number of calls at once; 0 = as many as keep JAX's devices busy.
  """
  if not workers:
    # Devices other than CPUs run one call after the other.
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
