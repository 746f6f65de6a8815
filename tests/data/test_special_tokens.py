"""Special tokens are read off the tokenizer, whatever their names."""

import pytest
import tokenizers

from dpr_jax.core import errors
from dpr_jax.data import special_tokens, tokenization
from tests import families


def test_of_bert(tiny_checkpoint):
  backend = tokenization.load_tokenizer(tiny_checkpoint)
  names = ["[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"]
  cls, sep, pad, unk, _ = map(backend.token_to_id, names)
  found = special_tokens.read(backend)
  assert (found.before, found.between, found.after) == ((cls,), (sep,), (sep,))
  assert special_tokens.padding(backend) == pad
  assert special_tokens.unknown(backend) == unk
  assert list(special_tokens.names(backend).values()) == names


@pytest.mark.parametrize("kind", ["byte-level", "unigram"])
def test_of_roberta(kind):
  """`<s> A </s></s> B </s>`; a tokenizer of bytes has no unknown words."""
  backend = families.tokenizer(kind).backend_tokenizer
  found = special_tokens.read(backend)
  assert (found.before, found.between, found.after) == ((0,), (2, 2), (2,))
  assert found.all == {0, 2}
  assert special_tokens.padding(backend) == 1
  assert special_tokens.unknown(backend) == (3 if kind == "unigram" else None)
  assert special_tokens.names(backend)["mask_token"] == "<mask>"


def test_a_tokenizer_without_them_is_refused():
  backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, "a"))
  with pytest.raises(errors.InputError, match="begin every text with one"):
    special_tokens.read(backend)
  empty = tokenizers.Tokenizer(tokenizers.models.BPE())
  with pytest.raises(errors.InputError, match="no tokens for letters"):
    special_tokens.read(empty)
  assert special_tokens.padding(empty) == 0
  assert special_tokens.unknown(empty) is None
