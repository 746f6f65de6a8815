"""Answer masks are what the answer matcher says of each pair."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from dpr_jax.core import errors
from dpr_jax.data import answer_matching, records
from dpr_jax.training import answer_masks

# Short pieces, so that they meet often: accents apart and together, sigmas,
# ligatures, digits of several scripts, control and zero-width characters.
PIECES = [
  *["a", "A", "an", "é", "e\u0301", "ÉCOLE", "école", "ß", "ss", "İ", "i̇"],
  *["Σ", "ς", "σ", "ΟΔΟΣ", "οδος", "ﬁ", "fi", "Ⅷ", "viii", "½", "1/2"],
  *["1", "11", "1,1", "1.1", "٣", "中", "中国", "국", "u.s.", "us", "U.S."],
  *["-", "--", "'", "’", "$", "€1", "\u200b", "\u00ad", "\n", "\t", "\u00a0"],
  *["\U0001f600", "x\x00y", "x\ue000y"],
]
texts = strategies.lists(
  strategies.tuples(
    strategies.sampled_from(PIECES), strategies.sampled_from(["", " ", "  "])
  ),
  max_size=8,
).map(lambda pairs: "".join(piece + space for piece, space in pairs))


class _Table(list):
  """A list with the tables' `take`."""

  def take(self, rows):
    return [self[int(row)] for row in rows]


def _tables(answer_lists, passage_texts):
  return (
    _Table(
      records.Question(f"question {n}", tuple(some))
      for n, some in enumerate(answer_lists)
    ),
    _Table(
      records.Passage(str(n), "title", text)
      for n, text in enumerate(passage_texts)
    ),
  )


def _by_matcher(questions, passages):
  matcher = answer_matching.AnswerMatcher()
  numbers = range(len(passages))
  return np.array(
    [
      matcher.hits(q.answers, numbers, [p.text for p in passages])
      for q in questions
    ]
  )


@hypothesis.given(data=strategies.data())
@hypothesis.settings(max_examples=300)
def test_rows_are_those_of_the_matcher(data):
  """Any Unicode, answers without a token, several answers, shared answers."""
  some_answers = strategies.lists(texts, max_size=3)
  questions, passages = _tables(
    [["a"], *data.draw(strategies.lists(some_answers, max_size=5))],
    data.draw(strategies.lists(texts, min_size=1, max_size=6)),
  )
  rows = np.arange(len(passages))
  found = answer_masks.AnswerRows.build(questions, passages, rows)
  wanted = _by_matcher(questions, passages)
  for number, row in enumerate(wanted):
    np.testing.assert_array_equal(found.rows_of(number), np.flatnonzero(row))


@pytest.fixture(scope="module")
def world():
  """400 passages and 60 questions that share words and answers."""
  generator = np.random.default_rng(0)
  words = np.array(["Paris", "the", "Seine", "river", "1900", "Éire", "of"])
  questions, passages = _tables(
    [
      [
        " ".join(generator.choice(words, generator.integers(1, 3)))
        for _ in range(generator.integers(0, 3))
      ]
      for _ in range(60)
    ],
    [
      " ".join(generator.choice(words, generator.integers(1, 6)))
      for _ in range(400)
    ],
  )
  return questions, passages, _by_matcher(questions, passages)


def test_masks_of_a_batch(world):
  """Known passages with an answer, except the question's own positive."""
  questions, passages, wanted = world
  found = answer_masks.AnswerRows.build(questions, passages, np.arange(400))
  generator = np.random.default_rng(1)
  for _ in range(5):
    indexes = generator.integers(0, 60, 16)
    keys = generator.integers(-1, 400, 48).astype(np.int32)
    labels = generator.permutation(48)[:16]
    mask = wanted[indexes][:, keys] & (keys >= 0)
    mask[np.arange(16), labels] = False
    assert mask.any()
    np.testing.assert_array_equal(found.excluded(indexes, keys, labels), mask)
  unknown = np.full(48, -1, np.int32)
  assert not found.excluded(indexes, unknown, labels).any()


def test_only_possible_rows_are_read(world):
  """The others are never masked."""
  questions, passages, wanted = world
  rows = np.arange(0, 400, 7)
  found = answer_masks.AnswerRows.build(questions, passages, rows)
  for number in range(60):
    np.testing.assert_array_equal(
      found.rows_of(number), rows[wanted[number][rows]]
    )


def test_without_any_answer_there_is_nothing_to_mask():
  questions, passages = _tables([[], ["\n"]], ["text"])
  with pytest.raises(errors.InputError, match="mask_answers=False"):
    answer_masks.AnswerRows.build(questions, passages, np.arange(1))


def test_answers_that_stand_nowhere():
  """No hit at all is an answer, too."""
  questions, passages = _tables([["x"], []], ["text", "y"])
  found = answer_masks.AnswerRows.build(questions, passages, np.arange(2))
  keys, labels = np.array([0, 1]), np.array([0, 1])
  assert not found.excluded(np.array([0, 1]), keys, labels).any()
