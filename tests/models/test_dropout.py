"""Which values dropout takes, as a hash decides it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpr_jax.models import dropout


def _mask(shape, rate, site=0, rows=4):
  keys = jax.random.split(jax.random.key(0), rows)
  return np.asarray(
    dropout.keep_mask(dropout.words(keys, site), shape, rate), np.float64
  )


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_rate_is_kept_along_every_axis(rate):
  """No row, column or plane is favoured: within 5 standard errors."""
  mask = _mask((12, 64, 64), rate, rows=8)
  for axis in range(4):
    axes = tuple(n for n in range(4) if n != axis)
    count = mask.size / mask.shape[axis]
    error = np.sqrt(rate * (1 - rate) / count)
    assert np.abs(mask.mean(axis=axes) - (1 - rate)).max() < 5 * error


def test_neighbours_rows_and_sites_are_independent():
  mask = _mask((200, 128), 0.5)
  signs = 2 * mask - 1
  limit = 5 / np.sqrt(signs[0].size)
  for lag in (1, 2, 7, 127):
    assert abs((signs[:, :, lag:] * signs[:, :, :-lag]).mean()) < limit
    assert abs((signs[:, lag:] * signs[:, :-lag]).mean()) < limit
  assert abs((signs[0] * signs[1]).mean()) < limit
  other = 2 * _mask((200, 128), 0.5, site=1) - 1
  assert abs((signs * other).mean()) < limit


def test_a_matrix_is_its_part_of_the_whole_mask():
  """Of different height and width, so that neither stands for both."""
  words = dropout.words(jax.random.split(jax.random.key(0), 1), 3)
  whole = np.asarray(dropout.keep_mask(words, (4, 6, 10), 0.5))[0]
  first, second = words[0]
  for number in range(4):
    part = dropout.keep_matrix((first, second), (6, 10), number, 0.5)
    np.testing.assert_array_equal(np.asarray(part), whole[number])


def test_gradient_goes_where_values_went():
  keys = jax.random.split(jax.random.key(3), 2)

  def total(values):
    return jnp.sum(dropout.drop(values, keys, 0.25, 5))

  values = jnp.ones((2, 300))
  dropped = dropout.drop(values, keys, 0.25, 5)
  np.testing.assert_array_equal(jax.grad(total)(values), dropped)
  assert 0.15 < (np.asarray(dropped) == 0).mean() < 0.35


def test_what_is_kept_grows_by_what_is_dropped():
  """3 of 4 values stay, at 4/3 of what they were: the mean stays too."""
  keys = jax.random.split(jax.random.key(3), 2)
  dropped = np.asarray(dropout.drop(jnp.full((2, 300), 3.0), keys, 0.25, 5))
  assert set(dropped.ravel().tolist()) == {0.0, 4.0}
