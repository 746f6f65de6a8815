"""Passages read on all cores, and the answer that is chosen."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from dpr_jax.data import records
from dpr_jax.inference import passage_reader
from dpr_jax.models import span_reader
from tests import reading_world


def test_batches_and_windows_change_nothing(reading_engine):
  together = reading_engine.read(
    reading_world.QUESTIONS,
    [reading_world.PASSAGES, reading_world.PASSAGES[:2]],
  )
  assert [len(some) for some in together] == [4, 2]
  for question, passages, some in zip(
    reading_world.QUESTIONS,
    [reading_world.PASSAGES, reading_world.PASSAGES[:2]],
    together,
    strict=True,
  ):
    for passage, found in zip(passages, some, strict=True):
      ((alone,),) = reading_engine.read([question], [[passage]])
      assert alone[2:] == found[2:]
      assert alone.rank == pytest.approx(found.rank, abs=1e-5)
  empty = together[0][2]
  assert empty.start == empty.end
  assert reading_engine.read(["where"], [[]]) == [[]]
  assert reading_engine.read([], []) == []


def test_a_long_passage_is_its_best_window(reading_engine):
  """Every part of it can hold the answer, in characters of the whole text."""
  tokenizer = reading_engine.reader.tokenizer
  ((whole,),) = reading_engine.read(["where"], [[reading_world.PASSAGES[3]]])
  windows = tokenizer.windows(
    len(tokenizer.head(*_ids(tokenizer, "where", "long"))[0]), 130
  )
  assert len(windows) > 2
  ranks = []
  for window in windows:
    part = reading_world.LONG[
      2 * window.first : 2 * (window.first + window.count)
    ]
    passage = records.Passage("", "long", part)
    ((found,),) = reading_engine.read(["where"], [[passage]])
    ranks.append((found.rank, found.start + 2 * window.first))
  rank, start = max(ranks)
  assert whole.rank == pytest.approx(rank, abs=1e-5)
  assert whole.start == start


def _ids(tokenizer, question, title):
  (ids,) = tokenizer.question_ids([question])
  return ids, tokenizer.tokenize([title])[0].ids


def _choose_span(engine, monkeypatch, first, last):
  """The reader chooses these tokens from now on."""

  def best(_, columns):
    shape = columns[0].shape[:2]
    numbers = [np.full(shape, n, np.int32) for n in (first, last)]
    ones = np.ones((2, *shape), np.float32)
    return span_reader.BestSpans(*map(jnp.asarray, (*ones, *numbers)))

  programs = types.SimpleNamespace(get=lambda *_: best)
  monkeypatch.setattr(engine, "_programs", programs)


def test_tokens_become_characters_of_the_original(reading_engine, monkeypatch):
  """An answer that stands there twice, pieces of a word, case and accents."""
  text = "In Z\u00fcrich, then  ULM; then Ulm again."
  (tokens,) = reading_engine.reader.tokenizer.tokenize([text])
  for wanted, start in (("Z\u00fcrich", 3), ("ULM", 17), ("Ulm", 27)):
    first, last = tokens.span_of(start + 1, start + 2)
    whole = tokens.span_of(start, start + len(wanted))
    # Ulm is a word of the vocabulary, of the other there is one piece alone.
    assert ((first, last) == whole) == (wanted.lower() == "ulm")
    _choose_span(reading_engine, monkeypatch, first, last)
    ((found,),) = reading_engine.read(["q"], [[records.Passage("", "", text)]])
    assert (found.start, text[found.start : found.end]) == (start, wanted)


@pytest.mark.parametrize(
  ("text", "letter", "answer"),
  [
    ("le cafe\u0301", "e\u0301", "cafe\u0301"),  # the mark ends the text
    ("cafe\u0301 noir", "f", "cafe\u0301"),
    ("a\u0308b x", "b", "a\u0308b"),
    # Hindi: all of it.
    ("\u0939\u093f\u0928\u094d\u0926\u0940", "\u0926", None),
    ("\u0928\u0926\u0940 ulm", "ulm", "ulm"),
  ],
)
def test_an_answer_keeps_its_marks(
  reading_engine, monkeypatch, text, letter, answer
):
  """Of a letter in two characters the tokenizer sees the first."""
  (tokens,) = reading_engine.reader.tokenizer.tokenize([text])
  place = text.index(letter)
  _choose_span(reading_engine, monkeypatch, *tokens.span_of(place, place + 1))
  ((found,),) = reading_engine.read(["q"], [[records.Passage("", "", text)]])
  assert text[found.start : found.end] == (answer or text)


def test_choose():
  def some(*ranks, end=1):
    return [passage_reader.Reading(rank, 0.0, 0, end) for rank in ranks]

  assert passage_reader.choose(some(1.0, 3.0, 3.0)) == (1, 3.0)
  assert passage_reader.choose([]) == (-1, float("-inf"))
  assert passage_reader.choose(some(1.0, end=0)) == (-1, float("-inf"))
  # A passage without an answer is not chosen, however well it ranks.
  assert passage_reader.choose(some(9.0, end=0) + some(1.0)) == (1, 1.0)
  # The retriever's scores count from 0 to 1 times the weight.
  scores = [30.0, 10.0, 20.0]
  assert passage_reader.choose(some(1.0, 1.5, 1.2), scores, 0.1) == (1, 1.5)
  assert passage_reader.choose(some(1.0, 1.5, 1.2), scores, 2.0) == (0, 3.0)
  assert passage_reader.choose(some(1.0, 1.5), [7.0, 7.0], 2.0) == (1, 1.5)
