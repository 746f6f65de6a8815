"""Deals texts to rows of fixed width, and chooses the shapes of such rows.

A row holds a fixed number of texts one after the other; unused places are at
its end only.  The texts of a row are sorted by length, the longest in slot 0.
Attention is computed in tiles: a tile is a group of consecutive slots, whose
texts are padded to one length (see `models.packed_texts`).  `deal` makes the
rows equally full, `count` and `Shapes.of` give the smallest shapes that hold
every batch of a run, `choose_widths` a few widths that its steps choose from.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

TILES = 4  # at most so many in a row: each one is a separate computation
_UNIT = 8  # widths and lengths are multiples of it
# Costs of a tile, in pairs of tokens that attend to each other: of copying a
# token to the tile and back, and of one more computation.
_COPY, _TILE = 32, 4096
# Each width is a program of its own; one more must save as many places as so
# many steps have, about what compiling it costs.
_PROGRAM = 2
_CANDIDATES = 32  # widths of a kind of text that are compared
_PASSES = 16  # over all rows, in each of which every row may swap a text
_SWAPS = 256  # single swaps after these, between the fullest row and others
_COMPARED = 32  # slots, up to which any two texts of two rows may be swapped


def round_up(count: int) -> int:
  """The next multiple of 8 that is not smaller."""
  return -(-count // _UNIT) * _UNIT


def deal(
  lengths: Int[np.ndarray, " texts"], rows: int
) -> Int[np.ndarray, "rows slots"]:
  """Deals texts to rows, so that the fullest row is short.

  The search ends when no row is longer than the mean, rounded up to a multiple
  of 8, or when no swap of two texts makes the fullest row shorter.

  Args:
    lengths: token count of each text.
    rows: number of rows; it divides the number of texts.

  Returns:
    Index of the text in every row and slot, the longest first.
  """
  ranked = np.argsort(-lengths, kind="stable").reshape(-1, rows)
  table = np.empty((rows, len(ranked)), np.int64)
  sums = np.zeros(rows, np.int64)
  for slot, texts in enumerate(ranked):  # the longest to the emptiest row
    emptiest = np.argsort(sums, kind="stable")
    table[emptiest, slot] = texts
    sums[emptiest] += lengths[texts]
  enough = round_up(-(-int(sums.sum()) // rows))
  _swap_in_pairs(table, sums, lengths, enough)
  _swap_with_fullest(table, sums, lengths, enough)
  # Stable, so that equal texts keep their order.
  order = np.argsort(-lengths[table], axis=1, kind="stable")
  return np.take_along_axis(table, order, 1)


def _gains(
  ours: Int[np.ndarray, "#pairs slots"], theirs: Int[np.ndarray, "#pairs slots"]
) -> Int[np.ndarray, "pairs swaps"]:
  """Tokens that a row gets rid of by each swap of a text with another row.

  Of many slots, only those of texts of the same rank are compared, in time
  linear in their number; these differ enough.
  """
  if ours.shape[1] > _COMPARED:
    return ours - theirs
  gains = ours[:, :, None] - theirs[:, None, :]  # [pairs, our slot, their slot]
  return gains.reshape(len(gains), -1)


def _swap(table: np.ndarray, ours: Any, theirs: Any, number: Any) -> None:
  """Swaps texts of rows, by the numbers of the swaps in `_gains`."""
  slots = table.shape[1]
  mine = other = number
  if slots <= _COMPARED:
    mine, other = np.divmod(number, slots)
  texts = table[ours, mine], table[theirs, other]
  table[theirs, other], table[ours, mine] = texts


def _swap_in_pairs(
  table: np.ndarray, sums: np.ndarray, lengths: np.ndarray, enough: int
) -> None:
  """Pairs full with empty rows, and swaps a text in each pair.

  No swap makes the fuller row of a pair longer, so the fullest row of all never
  grows.
  """
  half = len(sums) // 2
  for _ in range(_PASSES):
    if sums.max() <= enough:
      return
    order = np.argsort(sums, kind="stable")
    low, high = order[:half], order[::-1][:half]
    gaps = sums[high] - sums[low]
    gains = _gains(lengths[table[high]], lengths[table[low]])
    after = np.abs(gaps[:, None] - 2 * gains)  # how much the rows then differ
    best = np.argmin(after, axis=1)
    pairs = np.flatnonzero(after.min(axis=1) < gaps)
    if not len(pairs):
      return
    high, low, best = high[pairs], low[pairs], best[pairs]
    _swap(table, high, low, best)
    gained = gains[pairs, best]
    sums[high] -= gained
    sums[low] += gained


def _swap_with_fullest(
  table: np.ndarray, sums: np.ndarray, lengths: np.ndarray, enough: int
) -> None:
  """Swaps texts of the fullest row while that makes it shorter."""
  for _ in range(_SWAPS):
    full = int(np.argmax(sums))
    if sums[full] <= enough:
      return
    gains = _gains(lengths[table[full]][None], lengths[table])
    after = np.maximum(sums[full] - gains, sums[:, None] + gains)
    row, best = divmod(int(np.argmin(after)), after.shape[1])
    if after[row, best] >= sums[full]:
      return
    _swap(table, full, row, best)
    sums[full] -= gains[row, best]
    sums[row] += gains[row, best]


@dataclasses.dataclass(frozen=True)
class Counts:
  """What the rows of some batches must hold.

  Attributes:
    width: tokens of the fullest row, rounded up to a multiple of 8.
    longest: tokens of the longest text of every slot.
  """

  width: int
  longest: tuple[int, ...]

  @classmethod
  def none(cls, slots: int) -> "Counts":
    """The counts of no batch, in rows of so many slots."""
    return cls(0, (0,) * slots)

  def __or__(self, other: "Counts") -> "Counts":
    """What holds the batches of both."""
    longest = map(max, self.longest, other.longest)
    return Counts(max(self.width, other.width), tuple(longest))


def count(lengths: Int[np.ndarray, " texts"], rows: int) -> Counts:
  """What the rows must hold for one batch.

  Args:
    lengths: token count of each text of the batch.
    rows: number of rows that they are dealt to.
  """
  dealt = lengths[deal(lengths, rows)]
  fullest = int(dealt.sum(axis=1).max())
  return Counts(round_up(fullest), tuple(dealt.max(axis=0).tolist()))


@dataclasses.dataclass(frozen=True)
class Tile:
  """Consecutive slots whose texts attention pads to one length.

  Attributes:
    slots: number of slots.
    length: padded length in tokens.
  """

  slots: int
  length: int


@dataclasses.dataclass(frozen=True)
class Shapes:
  """The shapes of a row.

  Attributes:
    width: number of places.
    tiles: groups of slots, in the order of the slots.
  """

  width: int
  tiles: tuple[Tile, ...]

  @classmethod
  def of(cls, counts: Counts, most: int = TILES) -> "Shapes":
    """The shapes that hold the counted batches, with the least attention.

    Args:
      counts: what rows must hold.
      most: number of tiles at most.
    """
    return cls(counts.width, _tiles(counts.longest, most))

  @property
  def slots(self) -> int:
    """Texts of a row."""
    return sum(tile.slots for tile in self.tiles)

  def holds(self, counts: Counts) -> bool:
    """Whether rows of these shapes hold the counted batches."""
    lengths = [tile.length for tile in self.tiles for _ in range(tile.slots)]
    return counts.width <= self.width and all(
      text <= length
      for text, length in zip(counts.longest, lengths, strict=True)
    )


def _tiles(longest: Sequence[int], most: int) -> tuple[Tile, ...]:
  """Groups slots with the least cost: attention, copies and computations."""
  lengths = np.array([round_up(length) for length in longest], np.int64)
  slots = len(lengths)
  # Dynamic program over the number of tiles.  The longest text of a tile is
  # that of its first slot, so slots first to end cost (end - first) *
  # each[first] + _TILE.  best[first]: least cost of the slots from `first` on
  # in at most as many tiles as rounds so far; ends: the end of its first tile.
  each = lengths * (lengths + _COPY)
  best = np.append(each * (slots - np.arange(slots)) + _TILE, 0)
  ends = [np.full(slots, slots)]
  for _ in range(min(most, slots) - 1):
    found, cut = np.empty_like(best), np.empty(slots, np.int64)
    found[slots] = 0
    for first in range(slots):
      sizes = np.arange(1, slots - first + 1)
      costs = each[first] * sizes + _TILE + best[first + 1 :]
      # Of equal costs the longest tile, so fewer tiles.
      cut[first] = slots - int(np.argmin(costs[::-1]))
      found[first] = costs[cut[first] - first - 1]
    best = found
    ends.append(cut)
  tiles, first = [], 0
  for cut in reversed(ends):  # follow the choices, most tiles first
    if first < slots:
      tiles.append(Tile(int(cut[first]) - first, int(lengths[first])))
      first = int(cut[first])
  return tuple(tiles)


def choose_widths(
  widths: Int[np.ndarray, "steps kinds"], rows: Sequence[int], most: int
) -> Int[np.ndarray, "shapes kinds"]:
  """The widths of rows that hold all steps in the fewest places.

  A step takes the first widths that hold it, in all kinds of text together.

  Args:
    widths: width that each step needs, of each kind of text.
    rows: number of rows in a step, of each kind of text.
    most: number of widths at most; one that saves less than `_PROGRAM` steps'
      places is left out.

  Returns:
    Widths in ascending order, of all kinds; the last hold every step.
  """
  values = [_candidates(each) for each in widths.T]
  cells = np.stack(np.meshgrid(*values, indexing="ij"), -1)
  cells = cells.reshape(-1, len(values))
  places = cells @ np.asarray(rows, np.int64)
  held = np.array([(widths <= cell).all(axis=1).sum() for cell in cells])
  # Dynamic program over the number of widths, which are cells of a grid.
  # best[cell]: least places of the steps that the cell holds, if the cell is
  # the widest; before: the next narrower one, the cell itself for none.  In the
  # widest cell are the steps that the narrower ones do not hold.
  fits = (cells[:, None] <= cells).all(axis=-1)  # [narrower, wider]
  added = np.where(fits, (held - held[:, None]) * places, np.int64(2**60))
  best, befores = held * places, []
  for _ in range(most - 1):
    options = best[:, None] + added + _PROGRAM * places[-1]
    before = options.argmin(axis=0)
    found = options.min(axis=0)
    if (found >= best).all():
      break
    befores.append(np.where(found < best, before, np.arange(len(cells))))
    best = np.minimum(found, best)
  chosen = [len(cells) - 1]
  for before in reversed(befores):  # follow the choices from the widest
    if before[chosen[-1]] != chosen[-1]:
      chosen.append(int(before[chosen[-1]]))
  return cells[chosen[::-1]]


def _candidates(
  widths: Int[np.ndarray, " steps"],
) -> Int[np.ndarray, " candidates"]:
  """The widths that occur, or evenly spread ones with the widest."""
  found = np.unique(widths)
  picked = np.linspace(0, len(found) - 1, min(len(found), _CANDIDATES))
  return found[np.round(picked).astype(int)]
