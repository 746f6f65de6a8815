"""Which checkpoint is used: by hand, on rows of one metric."""

import pytest

from dpr_jax.training import checkpoint_selection

ROWS = [{"step": step} for step in (2, 4, 6, 8)]


def _chosen(metric, values, saved=(2, 4, 6, 8)):
  rule = checkpoint_selection.Selection(metric, 1)
  better = [
    rule.is_best({**row, metric: value})
    for row, value in zip(ROWS, values, strict=True)
  ]
  return better, rule.steps(saved)


@pytest.mark.parametrize(
  ("metric", "values"),
  [
    ("dev_loss", (3.0, 1.0, 2.0, 1.0)),
    ("dev_average_rank", (9.0, 2.5, 3.0, 2.5)),
    ("dev_top1", (0.1, 0.5, 0.3, 0.5)),
    ("dev_gold_top20", (0.0, 0.9, 0.8, 0.9)),
  ],
)
def test_the_first_of_equally_good_ones_is_the_best(metric, values):
  """The less the better of losses and ranks, the more of shares."""
  better, (steps, why) = _chosen(metric, values)
  assert better == [True, True, False, False]
  assert steps == [4]
  assert why == {"why": f"best {metric}", "value": values[1]}


def test_a_best_one_that_was_not_saved_gives_way_to_the_last():
  assert _chosen("dev_loss", (3, 1, 2, 4), (2, 6))[1][0] == [6]


def test_a_resumed_run_recalls_only_what_it_still_has():
  """Step 4 was the best, and its checkpoint is gone."""
  rows = [
    {"step": step, "dev_loss": loss}
    for step, loss in ((2, 3.0), (4, 1.0), (6, 2.0))
  ]
  rule = checkpoint_selection.Selection("dev_loss", 1)
  rule.recall([{"step": 2, "loss": 0.0}, *rows], saved=(2, 6))
  assert (rule.best_step, rule.best_value) == (6, 2.0)
  assert rule.is_best({"step": 8, "dev_loss": 1.5})


def test_the_mean_of_the_last():
  rule = checkpoint_selection.Selection("", 2)
  assert not rule.is_best({"step": 2, "dev_loss": 1.0})
  assert rule.steps([6, 2, 4, 4]) == ([4, 6], {"why": "mean of the last"})
  last = checkpoint_selection.Selection("", 1)
  assert last.steps([6, 2]) == ([6], {"why": "the last"})


def test_the_mean_is_of_one_round():
  """Parameters started again after steps 3 and 7."""
  rule = checkpoint_selection.Selection("", 3, starts=(3, 7))
  for saved, used in (
    ([1, 2, 3], [1, 2, 3]),  # nothing has started again
    ([2, 3, 4, 6], [4, 6]),
    ([4, 5, 6, 7], [5, 6, 7]),
    ([6, 7, 8], [8]),
  ):
    assert rule.steps(saved)[0] == used
