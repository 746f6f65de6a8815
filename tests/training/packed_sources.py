"""Shapes of packed sources as several processes find them, in one."""

import dataclasses

from dpr_jax.training import row_counts


def with_shapes(shares, steps, most):
  """The sources of all processes, with the shapes that they find together.

  Args:
    shares: the sources, of each process.
    steps: steps to count.
    most: number of shapes at most.
  """
  counted = row_counts.joined(
    [row_counts.of_mine(source, steps) for source in shares]
  )
  shapes = row_counts.StepShapes.of(counted, shares[0].rows, most)
  return [dataclasses.replace(source, shapes=shapes) for source in shares]
