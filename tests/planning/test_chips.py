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


@pytest.mark.parametrize(
  "name", ["", "v5e", "v5e:16", "v4:2x2", "v9:2x2", "v5e:0x4", "v5e:2x4x1"]
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


def test_peak_by_jaxs_name_of_a_device():
  assert chips.peak_flops("TPU v5 lite") == 197e12
  assert chips.peak_flops("TPU v6 lite") == 918e12
  assert chips.peak_flops("cpu") is None
