"""Batches of several sources: weights, passes, batches of one source."""

import collections

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.data import batches, source_plans


def make(sizes, weights=(), *, one_source=False, batch_size=4, seed=3):
  train = config_lib.base_config().train
  train.source_weights = weights
  train.one_source_batches = one_source
  train.batch_size = batch_size
  return source_plans.make(seed, train, sizes)


def drawn(plan, steps):
  """(question, pass) of every row of the first steps, one after the other."""
  rows = [plan.rows(step) for step in range(steps)]
  indexes = np.concatenate([index for index, _ in rows])
  passes = np.concatenate([number for _, number in rows])
  return list(zip(indexes.tolist(), passes.tolist(), strict=True))


@pytest.mark.parametrize(
  ("sizes", "weights"), [([10], ()), ([6, 4], ()), ([6, 4], (1.0, 1.0))]
)
def test_without_weights_batches_are_those_of_one_file(sizes, weights):
  assert make(sizes, weights) == batches.Plan(3, 10, 4)
  older = {"batch_size": 4, "epochs": 1.0}  # a config from before the weights
  assert source_plans.make(3, older, sizes) == batches.Plan(3, 10, 4)


def test_weights_are_passes_per_epoch():
  """Of 4 questions twice and 6 half: an epoch is 8 + 3, of 11 slots."""
  plan = make([4, 6], (2.0, 0.5), batch_size=11)
  assert plan.questions == 11
  assert (plan.steps(1.0), plan.steps(2.0), plan.steps(2.1)) == (1, 2, 3)
  first, second = drawn(plan, 1), drawn(plan, 2)[11:]
  assert sorted(first)[:8] == [(i, p) for i in range(4) for p in (0, 1)]
  assert sorted(second)[:8] == [(i, p) for i in range(4) for p in (2, 3)]
  # Two epochs are one pass over the second source.
  rest = [pair for pair in first + second if pair[0] >= 4]
  assert sorted(rest) == [(i, 0) for i in range(4, 10)]
  assert len({i for i, _ in first if i >= 4}) == 3
  assert drawn(make([4, 6], (2.0, 0.5), batch_size=11, seed=4), 1) != first


@hypothesis.given(
  sizes=strategies.lists(strategies.integers(1, 20), min_size=2, max_size=3),
  weight=strategies.sampled_from([0.3, 1.0, 2.0, 3.5]),
  one_source=strategies.booleans(),
  batch_size=strategies.integers(1, 9),
)
@hypothesis.settings(max_examples=60, deadline=None)
def test_passes_are_whole_and_in_order(sizes, weight, one_source, batch_size):
  """Every question comes once per pass, and no pass begins before its time."""
  weights = (weight, *[1.5] * (len(sizes) - 1))
  plan = make(sizes, weights, one_source=one_source, batch_size=batch_size)
  pairs = drawn(plan, 6 * plan.steps(1.0))
  counts = collections.Counter(pairs)
  assert max(counts.values()) == 1
  takes = [max(1, round(n * w)) for n, w in zip(sizes, weights, strict=True)]
  epochs = len(pairs) // sum(takes)  # complete ones
  start = 0
  for size, taken in zip(sizes, takes, strict=True):
    own = [pair for pair in pairs if start <= pair[0] < start + size]
    whole = (len(own) if one_source else epochs * taken) // size
    assert whole or size > 1
    for number in range(whole):
      assert all(counts[start + i, number] for i in range(size))
    start += size


def test_a_batch_is_of_one_source():
  """8 and 4 questions, 4 a batch: of 3 batches, 2 are of the first source."""
  plan = make([8, 4], one_source=True)
  assert plan.batches == (2, 1)
  for epoch in range(3):
    sources = []
    seen = []
    for step in range(3 * epoch, 3 * epoch + 3):
      indexes, passes = plan.rows(step)
      (source,) = set((indexes >= 8).tolist())
      sources.append(source)
      seen += indexes.tolist()
      assert set(passes.tolist()) == {epoch}
    assert sorted(sources) == [False, False, True]
    assert sorted(seen) == list(range(12))
  orders = {
    tuple(bool(plan.rows(3 * e + s)[0][0] >= 8) for s in range(3))
    for e in range(20)
  }
  assert len(orders) == 3  # the order is drawn for every epoch


@pytest.mark.parametrize(
  ("sizes", "weights", "expected"),
  [
    ([8, 4], (1.0, 4.0), (2, 4)),  # 8 + 16 questions in 6 batches
    ([100, 1], (), (25, 1)),  # 25.7 and 0.3 of 26 batches
    ([1, 1, 1], (), (1, 1, 1)),  # one batch would do for all of them
    ([1, 30, 1], (), (1, 6, 1)),
  ],
)
def test_batches_of_each_source(sizes, weights, expected):
  assert make(sizes, weights, one_source=True).batches == expected


def test_rounds_have_weights():
  """1 + 1 questions in the first round, 3 and half of 2 in the second."""
  train = config_lib.base_config().train
  train.source_weights, train.rounds = (1.0, 0.5, 3.0, 0.5), 2
  train.batch_size = 4
  sizes = [1, 2]
  shares = [
    [share.drawn for share in source_plans.make(3, train, sizes, number).shares]
    for number in range(2)
  ]
  assert shares == [[1, 1], [3, 1]]
  indexes, _ = source_plans.make(3, train, sizes, 1).rows(5)
  assert sorted(indexes.tolist())[:3] == [0, 0, 0]
  # The first round's epochs are the run's.
  assert source_plans.make(3, train, sizes).steps(4.0) == 2
  train.rounds = 3
  with pytest.raises(errors.InputError, match="4 weights .*train.rounds"):
    source_plans.make(3, train, sizes)


def test_wrong_weights_are_refused():
  with pytest.raises(
    errors.InputError, match=r"source_weights=\(2.0,\): 1 weights for the 2"
  ):
    make([8, 4], (2.0,))
  with pytest.raises(errors.InputError, match="data.train has a single source"):
    make([8], one_source=True)


def test_what_an_epoch_takes_is_logged(monkeypatch):
  lines = []
  for level in ("info", "warning"):
    monkeypatch.setattr(
      source_plans.logging, level, lambda text, *args: lines.append(text % args)
    )
  source_plans.log(make([4, 6], (2.0, 0.5)), ["a", "b"])
  source_plans.log(make([8, 2], one_source=True), ["a", "b"])
  source_plans.log(make([8, 2]), ["a", "b"])
  assert lines[:3] == [
    "train: source a: 4 questions, 8 drawn per epoch",
    "train: source b: 6 questions, 3 drawn per epoch",
    "train: source a: 8 questions, 2 batches per epoch",
  ]
  assert lines[3] == "train: source b: 2 questions, 1 batches per epoch"
  assert "fewer than train.batch_size=4" in lines[4]
  assert len(lines) == 5
