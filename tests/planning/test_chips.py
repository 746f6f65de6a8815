"""Topologies and their links."""

import pytest

from dpr_jax.core import errors
from dpr_jax.planning import chips


def test_topologies_are_read():
  pod = chips.Topology.parse("v5e:16x16")
  assert (pod.cores, pod.hosts) == (256, 64)
  one_host = chips.Topology.parse("v5e:2x4")
  assert (one_host.cores, one_host.hosts) == (8, 1)
  assert chips.Topology.parse("v4:2x2x4").hosts == 4
  assert chips.Topology.parse("v6e:1x1").cores == 1
  two_dies = chips.Topology.parse("tpu7x:2x4x2")
  assert (two_dies.chips, two_dies.cores, two_dies.hosts) == (16, 32, 4)


@pytest.mark.parametrize(
  "name",
  [
    *("", "v5e", "v5e:16", "v4:2x2", "v9:2x2", "v5e:0x4", "v5e:2x4x1"),
    "tpu7x:2x2",
  ],
)
def test_other_names_are_refused(name):
  with pytest.raises(errors.InputError, match="--topology="):
    chips.Topology.parse(name)


def test_links():
  """By hand: both directions of two rings; half without wrap-around."""
  pod, host = chips.Topology.parse("v5e:16x16"), chips.Topology.parse("v5e:2x4")
  assert pod.bandwidth() == 4 * 45e9
  assert host.bandwidth() == 2 * 45e9
  size = 871e6
  assert pod.seconds("all-reduce", size) == pytest.approx(
    2 * 255 / 256 * size / 180e9
  )
  # LIMITS: 871 MB over 8 chips without wrap-around, 19 ms at peak or less.
  assert 0.015 < host.seconds("all-reduce", size) < 0.02
  assert host.seconds("all-gather", size) == pytest.approx(
    host.seconds("all-reduce", size) / 2
  )
  assert pod.seconds("collective-permute", 45e9) == 1.0
  assert chips.Topology.parse("v5e:1x1").seconds("all-reduce", 1.0) == 0.0


def test_two_devices_of_a_chip_share_its_links():
  """1,200e9 bytes/s a chip: 6 links, 2 directions, 2 devices."""
  torus = chips.Topology.parse("tpu7x:4x4x4")
  assert torus.bandwidth() == 1200e9 / 2 / 2
  assert chips.Topology.parse("tpu7x:2x2x1").bandwidth() == 2 * 50e9
  one = chips.Topology.parse("tpu7x:1x1x1")
  assert one.seconds("all-gather", 100e9) == 1.0  # half of it over 50e9


def test_peak_by_jaxs_name_of_a_device():
  assert chips.peak_flops("TPU v5 lite") == 197e12
  assert chips.peak_flops("TPU v6 lite") == 918e12
  assert chips.peak_flops("TPU7x") == 1153.5e12  # of a device, half a chip
  assert chips.peak_flops("cpu") is None
