"""Batches are a pure function of (seed, step, process)."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from dpr_jax import errors
from dpr_jax.data import batches, records, tokenization


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


def test_epochs_and_seeds_differ():
  """Another epoch or seed is another order."""
  plan = batches.Plan(0, 100, 100)
  first, second = plan.rows(0)[0], plan.rows(1)[0]
  assert (first != second).any()
  assert (first != batches.Plan(1, 100, 100).rows(0)[0]).any()


def _choose(kind="bm25", count=2, from_top=2, hard=(7, 5, 9, 3), key=(0, 0)):
  candidate = batches.Candidate(4, np.array(hard, np.int64))
  return batches.choose_negatives(
    candidate,
    count=count,
    from_top=from_top,
    kind=kind,
    corpus_size=10,
    key=key,
  )


def test_hard_negatives_are_the_best_or_drawn_from_the_top():
  """`from_top` above `count` draws; too few are padded with -1."""
  assert _choose().tolist() == [7, 5]
  drawn = {tuple(_choose(from_top=3, key=(0, n)).tolist()) for n in range(50)}
  assert {row for pair in drawn for row in pair} == {7, 5, 9}
  assert all(len(set(pair)) == 2 for pair in drawn)
  assert _choose(count=3, hard=(8,)).tolist() == [8, -1, -1]
  assert _choose(count=0).tolist() == []


def test_random_negatives_are_never_the_positive():
  """Uniform over the rest of the corpus, without repetition."""
  seen = [_choose("random", count=3, key=(1, n)).tolist() for n in range(300)]
  assert {row for some in seen for row in some} == set(range(10)) - {4}
  assert all(len(set(some)) == 3 for some in seen)
  assert seen[0] == _choose("random", count=3, key=(1, 0)).tolist()
  everything = _choose("random", count=12)
  assert sorted(everything.tolist()) == [-1, -1, -1, 0, 1, 2, 3, 5, 6, 7, 8, 9]


class _Table(list):
  """A list with the tables' `take`."""

  def take(self, rows):
    return [self[row] for row in rows]


def _source(tiny_checkpoint, *, process=0, processes=1, kind="bm25", hard=2):
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
  candidates = [
    batches.Candidate(row, np.array([8, 9][: row % 3], np.int64))
    for row in range(6)
  ]
  tokenizer = tokenization.TextTokenizer(
    tokenization.load_tokenizer(tiny_checkpoint),
    question_length=8,
    passage_length=16,
  )
  return batches.BatchSource(
    plan=batches.Plan(3, 6, 4),
    steps=5,
    questions=questions,
    passages=passages,
    candidates=candidates,
    tokenizer=tokenizer,
    negatives=hard,
    from_top=hard,
    kind=kind,
    process=process,
    processes=processes,
  )


@pytest.mark.parametrize("kind", batches.KINDS)
def test_processes_share_the_global_batch(tiny_checkpoint, kind):
  """Two processes' batches side by side are the one process's."""
  whole = _source(tiny_checkpoint, kind=kind)
  halves = [
    _source(tiny_checkpoint, kind=kind, process=p, processes=2)
    for p in range(2)
  ]
  for step in range(5):
    wanted = whole[step]
    for key, value in wanted.items():
      parts = np.concatenate([half[step][key] for half in halves])
      np.testing.assert_array_equal(parts, value)


def test_layout_and_padding(tiny_checkpoint):
  """Positive first, missing negatives are invalid, keys are corpus rows."""
  source = _source(tiny_checkpoint)
  batch = source[0]
  indexes, _ = source.plan.rows(0)
  keys = batch["passage_keys"].reshape(4, 3)
  np.testing.assert_array_equal(keys[:, 0], indexes)
  for row, index in zip(keys, indexes, strict=True):
    assert (row[1:] >= 0).sum() == index % 3
  np.testing.assert_array_equal(batch["passage_valid"], keys.reshape(-1) >= 0)
  assert batch["passage_ids"].shape == (12, 16)
  assert batch["question_ids"].shape == (4, 8)
  np.testing.assert_array_equal(batch["global_rows"], np.arange(4))


def test_background_loading_starts_anywhere(tiny_checkpoint):
  """Resuming at a step gives the batches from there on."""
  source = _source(tiny_checkpoint)
  loaded = list(batches.in_background(source, 2))
  assert len(loaded) == 3
  for step, batch in enumerate(loaded, start=2):
    np.testing.assert_array_equal(
      batch["question_ids"], source[step]["question_ids"]
    )


def test_unknown_kind(tiny_checkpoint):
  """The message lists the kinds."""
  with pytest.raises(errors.InputError, match="'hard': must be one of bm25"):
    _source(tiny_checkpoint, kind="hard")
