"""Text to ids, as DPR does it."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from dpr_jax.core import errors
from dpr_jax.data import reader_tokenization, records, tokenization


@pytest.fixture(scope="module")
def backend(tiny_checkpoint):
  """The tokenizer of the tiny checkpoint, from its vocab.txt."""
  return tokenization.load_tokenizer(tiny_checkpoint)


def _words(backend, ids):
  return [backend.id_to_token(int(i)) for i in ids if i]


def _passage(title, text):
  return records.Passage("1", title, text)


def test_title_and_text_are_a_pair(backend):
  """[CLS] title [SEP] text [SEP], without a title [CLS] text [SEP]."""
  tokenizer = tokenization.TextTokenizer(backend, passage_length=12)
  batch = tokenizer.passages(
    [_passage("Ulm", "A city."), _passage("", "A city.")]
  )
  assert _words(backend, batch.ids[0]) == [
    "[CLS]", "ulm", "[SEP]", "a", "city", ".", "[SEP]",
  ]  # fmt: skip
  assert _words(backend, batch.ids[1]) == ["[CLS]", "a", "city", ".", "[SEP]"]
  assert batch.ids.shape == (2, 12)
  assert batch.mask.sum(axis=1).tolist() == [7, 5]
  assert (batch.ids[~batch.mask] == 0).all()


def test_other_formats(backend):
  """Joined, no title, prefixes."""
  joined = tokenization.TextTokenizer(
    backend, title="joined", question_prefix="a: ", passage_prefix="the "
  )
  ids = joined.passage_ids([_passage("Ulm", "city")])
  assert _words(backend, ids[0]) == ["[CLS]", "the", "ulm", "city", "[SEP]"]
  ids = joined.question_ids(["city"])
  assert _words(backend, ids[0]) == ["[CLS]", "a", ":", "city", "[SEP]"]
  none = tokenization.TextTokenizer(backend, title="none")
  ids = none.passage_ids([_passage("Ulm", "city")])
  assert _words(backend, ids[0]) == ["[CLS]", "city", "[SEP]"]


def test_cut_texts_end_in_sep(backend):
  """At exactly the limit nothing is cut; beyond, the last token is [SEP]."""
  tokenizer = tokenization.TextTokenizer(backend, passage_length=8)
  exact = tokenizer.passage_ids([_passage("Ulm", "a a a a")])[0]
  assert len(exact) == 8
  assert _words(backend, exact)[-2] == "a"
  cut = tokenizer.passage_ids([_passage("Ulm", "a a a a city")])[0]
  assert cut == exact
  long_title = tokenizer.passage_ids([_passage("a " * 20, "city")])[0]
  assert _words(backend, long_title) == ["[CLS]", *["a"] * 6, "[SEP]"]


@hypothesis.given(
  pieces=strategies.lists(
    strategies.sampled_from(
      ["city ", "x", "  \n", "ulm.", "é", "漢字", "!?", "a" * 150, "\u200b"]
    ),
    min_size=1,
    max_size=30,
  ),
  repeat=strategies.integers(1, 200),
)
@hypothesis.settings(max_examples=40)
def test_clipping_never_changes_ids(backend, pieces, repeat):
  """A long text is not tokenized whole, and gives the same ids as if."""
  text = "".join(pieces) * repeat
  tokenizer = tokenization.TextTokenizer(backend, passage_length=6)
  whole = backend.encode(text).ids
  wanted = whole if len(whole) <= 6 else [*whole[:5], tokenizer.separator]
  assert tokenizer.passage_ids([_passage("", text)])[0] == wanted


@pytest.mark.parametrize(
  ("order", "padding"),
  [
    (["[UNK]", "[CLS]", "[SEP]", "[PAD]"], 3),  # as Dutch and Spanish BERTs
    (["[PAD]", "[UNK]", "[CLS]", "[SEP]"], 0),
  ],
)
def test_padding_is_the_tokenizers_own(tmp_path, order, padding):
  (tmp_path / "vocab.txt").write_text("\n".join([*order, "de", "stad"]))
  (tmp_path / "config.json").write_text('{"model_type": "bert"}')
  backend = tokenization.load_tokenizer(tmp_path)
  tokenizer = tokenization.TextTokenizer(backend, passage_length=8)
  assert tokenizer.padding == padding
  batch = tokenizer.passages([_passage("", "de stad"), _passage("", "stad")])
  names = [*order, "de", "stad"]
  text = [names.index(name) for name in ("[CLS]", "de", "stad", "[SEP]")]
  assert batch.ids[0].tolist() == text + [padding] * 4
  assert batch.mask.sum(axis=1).tolist() == [4, 3]
  reader = reader_tokenization.ReaderTokenizer(
    backend, length=16, question_length=4, overlap=2
  )
  ids = np.array(text, np.int32)
  window = reader_tokenization.Window(0, 1)
  row = reader_tokenization.ReaderInput(ids, 2, 3, window)
  assert reader.pad([row], 6).ids.tolist() == [text + [padding] * 2]


def test_bad_text_and_settings(backend, tmp_path):
  """A lone surrogate, an unknown title format, no tokenizer."""
  tokenizer = tokenization.TextTokenizer(backend)
  with pytest.raises(errors.InputError, match="character 1 is a lone surr"):
    tokenizer.questions(["a\ud800b"])
  with pytest.raises(errors.InputError, match="lone surrogate"):
    tokenizer.passages([_passage("a\ud800", "b" * 40000)])
  with pytest.raises(errors.InputError, match="title='both': must be one of"):
    tokenization.TextTokenizer(backend, title="both")
  with pytest.raises(errors.InputError, match="passage_length=2"):
    tokenization.TextTokenizer(backend, passage_length=2)
  with pytest.raises(errors.InputError, match="neither tokenizer.json nor"):
    tokenization.load_tokenizer(tmp_path)


def test_a_prefix_stands_before_whatever_is_first(backend):
  """The title; the text, where there is no title or it is not read."""
  for title, texts in (
    ("pair", ["text", ("p: Ulm", "text")]),
    ("joined", ["text", "p: Ulm text"]),
    ("none", ["text", "p: text"]),
  ):
    tokenizer = tokenization.TextTokenizer(
      backend, title=title, passage_prefix="p: ", question_prefix="q: "
    )
    assert tokenizer.passage_text(_passage("", "text")) == f"p: {texts[0]}"
    assert tokenizer.passage_text(_passage("Ulm", "text")) == texts[1]
    assert tokenizer.question_text("why") == "q: why"
