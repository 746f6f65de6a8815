"""One function for one device, mapped over eight of them."""

import jax
import numpy as np
import pytest

from dpr_jax.core import devices as devices_lib


def test_rows_are_split_in_their_order():
  """Device d of 4 gets rows 2 d and 2 d + 1."""
  split = devices_lib.split_over_cores(
    {"a": np.arange(8), "b": np.arange(16).reshape(8, 2)}, jax.devices()[:4]
  )
  assert split["a"].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
  assert split["b"].shape == (4, 2, 2)
  assert devices_lib.split_over_cores(np.arange(8)).shape == (8, 1)


def test_results_carry_an_axis_of_devices():
  """Each knows its own rows, and with a collective those of all."""

  def one(offset, rows):
    total = jax.lax.psum(rows.sum(), devices_lib.AXIS)
    return offset + rows, total

  rows = devices_lib.split_over_cores(np.arange(8.0))
  found, totals = devices_lib.map_over_cores(one)(np.float32(10), rows)
  assert found.reshape(-1).tolist() == list(range(10, 18))
  assert totals.tolist() == [28.0] * 8


def test_what_is_distributed_is_a_part_on_each_device():
  whole = np.arange(16.0).reshape(8, 2)
  parts = devices_lib.distribute({"x": whole})["x"]
  for shard in parts.addressable_shards:
    assert shard.data.shape == (1, 2)
  np.testing.assert_array_equal(devices_lib.fetch(parts), whole)
  everywhere = devices_lib.replicate(whole, jax.devices()[:2])
  assert len(everywhere.addressable_shards) == 2
  for shard in everywhere.addressable_shards:
    np.testing.assert_array_equal(shard.data, whole)


def test_parts_are_put_together_in_the_order_of_their_devices():
  devices = jax.devices()[:3]
  parts = [
    {"x": jax.device_put(np.full((1, 2), n, np.float32), device)}
    for n, device in enumerate(devices)
  ]
  found = devices_lib.assemble(parts, devices)["x"]
  assert found.tolist() == [[0, 0], [1, 1], [2, 2]]


@pytest.mark.parametrize("given", ["", "--xla_a=1"])
def test_the_tpu_compiler_gets_larger_stacks_once(monkeypatch, given):
  monkeypatch.setenv("LIBTPU_INIT_ARGS", given)
  once = devices_lib.libtpu_arguments()
  assert once.split()[: len(given.split())] == given.split()
  assert "--xla_internal_thread_stack_size_bytes=8388608" in once
  monkeypatch.setenv("LIBTPU_INIT_ARGS", once)
  assert devices_lib.libtpu_arguments() == once
