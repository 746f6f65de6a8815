"""Places to cut a text at: the ids before them are those of the whole."""

import hypothesis
import pytest
import tokenizers
from hypothesis import strategies

from dpr_jax.data import long_texts, records, text_cuts, tokenization
from tests import families

PIECES = [
  *("city ", "x", "  \n", "ulm.", "é", "漢字", "!?", "a" * 150, "\u200b"),
  *(" \u0301", "<mask>", " <mask> ", "\ufdfa ", "\u0e33 a", "can't ", "a\nb"),
]


@pytest.fixture(scope="module", params=["byte-level", "unigram"])
def backend(request):
  return families.tokenizer(request.param).backend_tokenizer


def _texts(size):
  return strategies.lists(
    strategies.sampled_from(PIECES), min_size=1, max_size=size
  ).map("".join)


@hypothesis.given(text=_texts(40))
@hypothesis.settings(max_examples=60)
def test_ids_before_a_place_are_those_of_the_whole(backend, text):
  cuts = text_cuts.TextCuts(backend)
  whole = backend.encode(text, add_special_tokens=False).ids
  place = cuts.between_words(text, 1)
  while place is not None:
    ids = backend.encode(text[:place], add_special_tokens=False).ids
    assert ids == whole[: len(ids)]
    place = cuts.between_words(text, place + 1)


@hypothesis.given(text=_texts(30), repeat=strategies.integers(1, 200))
@hypothesis.settings(max_examples=30)
def test_clipping_never_changes_ids(backend, text, repeat):
  """A long text is not tokenized whole, and gives the same ids as if."""
  text *= repeat
  tokenizer = tokenization.TextTokenizer(backend, passage_length=6)
  whole = backend.encode(text).ids
  wanted = whole if len(whole) <= 6 else [*whole[:5], tokenizer.separator]
  assert tokenizer.passage_ids([records.Passage("1", "", text)])[0] == wanted


def test_ordinary_texts_are_clipped(backend):
  """At the first white space between words after 100 characters per id."""
  text = "word " * 100_000
  clipped = long_texts.LongTexts(backend).clip(text, 10)
  assert clipped == text[:1004]


def test_texts_without_a_place_are_whole(backend):
  text = "漢字。" * 10_000
  assert long_texts.LongTexts(backend).clip(text, 10) == text


@pytest.mark.parametrize(
  "change",
  [
    {"pre_tokenizer": tokenizers.pre_tokenizers.Metaspace(split=False)},
    {"pre_tokenizer": tokenizers.pre_tokenizers.Split("a", "isolated")},
    {"normalizer": tokenizers.normalizers.Replace("b c", "d")},
    {"added": "two words"},
  ],
)
def test_other_tokenizers_have_no_place(change):
  """Those that may look across white space get the whole text."""
  backend = families.tokenizer("byte-level").backend_tokenizer
  assert text_cuts.TextCuts(backend).between_words("ab cd", 0) == 2
  if "added" in change:
    backend.add_tokens([change["added"]])
  else:
    for name, value in change.items():
      setattr(backend, name, value)
  assert text_cuts.TextCuts(backend).between_words("ab cd", 0) is None
  text = "word " * 10_000
  assert long_texts.LongTexts(backend).clip(text, 10) == text
