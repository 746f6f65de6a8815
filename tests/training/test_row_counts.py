"""Shapes of the rows of each step, from counts of all steps."""

import numpy as np
import pytest

from dpr_jax.data import packing
from dpr_jax.training import row_counts

pytestmark = pytest.mark.quick
ROWS = (2, 4)  # of questions, and of passages
LONGEST = ((9, 5), (40, 30))


@pytest.fixture(autouse=True)
def _programs_cost_nothing(monkeypatch):
  monkeypatch.setattr(packing, "_PROGRAM", 0)


def _counted(*widths, first=0, longest=LONGEST):
  return row_counts.Counted(first, np.array(widths), longest, 1000)


def _widths(shapes):
  return [tuple(kind.width for kind in each) for each in shapes.shapes]


def test_a_step_has_the_first_shapes_that_hold_it():
  """Both kinds: a step with many tokens of one kind has the wide shapes."""
  counted = _counted((16, 56), (8, 56), (16, 64), (16, 64), (16, 56), first=3)
  shapes = row_counts.StepShapes.of(counted, ROWS, 2)
  assert _widths(shapes) == [(16, 56), (16, 64)]
  assert shapes.chosen == (0, 0, 1, 1, 0)
  assert [kind.width for kind in shapes.of_step(5)] == [16, 64]
  assert shapes.first_of_each(range(3, 8)) == [3, 5]
  assert shapes.first_of_each(range(4, 5)) == [4]
  # 16 * 2 + 56 * 4 = 256 places, or 288.
  assert shapes.places(range(3, 8), ROWS) == 3 * 256 + 2 * 288
  for step in (2, 8):
    with pytest.raises(IndexError, match=f"step {step} was not counted"):
      shapes.of_step(step)
  # All shapes have the tiles that hold the longest texts of any step.
  for asked, read in shapes.shapes:
    assert asked.tiles == (packing.Tile(2, 16),)
    assert read.tiles == (packing.Tile(2, 40),)


def test_later_steps_keep_the_shapes_that_hold_them():
  """Those of a wider step, or of longer texts, do not."""
  counted = _counted((16, 56), (16, 64))
  before = row_counts.StepShapes.of(counted, ROWS, 2)

  def after(*widths, longest=LONGEST):
    whole = counted + _counted(*widths, first=2, longest=longest)
    return row_counts.StepShapes.of(whole, ROWS, 2, before)

  kept = after((8, 48), (16, 64))
  assert kept.shapes == before.shapes
  assert kept.chosen == (0, 1, 0, 1)
  # 16 and 40: tiles are multiples of 8.
  assert after((8, 48), longest=((15, 15), (39, 8))).shapes == before.shapes
  # Places: 2 * 256 + 2 * 304; the other two narrow ones give 16 more.
  wider = after((16, 48), (24, 64))
  assert _widths(wider) == [(16, 56), (24, 64)]
  assert wider.chosen == (0, 1, 0, 1)
  longer = after((8, 48), longest=((9, 5), (41, 8)))
  assert _widths(longer)[-1] == (16, 64)
  assert longer.shapes[0][1].tiles[0].length == 48


class _Source:
  """Step s of process p has s + 1 tokens in its slots, and p more."""

  def __init__(self, process=0):
    self._process = process

  rows = (2,)

  def none(self):
    return (packing.Counts.none(2),)

  def counted_by_me(self, steps):
    return steps[self._process :: 2]

  def count(self, step):
    longest = (step + 1 + self._process, 1)
    return (packing.Counts(8 * (step + 1), longest),), 10 * step


def test_processes_count_together():
  """Each some of the steps 2 to 5; of no step, nothing is counted."""
  parts = [row_counts.of_mine(_Source(p), range(2, 6)) for p in range(2)]
  assert parts[1].widths.tolist() == [[0], [32], [0], [48]]
  counted = row_counts.joined(parts)
  assert counted.first == 2
  assert counted.widths.tolist() == [[24], [32], [40], [48]]
  assert counted.longest == ((7, 1),)
  assert counted.tokens == 140
  one = row_counts.of_mine(_Source(1), range(2, 3))
  assert (one.widths.tolist(), one.longest, one.tokens) == ([[0]], ((0, 0),), 0)


def test_the_log_line_has_tokens_and_places(caplog):
  """Five steps of 200 tokens; 256 places, 288 in the two that need them."""
  counted = _counted((16, 56), (16, 56), (16, 64), (16, 64), (16, 56))
  with caplog.at_level("INFO", logger="absl"):
    for most in (1, 2):
      shapes = row_counts.StepShapes.of(counted, ROWS, most)
      row_counts.log("train", counted, shapes, ROWS, 0.0)
  line = "train: 5 steps have 200 tokens a step in %s (counted in "
  assert line % "1.440 times as many places, in rows of one width" in (
    caplog.text
  )
  assert line % "1.344 times as many places, in rows of 2 widths" in caplog.text
