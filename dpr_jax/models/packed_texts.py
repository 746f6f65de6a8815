"""Packed texts: rows in which texts lie one after the other, without padding.

A row is what a device encodes at once.  It has `width` places, the same in all
rows and steps; a fixed number of texts fill it from its beginning, and unused
places are at its end alone.  What is computed for every token by itself (dense
layers, LayerNorm, dropout) works on the flat rows, so that it costs what their
tokens cost.  Attention and pooling work text by text in tiles: the texts of a
row, the longest first, occupy slots; a tile is a group of consecutive slots
whose texts are padded to one length.  The length is that of the longest text
that any of its slots has in any step, so that all shapes are static.

`pack` makes a device's rows of token ids; `text_layout.py` moves values between
flat rows and tiles; `dual_encoder.py` encodes both these and padded `Texts`.
"""

from collections.abc import Sequence

import flax.struct
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Int, Integer, Key


@flax.struct.dataclass
class Tile:
  """Texts of consecutive slots, which attention computes as one padded array.

  Attributes:
    places: place in the flat row of each token; any valid place beyond the end
      of a text.  `length` is at least that of the longest text.
    lengths: tokens of each text, 1 or more.
  """

  places: Int[ArrayLike, "*cores rows texts length"]
  lengths: Int[ArrayLike, "*cores rows texts"]


@flax.struct.dataclass
class PackedTexts:
  """Token ids of texts of one kind, several texts per row.

  Attributes:
    token_ids: WordPiece ids; 0 at unused places.
    positions: place of a token within its text, from 0; 0 at unused places.
    slots: number of the token's text within its row, from 0; the last slot at
      unused places.
    sources: where a token is in the tiles of its row: index into the
      concatenation of the tiles, each flattened to [texts * length]; 0 at
      unused places.
    tiles: the tiles of a row in the order of the slots; their texts add up to
      the texts of a row.
    dropout_keys: one key per text, in the order of the slots, or None for no
      dropout.
  """

  token_ids: Int[ArrayLike, "*cores rows width"]
  positions: Int[ArrayLike, "*cores rows width"]
  slots: Int[ArrayLike, "*cores rows width"]
  sources: Int[ArrayLike, "*cores rows width"]
  tiles: tuple[Tile, ...]
  dropout_keys: Key[ArrayLike, "*cores rows texts"] | None = None


def pack(
  ids: Sequence[Sequence[Integer[np.ndarray, " _"]]],
  width: int,
  tiles: Sequence[tuple[int, int]],
) -> PackedTexts:
  """Packs the texts of one device; all arrays are int32, without dropout keys.

  Args:
    ids: token ids of each text, by row and slot: `ids[row][slot]`.
    width: places of a row.
    tiles: (texts, length) of each tile, in the order of the slots.

  Raises:
    ValueError: a row has another number of texts than the tiles, a text is
      empty or longer than its tile, or the texts of a row need more than
      `width` places.
  """
  counts, longest = np.asarray(tiles, np.int64).T
  texts = int(counts.sum())
  for number, row in enumerate(ids):
    if len(row) != texts:
      raise ValueError(
        f"row {number} has {len(row)} texts, its tiles have {texts}"
      )
  lengths = np.array(
    [[len(text) for text in row] for row in ids], np.int64
  ).reshape(-1, texts)
  limits = np.repeat(longest, counts)  # of each slot
  _check(lengths, limits, width)

  ends = lengths.cumsum(axis=1)
  starts = ends - lengths
  places = np.arange(width)
  used = places < ends[:, -1:]
  # The used places, row by row, are the tokens in the order of `ids`.
  slots = np.full(used.shape, texts - 1)
  slots[used] = np.repeat(
    np.tile(np.arange(texts), len(lengths)), lengths.ravel()
  )
  positions = np.where(used, places - np.take_along_axis(starts, slots, 1), 0)
  token_ids = np.zeros(used.shape, np.int32)
  if len(lengths):
    token_ids[used] = np.concatenate([text for row in ids for text in row])
  # A slot takes as many places in the concatenated tiles as its tile is long.
  bases = limits.cumsum() - limits
  sources = np.where(used, bases[slots] + positions, 0)

  def tile(first: int, count: int, length: int) -> Tile:
    own = slice(first, first + count)
    inside = starts[:, own, None] + np.arange(length)
    return Tile(
      np.minimum(inside, width - 1).astype(np.int32),
      lengths[:, own].astype(np.int32),
    )

  return PackedTexts(
    token_ids=token_ids,
    positions=positions.astype(np.int32),
    slots=slots.astype(np.int32),
    sources=sources.astype(np.int32),
    tiles=tuple(
      tile(int(end - count), int(count), int(length))
      for end, count, length in zip(
        counts.cumsum(), counts, longest, strict=True
      )
    ),
  )


def _check(
  lengths: Int[np.ndarray, "rows texts"],
  limits: Int[np.ndarray, " texts"],
  width: int,
) -> None:
  """`ValueError` for the first text or row that does not fit."""
  for row, slot in np.argwhere((lengths < 1) | (lengths > limits)):
    raise ValueError(
      f"row {row}, slot {slot}: a text of {lengths[row, slot]} tokens, its"
      f" tile takes 1 to {limits[slot]}"
    )
  for row in np.flatnonzero(lengths.sum(axis=1) > width):
    raise ValueError(
      f"row {row}: its texts have {lengths[row].sum()} tokens, a row has"
      f" {width} places"
    )
