"""Which values dropout takes, as a hash decides it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpr_jax.models import dropout


def _words(rows=4, site=0):
  return dropout.words(jax.random.split(jax.random.key(0), rows), site)


def _values(length, width, rate, site=0):
  words = _words(site=site)[:, None]
  positions = np.arange(length)[None]
  return np.asarray(
    dropout.keep_values(words, positions, width, rate), np.float64
  )


def _drop(values, keys, rate, site):
  words = dropout.words(keys, site)[:, None]
  return dropout.drop_values(
    values, words, np.arange(values.shape[1])[None], rate
  )


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_rate_is_kept_along_every_axis(rate):
  """No row, column or plane is favoured: within 5 standard errors."""
  mask = np.asarray(
    dropout.keep_weights(_words(8), (12, 64, 64), rate), np.float64
  )
  for axis in range(4):
    axes = tuple(n for n in range(4) if n != axis)
    count = mask.size / mask.shape[axis]
    error = np.sqrt(rate * (1 - rate) / count)
    assert np.abs(mask.mean(axis=axes) - (1 - rate)).max() < 5 * error


def test_neighbours_rows_and_sites_are_independent():
  mask = _values(200, 128, 0.5)
  signs = 2 * mask - 1
  limit = 5 / np.sqrt(signs[0].size)
  for lag in (1, 2, 7, 127):
    assert abs((signs[:, :, lag:] * signs[:, :, :-lag]).mean()) < limit
    assert abs((signs[:, lag:] * signs[:, :-lag]).mean()) < limit
  assert abs((signs[0] * signs[1]).mean()) < limit
  other = 2 * _values(200, 128, 0.5, site=1) - 1
  assert abs((signs * other).mean()) < limit


def test_a_head_is_its_part_of_the_whole_mask():
  """Of different height and width, so that neither stands for both.

  The last head of those that a mask tells apart is one of them.
  """
  words = _words(1, site=3)
  whole = np.asarray(dropout.keep_weights(words, (64, 6, 10), 0.5))[0]
  first, second = jax.lax.bitcast_convert_type(words, np.int32)[0]
  for head in (0, 1, 2, 31, 32, 63):
    part = dropout.keep_head((first, second), (6, 10), head, 0.5)
    np.testing.assert_array_equal(np.asarray(part), whole[head])
    assert 0.25 < whole[head].mean() < 0.75


def test_masks_do_not_depend_on_the_padding():
  """Of a text of 5 tokens, in arrays of 5 and of 9; and of one query alone."""
  words = _words()
  short = np.asarray(dropout.keep_weights(words, (3, 5, 5), 0.5))
  long = np.asarray(dropout.keep_weights(words, (3, 9, 9), 0.5))
  np.testing.assert_array_equal(short, long[:, :, :5, :5])
  first = np.asarray(dropout.keep_weights(words, (3, 1, 9), 0.5))
  np.testing.assert_array_equal(first, long[:, :, :1])
  assert 0.4 < short.mean() < 0.6
  np.testing.assert_array_equal(_values(5, 12, 0.5), _values(9, 12, 0.5)[:, :5])


def test_packed_tokens_have_their_texts_masks():
  """A row of text 2's three tokens, text 0's two, and an unused place."""
  words, slots = _words(), np.array([2, 2, 2, 0, 0, 0])
  positions = np.array([[0, 1, 2, 0, 1, 0]])
  flat = np.asarray(dropout.keep_values(words[slots][None], positions, 7, 0.5))
  padded = np.asarray(
    dropout.keep_values(words[:, None], np.arange(3)[None], 7, 0.5)
  )
  np.testing.assert_array_equal(flat[0, :3], padded[2])
  np.testing.assert_array_equal(flat[0, 3:5], padded[0, :2])
  assert (padded[0] != padded[2]).any()


def test_masks_of_very_long_texts_are_refused():
  with pytest.raises(ValueError, match="2 heads, texts of 8193 tokens"):
    dropout.keep_weights(_words(), (2, 1, 8193), 0.5)
  with pytest.raises(ValueError, match="65 heads"):
    dropout.keep_weights(_words(), (65, 1, 1), 0.5)


def test_gradient_goes_where_values_went():
  keys = jax.random.split(jax.random.key(3), 2)

  def total(values):
    return jnp.sum(_drop(values, keys, 0.25, 5))

  values = jnp.ones((2, 30, 10))
  dropped = _drop(values, keys, 0.25, 5)
  np.testing.assert_array_equal(jax.grad(total)(values), dropped)
  assert 0.15 < (np.asarray(dropped) == 0).mean() < 0.35


def test_what_is_kept_grows_by_what_is_dropped():
  """3 of 4 values stay, at 4/3 of what they were: the mean stays too."""
  keys = jax.random.split(jax.random.key(3), 2)
  dropped = np.asarray(_drop(jnp.full((2, 30, 10), 3.0), keys, 0.25, 5))
  assert set(dropped.ravel().tolist()) == {0.0, 4.0}
