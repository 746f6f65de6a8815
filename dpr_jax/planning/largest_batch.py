"""`dpr-jax plan --search`: finds the largest batch or chunk that fits.

Without the gradient cache, memory grows with the questions per device, and the
largest batch is searched.  With it, memory grows with the chunk size, and the
largest chunk (fewest chunks) is searched for the given batch.
"""

from collections.abc import Callable

import ml_collections

from dpr_jax.core import errors
from dpr_jax.planning import chips, text_lengths, tpu_plan


def largest(
  config: ml_collections.ConfigDict,
  topology: chips.Topology,
  *,
  lengths: text_lengths.Lengths | None = None,
  quick: bool = True,
  say: Callable[[str], None] = lambda line: None,
) -> ml_collections.ConfigDict:
  """The config with the largest batch or chunk that fits.

  Raises:
    InputError: not even the smallest one fits.
  """
  config = tpu_plan.resolved(config)
  on = tpu_plan.devices(topology)

  def fits(value: int) -> bool:
    changed = _with(config, value, topology.cores)
    step, _ = tpu_plan.compile_train(
      changed, topology, on, lengths, quick=quick
    )
    shown = _shown(config, value, topology.cores)
    say(f"{_name(config)}={shown}: {step.said()}")
    return step.fits

  best = last_that_fits(_candidates(config, topology.cores), fits)
  if best is None:
    raise errors.InputError(
      f"{_name(config)}: even the smallest does not fit on {topology.name}: set"
      " config.train.gradient_cache=True, config.train.loss=ring,"
      " config.train.shard_optimizer=True"
    )
  return _with(config, best, topology.cores)


def last_that_fits(
  values: list[int], fits: Callable[[int], bool]
) -> int | None:
  """The largest of ascending values that fits; None = none fits.

  Assumes that all values below one that fits also fit.  A value is expensive to
  test (a compilation), and slower if it does not fit, so the search starts from
  the smallest with doubling strides and continues between the last two.
  """
  low, high = 0, len(values)  # values[:low] fit, values[high:] do not
  stride = 1
  while low < high:
    place = min(low + stride - 1, high - 1)
    if fits(values[place]):
      low, stride = place + 1, stride * 2
    else:
      high, stride = place, 1
  return values[low - 1] if low else None


def _candidates(config: ml_collections.ConfigDict, cores: int) -> list[int]:
  """Values to try: questions per device (powers of two), or chunk sizes.

  Chunk sizes are divisors of a device's questions, and so of its passages.
  """
  if not config.train.gradient_cache:
    return [2**n for n in range(15)]
  questions = max(1, config.train.batch_size // cores)
  return [n for n in range(1, questions + 1) if questions % n == 0]


def _name(config: ml_collections.ConfigDict) -> str:
  cached = config.train.gradient_cache
  return "config.train.chunk_size" if cached else "config.train.batch_size"


def _shown(config: ml_collections.ConfigDict, value: int, cores: int) -> int:
  return value if config.train.gradient_cache else value * cores


def _with(
  config: ml_collections.ConfigDict, value: int, cores: int
) -> ml_collections.ConfigDict:
  changed = config.copy_and_resolve_references()
  with changed.unlocked():
    if config.train.gradient_cache:
      changed.train.chunk_size = value
    else:
      changed.train.batch_size = value * cores
  return changed
