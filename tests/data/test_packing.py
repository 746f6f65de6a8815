"""Texts are dealt evenly, and the shapes of their rows hold every batch."""

import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from dpr_jax.data import packing

pytestmark = pytest.mark.quick


def test_long_texts_go_to_empty_rows():
  """9 and 7 first, then 5 to the 7 and 3 to the 9: two rows of 12."""
  table = packing.deal(np.array([3, 9, 5, 7]), 2)
  assert table.tolist() == [[1, 0], [3, 2]]


def test_two_rows_swap_a_text():
  """100+60+10 and 80+70+50 differ by 30; with 60 and 80 swapped, by 10.

  The mean of 185 is rounded up to 192, so 190 is few enough.
  """
  lengths = np.array([100, 80, 70, 60, 50, 10])
  assert packing.deal(lengths, 2).tolist() == [[0, 1, 5], [2, 3, 4]]


def test_texts_of_other_ranks_are_swapped_too():
  """By rank, both rows have 50 and 40, and the 30 and the 10 decide."""
  table = packing.deal(np.array([50, 50, 40, 40, 30, 10]), 2)
  assert table.tolist() == [[3, 2, 4], [1, 0, 5]]  # 110 tokens each


_LENGTHS = strategies.lists(
  strategies.integers(1, 60), min_size=12, max_size=12
)


@hypothesis.given(
  batch=_LENGTHS, rows=strategies.sampled_from((1, 2, 3, 4, 6, 12))
)
@hypothesis.settings(max_examples=60)
def test_every_text_has_a_place(batch, rows):
  """Once; the longest first, and no swap makes the fullest row shorter."""
  lengths = np.array(batch)
  table = packing.deal(lengths, rows)
  assert sorted(table.reshape(-1).tolist()) == list(range(12))
  dealt = lengths[table]
  assert (np.diff(dealt, axis=1) <= 0).all()
  sums = dealt.sum(axis=1)
  full = int(np.argmax(sums))
  if sums[full] > packing.round_up(-(-sum(batch) // rows)):
    for row in range(rows):
      for ours, theirs in itertools.product(dealt[full], dealt[row]):
        gain = ours - theirs
        assert max(sums[full] - gain, sums[row] + gain) >= sums[full]


def test_counts_are_of_the_fullest_row_and_the_longest_texts():
  """9 + 3 and 7 + 5 in rows of 2; another batch has longer texts in slot 1."""
  counts = packing.count(np.array([3, 9, 5, 7]), 2)
  assert counts == packing.Counts(16, (9, 5))
  other = packing.count(np.array([8, 8, 7, 6]), 2)
  assert counts | other == packing.Counts(16, (9, 7))
  assert packing.Counts.none(2) | counts == counts


@pytest.mark.parametrize(
  ("longest", "most", "tiles"),
  [
    ((144, 143, 20, 18), 4, [(2, 144), (2, 24)]),
    ((144, 143, 20, 18), 1, [(4, 144)]),
    ((9, 8, 8), 4, [(3, 16)]),
    # One more tile costs 4096; three texts of 128 instead of 136 save
    # 3 * (136 * 168 - 128 * 160) = 7104, one text saves 2368.
    ((136, 128, 128, 128), 4, [(1, 136), (3, 128)]),
    ((136, 136, 136, 128), 4, [(4, 136)]),
  ],
)
def test_tiles_of_similar_lengths(longest, most, tiles):
  """Multiples of 8, as many as pay for themselves."""
  shapes = packing.Shapes.of(packing.Counts(400, longest), most)
  assert [(tile.slots, tile.length) for tile in shapes.tiles] == tiles
  assert (shapes.width, shapes.slots) == (400, len(longest))


@hypothesis.given(
  longest=strategies.lists(strategies.integers(1, 200), min_size=1, max_size=7),
  most=strategies.integers(1, 4),
)
@hypothesis.settings(max_examples=60)
def test_no_other_tiles_cost_less(longest, most):
  """Compared with every way to cut the slots."""
  longest = sorted(longest, reverse=True)
  slots = len(longest)

  def cost(tiles):
    return sum(n * (size * size + 32 * size) + 4096 for n, size in tiles)

  def options():
    for count in range(min(most, slots)):
      for inner in itertools.combinations(range(1, slots), count):
        cuts = (0, *inner, slots)
        yield [
          (end - first, packing.round_up(longest[first]))
          for first, end in itertools.pairwise(cuts)
        ]

  shapes = packing.Shapes.of(packing.Counts(8, tuple(longest)), most)
  found = [(tile.slots, tile.length) for tile in shapes.tiles]
  assert cost(found) == min(map(cost, options()))


def test_a_few_widths_hold_all_steps():
  """Nine steps of 8 places and ten of 16 and 24, in rows of 2.

  One width: 19 * 48 = 912 places.  Two: 9 * 16 + 10 * 48 = 624, or 14 * 32 + 5
  * 48 = 688.  Another width must save 2 * 48 = 96 places: a third one, 9 * 16 +
  5 * 32 + 5 * 48 = 544, saves 80.
  """
  widths = np.repeat([8, 16, 24], [9, 5, 5])[:, None]
  found = [
    packing.choose_widths(widths, [2], most).tolist() for most in (1, 2, 3)
  ]
  assert found == [[[24]], [[8], [24]], [[8], [24]]]
  widths = np.repeat([8, 16, 24], [9, 6, 6])[:, None]  # saves 96
  assert len(packing.choose_widths(widths, [2], 3)) == 2
  widths = np.repeat([8, 16, 24], [9, 7, 5])[:, None]  # saves 112
  assert packing.choose_widths(widths, [2], 3).tolist() == [[8], [16], [24]]


def test_kinds_of_text_have_widths_together(monkeypatch):
  """Passages of 16 come with questions of 8 and 16; 3 rows and 1."""
  monkeypatch.setattr(packing, "_PROGRAM", 0)
  widths = np.array([[8, 16]] * 4 + [[16, 16]] * 2 + [[8, 32]] * 3)
  # Alone, the widest take 9 * (3 * 16 + 32) = 720 places.  With (8, 16) it is
  # 4 * 40 + 5 * 80 = 560, with (16, 16) 6 * 64 + 3 * 80 = 624, with (8, 32)
  # 7 * 56 + 2 * 80 = 552.
  found = packing.choose_widths(widths, [3, 1], 2)
  assert found.tolist() == [[8, 32], [16, 32]]
  found = packing.choose_widths(widths, [3, 1], 3)
  assert found.tolist() == [[8, 16], [8, 32], [16, 32]]


@hypothesis.given(
  widths=strategies.lists(
    strategies.tuples(strategies.integers(1, 4), strategies.integers(1, 4)),
    min_size=1,
    max_size=8,
  ),
  most=strategies.integers(1, 3),
)
@hypothesis.settings(max_examples=60)
def test_no_other_widths_take_fewer_places(widths, most):
  """Compared with all ascending widths, a program costing two steps."""
  widths, rows = np.array(widths), [5, 3]
  widest = widths.max(axis=0)

  def cost(shapes):
    """Places; each step is in the first shapes that hold it."""
    held = (widths[:, None] <= shapes).all(axis=-1)
    assert held[:, -1].all()
    places = np.array(shapes) @ rows
    return places[held.argmax(axis=1)].sum() + 2 * len(shapes) * places[-1]

  cells = list(itertools.product(range(1, 5), repeat=2))
  options = [
    [*inner, tuple(widest)]
    for count in range(most)
    for inner in itertools.combinations(cells, count)
    if all(
      all(a <= b for a, b in zip(one, other, strict=True))
      for one, other in itertools.pairwise([*inner, tuple(widest)])
    )
  ]
  found = packing.choose_widths(widths, rows, most)
  assert len(found) <= most
  assert cost(found) == min(map(cost, options))


def test_of_many_widths_some_are_compared():
  """The widest is one of them, and every step is held."""
  widths = np.arange(1, 1001)[:, None]
  found = packing.choose_widths(widths, [1], 2)
  # 31 steps of 999 / 31; halves are the best.
  assert found[:, 0].tolist() == [1 + round(15 * 999 / 31), 1000]
