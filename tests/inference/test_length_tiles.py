"""Rows in tiles: widths that pad the least, every row once."""

import itertools

import hypothesis
import numpy as np
from hypothesis import strategies

from dpr_jax.inference import length_tiles

LENGTHS = strategies.lists(strategies.integers(1, 40), min_size=1, max_size=60)


def _padded(histogram, widths):
  lengths = np.repeat(np.arange(len(histogram)), histogram)
  places = np.searchsorted(widths, lengths)
  return int(np.array(widths)[places].sum())


@hypothesis.given(LENGTHS, strategies.integers(1, 4))
def test_widths_pad_the_least(lengths, shapes):
  """Not more padding than any other choice, by trying all of them."""
  histogram = np.bincount(lengths, minlength=43)
  widths = length_tiles.choose_widths(histogram, shapes)
  assert len(widths) <= shapes
  assert list(widths) == sorted(set(widths))
  assert widths[-1] >= max(lengths)
  assert all(width % 8 == 0 for width in widths)
  every = range(8, 41, 8)
  best = min(
    _padded(histogram, choice)
    for count in range(1, shapes + 1)
    for choice in itertools.combinations(every, count)
    if choice[-1] >= max(lengths)
  )
  assert _padded(histogram, widths) == best


def test_widths_end_where_texts_are_cut():
  """No text is longer than the limit, which need not be a multiple of 8."""
  histogram = np.bincount([3, 9, 21, 21])
  assert length_tiles.choose_widths(histogram, 9) == (8, 16, 21)
  assert length_tiles.choose_widths(histogram, 1) == (21,)


@hypothesis.given(
  LENGTHS, strategies.integers(1, 3), strategies.integers(1, 120)
)
def test_every_text_is_in_one_tile(lengths, shapes, tokens):
  """Tiles fit, only the last of the widest is not filled."""
  lengths = np.array(lengths)
  widths = length_tiles.choose_widths(np.bincount(lengths), shapes)
  tiles = length_tiles.plan(lengths, widths, tokens)
  rows = np.concatenate([tile.rows for tile in tiles])
  assert sorted(rows) == list(range(len(lengths)))
  for tile in tiles:
    assert len(tile.rows) <= tile.size
    assert tile.size * tile.width <= max(tokens, tile.width)
    assert lengths[tile.rows].max() <= tile.width
    assert tile.full == (
      tile.width == widths[-1]
      and len(tile.rows) == tile.size
      and bool((lengths[tile.rows] == tile.width).all())
    )
    assert len(tile.rows) == tile.size or tile.width == widths[-1]
  for cores in (1, 3):
    found = list(length_tiles.calls(tiles, cores))
    assert sum(map(len, found)) == len(tiles)
    assert all(len(some) <= cores for some in found)
    assert all(
      len({(t.width, t.size, t.full) for t in some}) == 1 for some in found
    )
