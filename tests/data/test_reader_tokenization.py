"""Inputs of the reader: layout, windows, and characters both ways."""

import numpy as np
import pytest

from dpr_jax.core import errors
from dpr_jax.data import reader_tokenization, tokenization


@pytest.fixture(scope="module")
def backend(tiny_checkpoint):
  return tokenization.load_tokenizer(tiny_checkpoint)


def _tokenizer(backend, **settings):
  values = {"length": 40, "question_length": 8, "overlap": 4} | settings
  return reader_tokenization.ReaderTokenizer(backend, **values)


def _input(tokenizer, question, title, text, number=0):
  (ids,) = tokenizer.question_ids([question])
  named, passage = tokenizer.tokenize([title, text])
  head, end = tokenizer.head(ids, named.ids)
  windows = tokenizer.windows(len(head), len(passage.ids))
  found = tokenizer.compose(head, end, passage.ids, windows[number])
  return found, passage, windows


def _words(tokenizer, ids):
  return [tokenizer.backend.id_to_token(int(i)) for i in ids]


def test_layout_of_the_paper(backend):
  tokenizer = _tokenizer(backend)
  found, _, _ = _input(tokenizer, "where ?", "the city", "it was born")
  wanted = "[CLS] where ? [SEP] the city [SEP] it was born".split()
  assert _words(tokenizer, found.ids) == wanted
  batch = tokenizer.pad([found], 12)
  assert batch.question_ends.tolist() == [4]  # type 1 begins behind [SEP]
  assert batch.passages.tolist() == [7]
  assert batch.counts.tolist() == [3]
  assert batch.lengths.tolist() == [10]
  assert batch.ids[0, 10:].tolist() == [0, 0]


def test_other_layouts(backend):
  squad = _tokenizer(backend, layout="squad")
  found, _, _ = _input(squad, "where ?", "the city", "it was born")
  wanted = "[CLS] where ? [SEP] it was born [SEP]".split()
  assert _words(squad, found.ids) == wanted
  assert squad.pad([found], 12).counts.tolist() == [3]
  zeros = _tokenizer(backend, layout="dpr-hf")
  found, _, _ = _input(zeros, "where ?", "the city", "it was born")
  assert zeros.pad([found], 12).question_ends.tolist() == [12]  # never
  with pytest.raises(errors.InputError, match="layout='bert'"):
    _tokenizer(backend, layout="bert")


def test_long_passages_are_cut_into_windows_that_overlap(backend):
  tokenizer = _tokenizer(backend)
  text = " ".join("abcdefghijklmnopqrstuvwxyz" * 3)
  for number in range(4):
    found, passage, windows = _input(
      tokenizer, "where", "city", text, min(number, 2)
    )
    assert len(found.ids) <= 40
    assert len(found.ids) == 5 + found.window.count
  assert [w.first for w in windows] == [0, 31, 62]
  covered = {i for w in windows for i in range(w.first, w.first + w.count)}
  assert covered == set(range(len(passage.ids)))
  for one, other in zip(windows[:-1], windows[1:], strict=True):
    assert one.first + one.count - other.first == 4


def test_long_questions_and_titles_are_cut_and_leave_room(backend):
  tokenizer = _tokenizer(backend)
  (ids,) = tokenizer.question_ids(["a b c d e f g h i j k"])
  assert len(ids) == 9  # one more than fit: it can be seen that it was cut
  found, _, _ = _input(
    tokenizer, "a b c d e f g h i", "a " * 50, "z " * 5 + "y"
  )
  words = _words(tokenizer, found.ids)
  assert words[:10] == ["[CLS]", *"abcdefgh", "[SEP]"]
  assert words[10:20] == [*"aaaaaaaaa", "[SEP]"]
  assert words[20:] == [*"zzzzz", "y"]
  with pytest.raises(errors.InputError, match="length=20: must be >= 22"):
    _tokenizer(backend, length=20)


def test_characters_to_tokens_and_back(backend):
  """Accents, case, pieces of words and a span within a word."""
  tokenizer = _tokenizer(backend)
  text = "In  Z\u00fcrich, 1879xy!"
  (tokens,) = tokenizer.tokenize([text])
  start = text.index("Z")
  first, last = tokens.span_of(start, start + 6)
  assert text[tokens.starts[first] : tokens.ends[last]] == "Z\u00fcrich"
  assert last > first  # it is no word of the vocabulary
  inner = tokens.span_of(start + 2, start + 3)
  assert inner[0] == inner[1]
  assert tokenizer.whole_words(tokens.ids, *inner) == (first, last)
  assert tokens.span_of(2, 4) is None  # white space
  assert tokens.span_of(5, 5) is None
  (nothing,) = tokenizer.tokenize([""])
  assert len(nothing.ids) == 0
  assert nothing.span_of(0, 1) is None
  assert [w.count for w in tokenizer.windows(5, 0)] == [0]


GRAPHEMES = [
  # text, span, the span of whole letters with their marks
  ("abc", (0, 2), (0, 2)),
  ("e\u0301a", (0, 1), (0, 2)),
  ("e\u0301a", (1, 2), (0, 2)),
  ("e\u0301a", (2, 3), (2, 3)),
  ("e\u0301a", (1, 1), (1, 1)),  # nothing stays nothing
  ("\u0926\u093f\u0932", (0, 1), (0, 2)),  # a Hindi letter and its vowel
  ("x\u0bae\u0bbf", (1, 2), (1, 3)),  # Tamil
  ("\u1112\u1161\u11ab x", (0, 1), (0, 3)),  # a syllable of Hangul
  ("\u6771\u4eac", (0, 1), (0, 1)),
  ("a" * 999 + "e\u0301", (990, 1000), (990, 1001)),
  ("\u00e9" * 999 + "e\u0301e", (999, 1000), (999, 1001)),
]


@pytest.mark.parametrize(("text", "span", "wanted"), GRAPHEMES)
def test_spans_are_widened_to_whole_letters(text, span, wanted):
  assert reader_tokenization.whole_graphemes(text, *span) == wanted


def test_lone_surrogate_is_named(backend):
  with pytest.raises(errors.InputError, match="lone surrogate"):
    _tokenizer(backend).tokenize(["ok", "bad \ud800"])


def test_span_is_the_only_one_that_covers(backend):
  """For every pair of characters: the least run of tokens that covers it."""
  text = "His birthplace: the city of Ulm (W\u00fcrttemberg)."
  (tokens,) = _tokenizer(backend).tokenize([text])
  for start in range(len(text)):
    for end in range(start + 1, len(text) + 1):
      touched = [
        i
        for i in range(len(tokens.ids))
        if max(start, tokens.starts[i]) < min(end, tokens.ends[i])
      ]
      wanted = (touched[0], touched[-1]) if touched else None
      assert tokens.span_of(start, end) == wanted
  assert isinstance(tokens.ids, np.ndarray)
