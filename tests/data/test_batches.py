"""Batches are a pure function of (seed, step, process)."""

import dataclasses

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies

from dpr_jax.core import errors
from dpr_jax.data import (
  batches,
  negative_mixture,
  negative_sampling,
  other_positives,
  records,
  tokenization,
)


@hypothesis.given(
  questions=strategies.integers(1, 40),
  batch_size=strategies.integers(1, 25),
  seed=strategies.integers(0, 5),
)
@hypothesis.settings(max_examples=60)
def test_every_epoch_sees_every_question_once(questions, batch_size, seed):
  """Nothing is dropped or doubled, wherever batches end."""
  plan = batches.Plan(seed, questions, batch_size)
  steps = plan.steps(3.0)
  rows = [plan.rows(step) for step in range(steps)]
  indexes = np.concatenate([index for index, _ in rows])
  epochs = np.concatenate([epoch for _, epoch in rows])
  assert len(indexes) >= 3 * questions
  for epoch in range(3):
    seen = np.sort(indexes[epochs == epoch])
    np.testing.assert_array_equal(seen, np.arange(questions))


def test_steps_of_a_run():
  """10 questions, 4 a batch: 1 epoch is 2.5 batches, 3 whole ones."""
  plan = batches.Plan(0, 10, 4)
  assert [plan.steps(epochs) for epochs in (0.1, 1.0, 2.0, 2.01)] == [
    1,
    3,
    5,
    6,
  ]
  assert plan.steps(2.0, max_steps=7) == 7


def test_epochs_and_seeds_differ():
  """Another epoch or seed is another order."""
  plan = batches.Plan(0, 100, 100)
  first, second = plan.rows(0)[0], plan.rows(1)[0]
  assert (first != second).any()
  assert (first != batches.Plan(1, 100, 100).rows(0)[0]).any()


class _Table(list):
  """A list with the tables' `take`."""

  def take(self, rows):
    return [self[row] for row in rows]


def _source(
  tiny_checkpoint, *, process=0, processes=1, kind="bm25", hard=2, **changes
):
  passages = _Table(
    records.Passage(str(row), f"Title {row}", f"text of passage {row}")
    for row in range(10)
  )
  questions = _Table(
    records.Question(
      f"question {row}",
      positives=(passages[row],),
      hard_negatives=(passages[9],) if row % 2 else (),
    )
    for row in range(6)
  )
  sampler = negative_sampling.Sampler(
    passages=passages,
    candidates=[
      negative_sampling.Candidate(
        row,
        {
          "bm25": np.array([8, 9][: row % 3]),
          "given": np.array([9] if row % 2 else []),
        },
      )
      for row in range(6)
    ],
    mixture=negative_mixture.Mixture.parse(kind, hard),
    from_top=hard,
    seed=3,
  )
  tokenizer = tokenization.TextTokenizer(
    tokenization.load_tokenizer(tiny_checkpoint),
    question_length=8,
    passage_length=16,
  )
  return batches.BatchSource(
    plan=batches.Plan(3, 6, 4),
    steps=5,
    questions=questions,
    sampler=sampler,
    tokenizer=tokenizer,
    process=process,
    processes=processes,
    **changes,
  )


@pytest.mark.parametrize("kind", ["bm25", "given", "random"])
def test_processes_share_the_global_batch(tiny_checkpoint, kind):
  """Two processes' batches side by side are the one process's."""
  whole = _source(tiny_checkpoint, kind=kind)
  halves = [
    _source(tiny_checkpoint, kind=kind, process=p, processes=2)
    for p in range(2)
  ]
  for step in range(5):
    parts = jax.tree.map(
      lambda *x: np.concatenate(x), *(half[step] for half in halves)
    )
    jax.tree.map(np.testing.assert_array_equal, parts, whole[step])


def test_layout_and_padding(tiny_checkpoint):
  """Positive first, missing negatives are invalid, keys are corpus rows."""
  source = _source(tiny_checkpoint)
  batch = source[0]
  indexes, _ = source.plan.rows(0)
  keys = batch["passage_keys"].reshape(4, 3)
  np.testing.assert_array_equal(keys[:, 0], indexes)
  np.testing.assert_array_equal(batch["question_keys"], indexes)
  np.testing.assert_array_equal(batch["labels"], [0, 3, 6, 9])
  for row, index in zip(keys, indexes, strict=True):
    assert (row[1:] >= 0).sum() == index % 3
  np.testing.assert_array_equal(batch["passage_valid"], keys.reshape(-1) >= 0)
  assert batch["passages"]["ids"].shape == (12, 16)
  assert batch["questions"]["ids"].shape == (4, 8)
  np.testing.assert_array_equal(batch["question_rows"], np.arange(4))
  np.testing.assert_array_equal(batch["passage_rows"], np.arange(12))


class _Answers:
  """Stands for `answer_masks.AnswerRows`: question 2 is answered by row 9."""

  def excluded(self, question_indexes, keys, labels):
    found = (np.asarray(question_indexes) == 2)[:, None] & (
      np.asarray(keys) == 9
    )
    found[np.arange(len(labels)), labels] = False
    return found


def test_answers_are_masked_in_the_batch_order(tiny_checkpoint):
  """One process and two mask the same pairs: question 2 and passage 9."""
  whole = _source(tiny_checkpoint, answer_rows=_Answers())
  halves = [
    _source(tiny_checkpoint, answer_rows=_Answers(), process=p, processes=2)
    for p in range(2)
  ]
  seen = 0
  for step in range(5):
    wanted = whole[step]
    np.testing.assert_array_equal(
      np.concatenate([half[step]["excluded"] for half in halves]),
      wanted["excluded"],
    )
    indexes, _ = whole.plan.rows(step)
    rows, columns = np.nonzero(wanted["excluded"])
    assert set(indexes[rows]) <= {2}
    assert set(wanted["passage_keys"][columns]) <= {9}
    seen += len(rows)
  assert seen


def test_background_loading_starts_anywhere(tiny_checkpoint):
  """Resuming at a step gives the batches from there on."""
  source = _source(tiny_checkpoint)
  loaded = list(batches.in_background(source, 2))
  assert len(loaded) == 3
  for step, batch in enumerate(loaded, start=2):
    jax.tree.map(np.testing.assert_array_equal, batch, source[step])


def _with_positives(source, others):
  """The source; question 0 has these other positives."""
  sampler = source.sampler
  first, *rest = sampler.candidates
  first = dataclasses.replace(first, other_positives=others)
  sampler = dataclasses.replace(sampler, candidates=[first, *rest])
  return dataclasses.replace(
    source,
    sampler=sampler,
    positive_columns=other_positives.columns(sampler),
  )


@pytest.mark.parametrize(
  ("others", "columns"), [(0, 0), (1, 1), (2, 2), (3, 4), (32, 32), (99, 32)]
)
def test_columns_of_other_positives(tiny_checkpoint, others, columns):
  """A power of two, as many as any question needs, and 32 at most."""
  source = _with_positives(
    _source(tiny_checkpoint), np.arange(100, 100 + others)
  )
  assert source.positive_columns == columns


def test_other_positives_stand_beside_their_question(tiny_checkpoint):
  """Keys 7 and 100 of question 0, whichever place it has; else -1."""
  source = _with_positives(_source(tiny_checkpoint), [7, 100])
  for step in range(3):
    indexes, _ = source.plan.rows(step)
    found = source[step]["question_positives"].tolist()
    assert found == [[7, 100] if i == 0 else [-1, -1] for i in indexes]


def test_too_many_other_positives_are_those_in_the_batch(tiny_checkpoint):
  """Of 40, only 8 and 9 can come up: two columns of 32 are used."""
  others = [*range(100, 138), 8, 9]
  source = _with_positives(_source(tiny_checkpoint), others)
  assert source.positive_columns == 32
  seen = set()
  for step in range(5):
    batch = source[step]
    assert batch["question_positives"].shape == (4, 32)
    keys = set(batch["passage_keys"].tolist())
    indexes, _ = source.plan.rows(step)
    for index, row in zip(indexes, batch["question_positives"], strict=True):
      wanted = sorted({8, 9} & keys) if index == 0 else []
      assert sorted(row[row >= 0].tolist()) == wanted
      seen |= set(wanted)
  assert seen


def test_columns_grow_with_a_batch_that_needs_more(
  tiny_checkpoint, monkeypatch
):
  """At most one column is wanted, two other positives are in some batch."""
  monkeypatch.setattr(other_positives, "_COLUMNS", 1)
  source = _with_positives(_source(tiny_checkpoint), [8, 9])
  assert source.positive_columns == 1
  shapes = [source[step]["question_positives"].shape[1] for step in range(5)]
  assert set(shapes) == {1, 2}


def test_a_run_without_any_negative_is_refused(tiny_checkpoint):
  """One question a batch and no hard negative; a negative anywhere will do."""
  source = _source(tiny_checkpoint, hard=0)
  alone = dataclasses.replace(source, plan=batches.Plan(3, 6, 1))
  with pytest.raises(errors.InputError, match="batch_size=1 with 0 hard"):
    batches.check_negatives(alone)
  batches.check_negatives(source)
  negatives = _source(tiny_checkpoint, hard=1)
  batches.check_negatives(
    dataclasses.replace(negatives, plan=batches.Plan(3, 6, 1))
  )
