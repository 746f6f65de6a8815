"""Rows of packed texts, by hand."""

import numpy as np
import pytest

from dpr_jax.models import packed_texts


def _ids(*lengths):
  return [np.arange(1, n + 1) for n in lengths]


def test_two_rows_in_two_tiles():
  """A tile of one text of up to 4 tokens, and one of two of up to 2."""
  packed = packed_texts.pack(
    [[np.array([7, 8, 9]), np.array([5, 6]), np.array([4])], _ids(2, 1, 2)],
    7,
    [(1, 4), (2, 2)],
  )
  assert packed.token_ids.tolist() == [
    [7, 8, 9, 5, 6, 4, 0],
    [1, 2, 1, 1, 2, 0, 0],
  ]
  assert packed.positions.tolist() == [
    [0, 1, 2, 0, 1, 0, 0],
    [0, 1, 0, 0, 1, 0, 0],
  ]
  assert packed.slots.tolist() == [
    [0, 0, 0, 1, 1, 2, 2],
    [0, 0, 1, 2, 2, 2, 2],
  ]
  # Slot 0 begins at 0 in the concatenated tiles, slot 1 at 4, slot 2 at 6.
  assert packed.sources.tolist() == [
    [0, 1, 2, 4, 5, 6, 0],
    [0, 1, 4, 6, 7, 0, 0],
  ]
  first, second = packed.tiles
  assert first.places.tolist() == [[[0, 1, 2, 3]], [[0, 1, 2, 3]]]
  assert first.lengths.tolist() == [[3], [2]]
  assert second.places.tolist() == [[[3, 4], [5, 6]], [[2, 3], [3, 4]]]
  assert second.lengths.tolist() == [[2, 1], [1, 2]]
  assert packed.dropout_keys is None


def test_places_beyond_a_row_are_its_last():
  """A text at the end of a row, shorter than its tile."""
  packed = packed_texts.pack([_ids(3, 2)], 5, [(2, 4)])
  assert packed.tiles[0].places.tolist() == [[[0, 1, 2, 3], [3, 4, 4, 4]]]


@pytest.mark.parametrize(
  ("rows", "message"),
  [
    ([_ids(3, 2, 1), _ids(3, 2)], "row 1 has 2 texts, its tiles have 3"),
    ([_ids(5, 2, 1)], "row 0, slot 0: a text of 5 tokens, its tile takes 1"),
    ([_ids(4, 2, 0)], "row 0, slot 2: a text of 0 tokens"),
    ([_ids(3, 2, 1), _ids(4, 2, 2)], "row 1: its texts have 8 tokens.* has 7"),
  ],
)
def test_texts_that_do_not_fit(rows, message):
  """Nothing is cut."""
  with pytest.raises(ValueError, match=message):
    packed_texts.pack(rows, 7, [(1, 4), (2, 2)])
