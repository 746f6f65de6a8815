"""Filters of candidates and draws among them, by hand."""

import math

import numpy as np
import pytest

from dpr_jax.core import config as config_lib
from dpr_jax.data import same_passages
from dpr_jax.retrieval import negative_filters

# Scores that float32 holds exactly.
HITS = negative_filters.Hits(
  np.array([[3, 1, 4, 9, -1]]),
  np.array([[10.0, 9.75, 9.5, 4.0, 0.0]], np.float32),
  np.array([10.0], np.float32),
)


def _passed(positive=10.0, scores=HITS.scores, **options):
  filters = negative_filters.Filters(keep=2, **options)
  hits = negative_filters.Hits(
    HITS.rows, scores, np.array([positive], np.float32)
  )
  return np.flatnonzero(filters.passed(hits)[0]).tolist()


@pytest.mark.parametrize(
  ("options", "ranks"),
  [
    ({}, [0, 1, 2, 3]),
    ({"range_min": 1}, [1, 2, 3]),
    ({"range_min": 4}, []),
    ({"max_score": 9.75}, [1, 2, 3]),
    ({"min_score": 9.75}, [0, 1]),
    ({"absolute_margin": 0.0}, [0, 1, 2, 3]),
    ({"absolute_margin": 0.25}, [1, 2, 3]),
    ({"relative_margin": 0.0}, [0, 1, 2, 3]),
    ({"relative_margin": 0.05}, [2, 3]),  # <= 9.5
    ({"relative_margin": 1.0}, []),  # <= 0
    ({"relative_margin": 0.05, "absolute_margin": 1.0}, [3]),
    ({"relative_margin": 0.05, "positive": 20.0}, [0, 1, 2, 3]),
    ({"relative_margin": 0.05, "positive": math.nan}, [0, 1, 2, 3]),
    ({"absolute_margin": 3.0, "positive": math.nan}, [0, 1, 2, 3]),
  ],
)
def test_what_passes(options, ranks):
  assert _passed(**options) == ranks


def test_a_margin_lies_below_a_negative_score():
  """10 % below -10 is -11, where the product 0.9 * -10 would be above it."""
  scores = np.array([[-9.5, -10.0, -10.5, -11.0, 0.0]], np.float32)
  assert _passed(-10.0, scores, relative_margin=0.1) == [3]


def test_the_best_positive_counts():
  best = negative_filters.best_of(
    [np.float32([1, 3, 2]), np.float32([]), np.float32([-4])]
  )
  np.testing.assert_array_equal(best, np.float32([3, np.nan, -4]))


def test_filters_of_a_config():
  config = config_lib.base_config()
  assert negative_filters.Filters.of(config) == negative_filters.Filters(30)
  config.seed = 3
  changed = {"keep": 7, "range_min": 2, "max_score": 1.5, "min_score": -1.0}
  changed |= {"absolute_margin": 0.0, "relative_margin": 0.05}
  changed |= {"sampling": "score"}
  config.mine.update(changed)
  found = negative_filters.Filters.of(config)
  assert found == negative_filters.Filters(**changed, seed=3)


def _draw(sampling, scores, question="q", keep=2, seed=0):
  filters = negative_filters.Filters(keep=keep, sampling=sampling, seed=seed)
  return filters.draw(question, np.array(scores, np.float32)).tolist()


def test_top_takes_the_first():
  assert _draw("top", [1, 9, 5, 7]) == [0, 1]  # in the order of the ranks
  assert _draw("top", [1]) == [0]


def test_random_draws_depend_on_seed_and_question_alone():
  scores = np.arange(20.0)
  for seed in (0, 1):
    for question in ("q", "who"):
      key = (seed, 7, same_passages.text_digest(question))
      wanted = np.random.default_rng(key).choice(20, 2, replace=False)
      found = _draw("random", scores, question, seed=seed)
      assert found == sorted(wanted.tolist())
  assert _draw("random", [3, 2]) == [0, 1]  # no more than are kept
  assert _draw("score", [3, 2]) == [0, 1]


def test_draws_by_score_follow_the_softmax():
  """Scores 0 and 2 have the standard deviation 1: e^2 / (1 + e^2) = 0.881.

  The chances are those of any scale of the scores; equal scores are drawn
  equally often.
  """
  questions = [f"question {number}" for number in range(2000)]
  for scores in ([0, 2], [50, 450]):
    second = sum(_draw("score", scores, q, keep=1)[0] for q in questions)
    assert abs(second / 2000 - 0.881) < 0.022  # three standard errors
  same = sum(_draw("score", [1, 1], q, keep=1)[0] for q in questions)
  assert abs(same / 2000 - 0.5) < 0.034
