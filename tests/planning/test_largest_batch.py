"""The largest batch that fits: which ones are tried."""

import pytest

from dpr_jax.core import config as config_lib
from dpr_jax.planning import largest_batch


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 9, 10])
def test_the_search_finds_the_last_that_fits(limit):
  asked = []

  def fits(value):
    asked.append(value)
    return value <= limit

  found = largest_batch.last_that_fits(list(range(1, 11)), fits)
  assert found == (limit or None)
  assert len(asked) == len(set(asked)) <= 8


def test_what_is_tried_and_how_it_is_named():
  """Questions of 4 devices without the cache; with it, chunks that divide."""
  config = config_lib.base_config()
  config.train.batch_size = 48
  config.train.gradient_cache = False
  assert largest_batch._candidates(config, 4)[:4] == [1, 2, 4, 8]
  assert largest_batch._name(config) == "config.train.batch_size"
  assert largest_batch._shown(config, 8, 4) == 32
  assert largest_batch._with(config, 8, 4).train.batch_size == 32
  config.train.gradient_cache = True
  assert largest_batch._candidates(config, 4) == [1, 2, 3, 4, 6, 12]
  assert largest_batch._name(config) == "config.train.chunk_size"
  assert largest_batch._shown(config, 6, 4) == 6
  changed = largest_batch._with(config, 6, 4)
  assert (changed.train.chunk_size, changed.train.batch_size) == (6, 48)
