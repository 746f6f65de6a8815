"""Counts, with all processes, what packed rows must hold, and shapes them.

Input: a source of packed batches (`packed_batches`, `packed_reader_batches`).
Output: counts of the steps of a run, and the shapes of the rows of each step.
Both are the same in all processes.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from absl import logging
from jaxtyping import Int

from dpr_jax.core import collectives, multiprocess
from dpr_jax.data import packing


@runtime_checkable
class Source(Protocol):
  """A source whose shapes are not known yet."""

  @property
  def rows(self) -> tuple[int, ...]:
    """Rows of all devices in a step, of each kind of text."""
    ...

  def none(self) -> tuple[packing.Counts, ...]:
    """The counts of no step, of each kind of text."""
    ...

  def counted_by_me(self, steps: range) -> range:
    """Those of some steps that this process counts."""
    ...

  def count(self, step: int) -> tuple[tuple[packing.Counts, ...], int]:
    """What the rows must hold in a step, and tokens of its texts."""
    ...


@dataclasses.dataclass(frozen=True, eq=False)
class Counted:
  """What the rows must hold in consecutive steps.

  Attributes:
    first: the first step.
    widths: width that each step needs, of each kind of text.
    longest: of each kind, tokens of the longest text of every slot in any step.
    tokens: tokens of all texts of the steps.
  """

  first: int
  widths: Int[np.ndarray, "steps kinds"]
  longest: tuple[tuple[int, ...], ...]
  tokens: int

  def __add__(self, after: "Counted") -> "Counted":
    """The counts of these steps and those after them."""
    return Counted(
      self.first,
      np.concatenate([self.widths, after.widths]),
      _longest([self, after]),
      self.tokens + after.tokens,
    )


def of_all(source: Source, steps: range) -> Counted:
  """What the rows of all processes must hold in some steps.

  All processes call it at the same time.
  """
  mine = of_mine(source, steps)
  multiprocess.barrier()  # the exchange has a time-out, counting has none
  arrays = [np.array([mine.tokens], np.int64), mine.widths]
  arrays += [np.array(each, np.int64) for each in mine.longest]
  return joined(
    [
      Counted(
        steps.start,
        widths,
        tuple(tuple(each.tolist()) for each in longest),
        int(tokens),
      )
      for (tokens,), widths, *longest in zip(
        *map(collectives.gather, arrays), strict=True
      )
    ]
  )


def of_mine(source: Source, steps: range) -> Counted:
  """What this process counts; widths are 0 in the steps of others."""
  counts, tokens = source.none(), 0
  widths = np.zeros((len(steps), len(counts)), np.int64)
  for step in source.counted_by_me(steps):
    found, tokens_of_step = source.count(step)
    widths[step - steps.start] = [each.width for each in found]
    counts = tuple(a | b for a, b in zip(counts, found, strict=True))
    tokens += tokens_of_step
  longest = tuple(each.longest for each in counts)
  return Counted(steps.start, widths, longest, tokens)


def joined(parts: Sequence[Counted]) -> Counted:
  """The counts of all processes, of the same steps."""
  return Counted(
    parts[0].first,
    np.max([part.widths for part in parts], axis=0),
    _longest(parts),
    sum(part.tokens for part in parts),
  )


def _longest(parts: Sequence[Counted]) -> tuple[tuple[int, ...], ...]:
  """The longest texts of all slots in several counts."""
  return tuple(
    tuple(map(max, *kind, [0] * len(kind[0])))
    for kind in zip(*(part.longest for part in parts), strict=True)
  )


@dataclasses.dataclass(frozen=True)
class StepShapes:
  """The shapes of the rows of each step.

  Attributes:
    shapes: shapes to choose from, each of all kinds of text; the widest last.
      They differ in their widths alone.
    first: first step that has a choice.
    chosen: index of its shapes, of each step from `first` on.
  """

  shapes: tuple[tuple[packing.Shapes, ...], ...]
  first: int
  chosen: tuple[int, ...]

  @classmethod
  def of(
    cls,
    counted: Counted,
    rows: Sequence[int],
    most: int,
    before: "StepShapes | None" = None,
  ) -> "StepShapes":
    """Shapes that hold the counted steps in the fewest places.

    Args:
      counted: counts of the steps.
      rows: rows of all devices in a step, of each kind of text.
      most: number of shapes at most.
      before: shapes of earlier steps, which are used if they hold these.
    """
    if before is not None and _hold(before.shapes[-1], counted):
      shapes = before.shapes
    else:
      shapes = tuple(
        tuple(
          packing.Shapes.of(packing.Counts(width, longest))
          for width, longest in zip(each, counted.longest, strict=True)
        )
        for each in packing.choose_widths(counted.widths, rows, most).tolist()
      )
    held = [
      (counted.widths <= [kind.width for kind in each]).all(axis=1)
      for each in shapes
    ]
    chosen = np.argmax(held, axis=0)  # the first that holds the step
    return cls(shapes, counted.first, tuple(chosen.tolist()))

  def of_step(self, step: int) -> tuple[packing.Shapes, ...]:
    """The shapes of a step, of each kind of text.

    Raises:
      IndexError: the step was not counted.
    """
    if not 0 <= step - self.first < len(self.chosen):
      raise IndexError(f"step {step} was not counted")
    return self.shapes[self.chosen[step - self.first]]

  def first_of_each(self, steps: range) -> list[int]:
    """The first of some steps with each shape that one of them has."""
    found: dict[tuple[packing.Shapes, ...], int] = {}
    for step in steps:
      found.setdefault(self.of_step(step), step)
    return list(found.values())

  def places(self, steps: range, rows: Sequence[int]) -> int:
    """Places of some steps in all rows of all devices."""
    return sum(
      count * kind.width
      for step in steps
      for count, kind in zip(rows, self.of_step(step), strict=True)
    )


def _hold(shapes: Sequence[packing.Shapes], counted: Counted) -> bool:
  """Whether rows of these shapes hold every counted step."""
  return all(
    kind.holds(packing.Counts(int(width), longest))
    for kind, width, longest in zip(
      shapes, counted.widths.max(axis=0), counted.longest, strict=True
    )
  )


def log(
  stage: str,
  counted: Counted,
  shapes: StepShapes,
  rows: Sequence[int],
  began: float,
) -> None:
  """Logs tokens and places.

  Args:
    stage: name of the stage.
    counted: counts of the steps.
    shapes: their shapes.
    rows: rows of all devices in a step, of each kind of text.
    began: `time.monotonic()` when counting began.
  """
  steps = len(counted.widths)
  places = shapes.places(range(counted.first, counted.first + steps), rows)
  widths = "rows of one width"
  if len(shapes.shapes) > 1:
    widths = f"rows of {len(shapes.shapes)} widths"
  logging.info(
    "%s: %d steps have %d tokens a step in %.3f times as many places, in %s"
    " (counted in %.1f s)",
    stage,
    steps,
    counted.tokens / steps,
    places / counted.tokens,
    widths,
    time.monotonic() - began,
  )
