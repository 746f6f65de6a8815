"""Peak figures of TPU chips, and the time of collectives in a topology.

Peak figures are quoted from Google Cloud's TPU documentation
(https://cloud.google.com/tpu/docs/v5e, and the same for v4, v5p, v6e, tpu7x)
and from "How to Scale Your Model" (https://jax-ml.github.io/scaling-book),
which also gives the formulas for the time of a collective.
"""

import dataclasses
import math
import re

from dpr_jax.core import errors


@dataclasses.dataclass(frozen=True)
class Chip:
  """Peak figures of one JAX device, which is a chip or one of its dies.

  Attributes:
    flops: bfloat16 operations per second.
    hbm_bytes: memory that a program may use, from the compiler's messages;
      the least of those of libtpu 0.0.42 and 0.0.50.1.
    hbm_bandwidth: bytes per second between HBM and chip.
    link_bandwidth: bytes per second of one link in one direction.
    axes: number of axes of the mesh or torus of chips.
    wrap: an axis is a ring if its size is a multiple of this.
    config: libtpu's name of the mode in which a chip is one device; "megacore"
      joins the two TensorCores of a chip.
    devices: devices of a chip; they share its links to other chips, and
      `link_bandwidth` is the share of one.
  """

  flops: float
  hbm_bytes: int
  hbm_bandwidth: float
  link_bandwidth: float
  axes: int
  wrap: int
  config: str
  devices: int = 1


def _gib(size: float) -> int:
  return int(size * 2**30)


CHIPS = {
  "v4": Chip(275e12, _gib(30.75), 1200e9, 45e9, 3, 4, "megacore"),
  "v5e": Chip(197e12, _gib(15.75), 819e9, 45e9, 2, 16, "default"),
  "v5p": Chip(459e12, _gib(95.73), 2765e9, 90e9, 3, 4, "megacore"),
  "v6e": Chip(918e12, _gib(31.24), 1638e9, 90e9, 2, 16, "default"),
  # 2,307e12 operations, 192 GiB and 7,380e9 bytes/s a chip, and 1,200e9 bytes/s
  # over its 6 links in both directions.  The faster link between the two dies
  # of a chip is not counted.
  "tpu7x": Chip(1153.5e12, _gib(94.74), 3690e9, 50e9, 3, 4, "default", 2),
}

# JAX's names of these chips, `Device.device_kind`.
_KINDS = {
  "TPU v4": "v4",
  "TPU v5 lite": "v5e",
  "TPU v5e": "v5e",
  "TPU v5": "v5p",
  "TPU v5p": "v5p",
  "TPU v6 lite": "v6e",
  "TPU v6e": "v6e",
  "TPU7x": "tpu7x",
}


def peak_flops(device_kind: str) -> float | None:
  """Bfloat16 operations per second of a JAX device; None = not known."""
  name = _KINDS.get(device_kind)
  return CHIPS[name].flops if name else None


@dataclasses.dataclass(frozen=True)
class Topology:
  """A slice: the type of its chips and their grid.

  Attributes:
    name: name as typed, for example "v5e:16x16".
    chip: type of the chips.
    shape: number of chips along each axis.
  """

  name: str
  chip: Chip
  shape: tuple[int, ...]

  @classmethod
  def parse(cls, name: str) -> "Topology":
    """Reads "v5e:16x16".

    Raises:
      InputError: an unknown chip, or a wrong number of axes for it.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    chip = CHIPS.get(match[1]) if match else None
    shape = tuple(int(n) for n in match[2].split("x")) if match else ()
    if chip is None or len(shape) != chip.axes or 0 in shape:
      raise errors.InputError(
        f"--topology={name}: must be a chip and its axes, as v4:2x2x4,"
        " v5e:16x16, v5p:2x2x1, v6e:2x4 or tpu7x:2x2x1"
      )
    return cls(name, chip, shape)

  @property
  def chips(self) -> int:
    """Number of chips."""
    return math.prod(self.shape)

  @property
  def cores(self) -> int:
    """Number of JAX devices."""
    return self.chips * self.chip.devices

  @property
  def host(self) -> tuple[int, int, int]:
    """Chips of one host along three axes: 4 chips, or 8 in a 2x4 slice."""
    if self.shape == (2, 4):
      return (2, 4, 1)
    return (*(min(size, 2) for size in self.shape[:2]), 1)

  @property
  def hosts(self) -> int:
    """Number of hosts, which is the number of processes."""
    return self.chips // math.prod(self.host)

  def bandwidth(self) -> float:
    """Bytes per second that a device receives in an all-gather.

    All axes are used at once, and both directions of an axis that is a ring; an
    axis that is not a ring has half of the bandwidth.  Two dies of one chip are
    counted as joined by one link, which is less than they have.
    """
    total = 0.0
    for size in self.shape:
      if size > 1:
        ring = size % self.chip.wrap == 0
        total += self.chip.link_bandwidth * (2 if ring else 1)
    return total or self.chip.link_bandwidth

  def seconds(self, kind: str, size: float | int) -> float:
    """Seconds of one collective over all devices at the links' peak.

    Args:
      kind: "all-gather", "reduce-scatter", "all-reduce", "all-to-all" or
        "collective-permute" (to the next device).
      size: bytes of the whole array: after a gather, before a scatter, of the
        reduced array; for a permute, bytes that a device sends.
    """
    if self.cores == 1:
      return 0.0
    if kind == "collective-permute":
      return size / self.chip.link_bandwidth
    share = (self.cores - 1) / self.cores
    times = 2 if kind == "all-reduce" else 1
    return times * share * size / self.bandwidth()
