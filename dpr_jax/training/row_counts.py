"""Counts, with all processes, what packed rows must hold in a run's steps.

Input: a source of packed batches (`packed_batches`, `packed_reader_batches`).
Output: counts that are the same in all processes, for `packing.Shapes`.
"""

import time
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from absl import logging

from dpr_jax.core import collectives, multiprocess
from dpr_jax.data import packing


@runtime_checkable
class Source(Protocol):
  """A source whose shapes are not known yet."""

  def counted_by_me(self, steps: range) -> range:
    """Those of some steps that this process counts."""
    ...

  def count(self, steps: Any) -> tuple[tuple[packing.Counts, ...], int]:
    """What the rows must hold in some steps, and tokens of the texts."""
    ...


def of_all(
  source: Source, steps: range
) -> tuple[tuple[packing.Counts, ...], int]:
  """What the rows of all processes must hold in some steps; tokens of these.

  All processes call it at the same time.
  """
  counts, tokens = source.count(source.counted_by_me(steps))
  multiprocess.barrier()  # the exchange has a time-out, counting has none
  tokens = int(collectives.gather(np.array([tokens], np.int64)).sum())
  return _most(counts), tokens


def _most(counts: Sequence[packing.Counts]) -> tuple[packing.Counts, ...]:
  """What holds the counts of all processes."""
  mine = [[each.width, *each.longest] for each in counts]
  flat = np.array([number for each in mine for number in each], np.int64)
  most, found = collectives.gather(flat).max(axis=0).tolist(), []
  for each in mine:
    width, *longest = most[: len(each)]
    most = most[len(each) :]
    found.append(packing.Counts(width, tuple(longest)))
  return tuple(found)


def log(stage: str, steps: int, tokens: int, places: int, began: float) -> None:
  """Logs tokens and places.

  Args:
    stage: name of the stage.
    steps: number of steps.
    tokens: tokens of all steps.
    places: places of one step.
    began: `time.monotonic()` when counting began.
  """
  logging.info(
    "%s: %d steps have %d tokens a step in %.3f times as many places (counted"
    " in %.1f s)",
    stage,
    steps,
    tokens / steps,
    places * steps / tokens,
    time.monotonic() - began,
  )
