"""Pieces of one word, by each kind of vocabulary."""

import pytest

from dpr_jax.data import reader_tokenization, word_pieces
from tests import families


@pytest.mark.parametrize("kind", ["byte-level", "unigram"])
@pytest.mark.parametrize(
  ("text", "answer", "whole"),
  [
    ("It was Gdansk, (1879xy)!", "dan", "Gdansk"),
    ("It was Gdansk, (1879xy)!", "79", "1879xy"),
    ("Der schöne Ort.", "ö", "schöne"),
    ("A  Gdansk", "Gdansk", "Gdansk"),
    ("a.b", "a", "a"),
  ],
)
def test_answers_are_widened_to_words(kind, text, answer, whole):
  """Neither white space nor punctuation belongs to a word."""
  tokenizer = reader_tokenization.ReaderTokenizer(
    families.tokenizer(kind).backend_tokenizer, length=40, question_length=8,
    overlap=4,
  )  # fmt: skip
  (tokens,) = tokenizer.tokenize([text])
  start = text.index(answer)
  span = tokens.span_of(start, start + len(answer))
  first, last = tokenizer.whole_words(tokens.ids, *span)
  assert text[tokens.starts[first] : tokens.ends[last]] == whole


def test_inputs_of_the_reader():
  """The tokenizer's own tokens between question, title and passage."""
  backend = families.tokenizer("byte-level").backend_tokenizer
  tokenizer = reader_tokenization.ReaderTokenizer(
    backend, length=40, question_length=8, overlap=4
  )
  question, title, text = tokenizer.tokenize(["a", "b", "c"])
  head, end = tokenizer.head(question.ids, title.ids)
  (window,) = tokenizer.windows(len(head), len(text.ids))
  row = tokenizer.compose(head, end, text.ids, window)
  a, b, c = (x.ids[0] for x in (question, title, text))
  assert row.ids.tolist() == [0, a, 2, 2, b, 2, 2, c]
  squad = reader_tokenization.ReaderTokenizer(
    backend, length=40, question_length=8, overlap=4, layout="squad"
  )
  head, end = squad.head(question.ids, title.ids)
  row = squad.compose(head, end, text.ids, window)
  assert row.ids.tolist() == backend.encode("a", "c").ids


def test_characters_of_scripts_without_spaces_are_words():
  """Several characters of one token, or one: neither continues a word."""
  backend = families.tokenizer("unigram").backend_tokenizer
  pieces = word_pieces.of(backend)
  word = backend.encode("nation", add_special_tokens=False).ids
  assert pieces.continues.any()
  assert not pieces.continues[word[0]]  # begins with white space
  assert not pieces.continues[backend.token_to_id("<s>")]
