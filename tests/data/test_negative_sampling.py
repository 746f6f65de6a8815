"""Negatives: mixtures, padding, no repeats, and draws that never change."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from dpr_jax.core import errors
from dpr_jax.data import negative_mixture, negative_sampling, records


def _candidate(positive=4, others=(), **pools):
  return negative_sampling.Candidate(
    positive,
    {kind: np.array(rows, np.int64) for kind, rows in pools.items()},
    others,
  )


def _choose(mixture="bm25:2", from_top=1, corpus_size=10, key=(0, 0), **pools):
  candidate = pools.pop("candidate", None) or _candidate(**pools)
  parsed = negative_mixture.Mixture.parse(
    mixture, sum(int(part.split(":")[1]) for part in mixture.split(","))
  )
  return negative_sampling.choose(
    candidate, parsed, from_top=from_top, corpus_size=corpus_size, key=key
  ).tolist()


@pytest.mark.parametrize(
  ("text", "count", "parts"),
  [
    ("bm25", 3, (("bm25", 3),)),
    ("bm25:3", 3, (("bm25", 3),)),
    ("model", 0, ()),
    ("bm25:1,random:2", 3, (("bm25", 1), ("random", 2))),
    ("model:1, given:1", 2, (("model", 1), ("given", 1))),
  ],
)
def test_mixtures(text, count, parts):
  mixture = negative_mixture.Mixture.parse(text, count)
  assert mixture.parts == parts
  assert mixture.count == count
  assert mixture.kinds == tuple(kind for kind, _ in parts)


@pytest.mark.parametrize(
  ("text", "count", "message"),
  [
    ("hard", 1, "'hard': must be one of bm25, model, hybrid, passage, prev"),
    ("", 1, "'': must be one of bm25"),
    ("bm25:1,hard:1", 2, "'bm25:1,hard:1': 'hard' must be one of"),
    ("bm25:1,bm25:1", 2, "bm25 is repeated: name it once"),
    ("bm25,random", 2, "'bm25' needs a count of at least 1"),
    ("bm25:0,random:1", 1, "'bm25:0' needs a count"),
    ("bm25:x", 1, "'bm25:x' needs a count"),
    ("bm25:", 1, "'bm25:' needs a count"),
    ("bm25:1,random:1", 1, "2 negatives, config.train.hard_negatives=1: set"),
  ],
)
def test_bad_mixtures_are_refused(text, count, message):
  with pytest.raises(errors.InputError, match=message):
    negative_mixture.Mixture.parse(text, count)


def test_bm25_in_place_of_what_rounds_mine():
  """Counts of the same kind add up, in the place of the first."""
  mixture = negative_mixture.Mixture.parse("model:1,random:1,bm25:2", 4)
  assert mixture.of_first_round().parts == (("bm25", 3), ("random", 1))
  text = "hybrid:1,previous:1,passage:2,given:1"
  mixture = negative_mixture.Mixture.parse(text, 5)
  assert mixture.of_first_round().parts == (
    *(("hybrid", 1), ("bm25", 3), ("given", 1)),
  )
  assert mixture.of_rounds == ("passage",)


def test_mined_negatives_are_the_best_or_drawn_from_the_top():
  """`from_top` above the count draws; too few are padded with -1."""
  hard = [7, 5, 9, 3]
  assert _choose(bm25=hard) == [7, 5]
  drawn = {tuple(_choose(from_top=3, key=(0, n), bm25=hard)) for n in range(50)}
  assert {row for pair in drawn for row in pair} == {7, 5, 9}
  assert all(len(set(pair)) == 2 for pair in drawn)
  assert _choose("bm25:3", bm25=[8]) == [8, -1, -1]


def test_draws_of_single_kinds_are_those_of_ever():
  """The rows that the same seeds gave before there were mixtures."""
  key = (3, 2, 1, 17)
  hard = [11, 5, 90, 33, 2, 64, 70, 8]
  sizes = {"from_top": 6, "corpus_size": 100, "key": key}
  generator = np.random.default_rng(key)
  old = generator.permutation(np.array(hard)[:6])[:2].tolist()
  assert _choose("bm25:2", bm25=hard, **sizes) == old
  assert _choose("model:2", model=hard, **sizes) == old
  drawn = np.random.default_rng(key).choice(99, 3, replace=False)
  drawn += drawn >= 4
  assert _choose("random:3", **sizes) == drawn.tolist()


def test_random_negatives_are_never_a_positive():
  """Uniform over the rest of the corpus, without repetition."""
  candidate = _candidate(others=[6, -1])
  seen = [
    _choose("random:3", key=(1, n), candidate=candidate) for n in range(300)
  ]
  assert {row for some in seen for row in some} == set(range(10)) - {4, 6}
  assert all(len(set(some)) == 3 for some in seen)
  everything = _choose("random:12", candidate=candidate)
  assert sorted(everything) == [-1] * 4 + [0, 1, 2, 3, 5, 7, 8, 9]


@hypothesis.given(data=strategies.data())
@hypothesis.settings(max_examples=200)
def test_any_mixture_has_no_positive_and_no_row_twice(data):
  """Every column is of its own kind, and -1 only where nothing is left."""
  size = data.draw(strategies.integers(1, 15))
  row = strategies.integers(-1, size - 1)
  pools = {
    kind: np.array(data.draw(strategies.lists(row, max_size=6)), np.int64)
    for kind in negative_mixture.KINDS
    if kind != "random"
  }
  candidate = negative_sampling.Candidate(
    data.draw(row), pools, data.draw(strategies.lists(row, max_size=2))
  )
  kinds = data.draw(
    strategies.lists(
      strategies.sampled_from(negative_mixture.KINDS), unique=True
    )
  )
  mixture = negative_mixture.Mixture(
    tuple((kind, data.draw(strategies.integers(1, 3))) for kind in kinds)
  )
  chosen = negative_sampling.choose(
    candidate,
    mixture,
    from_top=data.draw(strategies.integers(1, 5)),
    corpus_size=size,
    key=(data.draw(strategies.integers(0, 9)),),
  ).tolist()
  there = [entry for entry in chosen if entry != -1]
  assert len(there) == len(set(there))
  assert not set(there) & set(candidate.positives)
  first, taken = 0, set(candidate.positives)
  for kind, count in mixture.parts:
    column = chosen[first : first + count]
    allowed = (
      set(range(size)) if kind == "random" else set(pools[kind].tolist())
    )
    allowed -= {-1}
    got = [entry for entry in column if entry != -1]
    assert set(got) <= allowed
    assert len(got) == min(count, len(allowed - taken))
    assert column[len(got) :] == [-1] * (count - len(got))
    taken |= set(got)
    first += count


class _Table(list):
  """A list with the tables' `take`, which counts its calls."""

  calls = 0

  def take(self, rows):
    self.calls += 1
    return [self[row] for row in rows]


def _sampler(mixture, from_top=1, **pools):
  passages = _Table(
    records.Passage(str(row), f"Title {row}", f"text {row}")
    for row in range(10)
  )
  count = sum(int(part.split(":")[1]) for part in mixture.split(","))
  candidates = [
    _candidate(row, **{kind: rows[row] for kind, rows in pools.items()})
    for row in range(3)
  ]
  return negative_sampling.Sampler(
    passages=passages,
    candidates=candidates,
    mixture=negative_mixture.Mixture.parse(mixture, count),
    from_top=from_top,
    seed=5,
  )


def _question(row, hard=(), other=()):
  return records.Question(
    f"question {row}",
    positives=(records.Passage(str(row), "", "as in the data"),),
    hard_negatives=tuple(records.Passage(i, "", f"data {i}") for i in hard),
    negatives=tuple(records.Passage(i, "", f"data {i}") for i in other),
  )


def test_a_batch_is_read_at_once():
  """Positives from the data, the rest from the corpus, None where missing."""
  sampler = _sampler("bm25:2", bm25=[[7, 8], [8], []])
  questions = [_question(row) for row in (2, 0, 1)]
  passages, keys = sampler.passages_of_batch(questions, [2, 0, 1], [0, 0, 1])
  assert sampler.passages.calls == 1
  assert keys == [2, -1, -1, 0, 7, 8, 1, 8, -1]
  assert [p and p.text for p in passages] == [
    *["as in the data", None, None],
    *["as in the data", "text 7", "text 8"],
    *["as in the data", "text 8", None],
  ]
  np.testing.assert_array_equal(
    sampler.keys_of_batch([2, 0, 1], [0, 0, 1]), keys
  )


def test_given_passages_come_from_the_data_with_their_rows_as_keys():
  """A given copy of the positive is passed over; 10 on are in no corpus."""
  given = [np.array(keys, int) for keys in ([10, 0, 6, 11], [9, 9], [])]
  sampler = _sampler("given:2,bm25:1", given=given, bm25=[[6, 5], [9], [1]])
  questions = [
    _question(0, hard=("x", "0"), other=("6", "y")),
    _question(1, hard=("9", "9")),
    _question(2),
  ]
  passages, keys = sampler.passages_of_batch(questions, range(3), [0] * 3)
  assert keys == [0, 10, 6, 5, 1, 9, -1, -1, 2, -1, -1, 1]
  assert [p and p.text for p in passages] == [
    *["as in the data", "data x", "data 6", "text 5"],
    *["as in the data", "data 9", None, None],
    *["as in the data", None, None, "text 1"],
  ]
  assert sampler.keys_of_batch(range(3), [0] * 3).tolist() == keys


def test_draws_depend_on_seed_epoch_and_question_alone():
  """The same question in another batch gets the same passages."""
  pools = {"bm25": [[7, 8, 9, 5, 6]] * 3}
  sampler = _sampler("bm25:1,random:2", from_top=4, **pools)
  indexes, epochs = [0, 1, 2] * 8, np.repeat(range(8), 3)
  keys = sampler.keys_of_batch(indexes, epochs).reshape(24, 4)
  assert len({tuple(row) for row in keys.tolist()}) > 12
  backwards = sampler.keys_of_batch(indexes[::-1], epochs[::-1])
  np.testing.assert_array_equal(backwards.reshape(24, 4)[::-1], keys)


@hypothesis.given(data=strategies.data())
@hypothesis.settings(max_examples=60)
def test_possible_rows_hold_every_draw(data):
  """And else only rows of the pools that are drawn from."""
  lists = strategies.lists(strategies.integers(-1, 9), max_size=5)
  pools = {
    kind: [np.array(data.draw(lists), np.int64) for _ in range(3)]
    for kind in ("bm25", "model", "given")
  }
  mixture = data.draw(
    strategies.sampled_from(["bm25:2", "model:1,bm25:2", "given:1,bm25:1"])
  )
  sampler = _sampler(mixture, data.draw(strategies.integers(1, 4)), **pools)
  epochs = np.arange(40).repeat(3)
  keys = sampler.keys_of_batch(np.tile(range(3), 40), epochs)
  possible = set(sampler.possible_rows().tolist())
  assert set(keys.tolist()) - {-1} <= possible
  pooled = {
    int(row)
    for kind in sampler.mixture.kinds
    for rows in pools[kind]
    for row in rows
  }
  assert possible <= pooled | {0, 1, 2}
  everything = _sampler("random:1").possible_rows()
  np.testing.assert_array_equal(everything, np.arange(10))


def test_what_an_earlier_part_takes_makes_room_for_the_next():
  """The model takes 7; the best of BM25 that is left is then 8."""
  pools = {"model": [[7], [], []], "bm25": [[7, 8, 9], [], []]}
  sampler = _sampler("model:1,bm25:1", from_top=1, **pools)
  assert sampler.keys_of_batch([0], [0]).tolist() == [0, 7, 8]
  assert sampler.possible_rows().tolist() == [0, 1, 2, 7, 8]


def test_without_negatives():
  """Questions with their positives alone."""
  sampler = negative_sampling.Sampler(
    _Table(), [_candidate(3)], negative_mixture.Mixture.parse("bm25", 0), 1, 0
  )
  assert sampler.per_question == 1
  passages, keys = sampler.passages_of_batch([_question(3)], [0], [0])
  assert (len(passages), keys) == (1, [3])
