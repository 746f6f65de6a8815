"""What `plan --pareto` tries, leaves out and prints."""

import pytest

from dpr_jax.planning import chips, pareto, tpu_plan

pytestmark = pytest.mark.quick


def _step(fits):
  return tpu_plan.Step(fits, {"total": 2**30}, 2**34, 1)


def test_more_than_what_does_not_fit_is_not_tried():
  """64 per device: 32 to 256; chunks divide the questions and are fewer."""
  every = pareto.choices(64)
  assert [c for c in every if c.remat == "none" and not c.chunk] == [
    pareto.Choice(n, "none", 0) for n in (32, 64, 128, 256)
  ]
  assert [c.questions for c in every if c.chunk == 64] == [128, 256]
  asked = []

  def compiled(choice):
    asked.append(choice)
    return _step(choice.remat != "none" or choice.chunk > 0)

  found = pareto.tried(every, compiled)
  assert [c for c in asked if c.remat == "none" and not c.chunk] == [
    pareto.Choice(32, "none", 0)
  ]
  assert [choice for choice, _ in found] == [
    c for c in every if c.remat != "none" or c.chunk
  ]


def test_the_table_marks_what_none_beats():
  found = [
    pareto.Outcome(pareto.Choice(32, "none", 0), 2**30, 900.0),
    pareto.Outcome(pareto.Choice(64, "none", 0), 2**31, 1000.0),
    pareto.Outcome(pareto.Choice(64, "layer", 0), 2**30, 800.0),
    pareto.Outcome(pareto.Choice(128, "none", 32), 2**30, 700.0),
  ]
  lines = pareto.table(found, chips.Topology.parse("v5e:2x2")).splitlines()
  assert lines[1:] == [
    "* 64 per device, remat none, no cache: 1,000 questions/s, 2.00 GiB",
    "  32 per device, remat none, no cache: 900 questions/s, 1.00 GiB",
    "  64 per device, remat layer, no cache: 800 questions/s, 1.00 GiB",
    "* 128 per device, remat none, gradient cache, chunks of 32: 700"
    " questions/s, 1.00 GiB",
  ]
