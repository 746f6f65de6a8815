"""What a TPU chip can do at most, and what a topology's links can carry.

Peak figures, quoted: Google Cloud's TPU documentation
(https://cloud.google.com/tpu/docs/v5e and its siblings for v4, v5p, v6e) and
"How to Scale Your Model" (https://jax-ml.github.io/scaling-book), which is also
where the way to count the time of a collective comes from.
"""

import dataclasses
import math
import re

from dpr_jax.core import errors


@dataclasses.dataclass(frozen=True)
class Chip:
  """Peak figures of one chip, which is one core to JAX.

  Attributes:
    flops: bfloat16 operations per second.
    hbm_bytes: memory that a program may use, by its compiler's own message.
    hbm_bandwidth: bytes per second.
    link_bandwidth: bytes per second of one link, one way.
    axes: of the mesh or torus that chips form.
    wrap: a slice's axis closes to a ring where its size is a multiple of this.
    config: the compiler's name for a chip as one core; "megacore" joins two.
  """

  flops: float
  hbm_bytes: int
  hbm_bandwidth: float
  link_bandwidth: float
  axes: int
  wrap: int
  config: str


def _gib(size: float) -> int:
  return int(size * 2**30)


CHIPS = {
  "v4": Chip(275e12, _gib(30.75), 1200e9, 45e9, 3, 4, "megacore"),
  "v5e": Chip(197e12, _gib(15.75), 819e9, 45e9, 2, 16, "default"),
  "v5p": Chip(459e12, _gib(95.74), 2765e9, 90e9, 3, 4, "megacore"),
  "v6e": Chip(918e12, _gib(31.25), 1638e9, 90e9, 2, 16, "default"),
}


@dataclasses.dataclass(frozen=True)
class Topology:
  """Some chips and how they are connected.

  Attributes:
    name: as given, "v5e:16x16".
    chip: their kind.
    shape: chips along each axis.
  """

  name: str
  chip: Chip
  shape: tuple[int, ...]

  @classmethod
  def parse(cls, name: str) -> "Topology":
    """Reads "v5e:16x16".

    Raises:
      InputError: an unknown chip, or not as many axes as it has.
    """
    match = re.fullmatch(r"(v\w+):(\d+(?:x\d+)*)", name)
    chip = CHIPS.get(match[1]) if match else None
    shape = tuple(int(n) for n in match[2].split("x")) if match else ()
    if chip is None or len(shape) != chip.axes or 0 in shape:
      raise errors.InputError(
        f"--topology={name}: must be a chip and its axes, as v4:2x2x4,"
        " v5e:16x16, v5p:2x2x1 or v6e:2x4"
      )
    return cls(name, chip, shape)

  @property
  def cores(self) -> int:
    """Chips, each one core to JAX."""
    return math.prod(self.shape)

  @property
  def host(self) -> tuple[int, int, int]:
    """Chips of one host along three axes: 4, or the 8 of a 2x4 slice."""
    if self.shape == (2, 4):
      return (2, 4, 1)
    return (*(min(size, 2) for size in self.shape[:2]), 1)

  @property
  def hosts(self) -> int:
    """Machines, that is, processes."""
    return self.cores // math.prod(self.host)

  def bandwidth(self) -> float:
    """Bytes per second at which all cores gather an array together.

    Both directions of every axis work at once; an axis that is no ring carries
    half of that.
    """
    total = 0.0
    for size in self.shape:
      if size > 1:
        ring = size % self.chip.wrap == 0
        total += self.chip.link_bandwidth * (2 if ring else 1)
    return total

  def seconds(self, kind: str, size: float | int) -> float:
    """Time of one collective over all cores at the links' peak.

    Args:
      kind: "all-gather", "reduce-scatter", "all-reduce", "all-to-all" or
        "collective-permute" (to a neighbour).
      size: bytes of the whole array (gathered, before it is scattered,
        reduced), of what a core sends for a permute.
    """
    if self.cores == 1:
      return 0.0
    if kind == "collective-permute":
      return size / self.chip.link_bandwidth
    share = (self.cores - 1) / self.cores
    times = 2 if kind == "all-reduce" else 1
    return times * share * size / self.bandwidth()
