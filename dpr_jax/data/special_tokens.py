"""The special tokens that a tokenizer puts around texts and pairs of texts.

`[CLS] A [SEP]` and `[CLS] A [SEP] B [SEP]` of BERT, `<s> A </s>` and
`<s> A </s></s> B </s>` of RoBERTa: they are read off what the tokenizer does
with a text, so that no name of a token is assumed.
"""

import dataclasses

import tokenizers

from dpr_jax.core import errors

_TEXTS = ("a", "0", ".", "\u6771")  # one of them has a token
_PADDING = ("[PAD]", "<pad>", "<|padding|>", "<|pad|>", "[pad]")
_UNKNOWN = ("[UNK]", "<unk>")
_MASK = ("[MASK]", "<mask>")


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
  """Ids around the texts.

  Attributes:
    before: before the first text.
    between: between the texts of a pair.
    after: after the last text.
  """

  before: tuple[int, ...]
  between: tuple[int, ...]
  after: tuple[int, ...]

  @property
  def all(self) -> set[int]:
    """Every id."""
    return {*self.before, *self.between, *self.after}


def read(backend: tokenizers.Tokenizer) -> SpecialTokens:
  """The special tokens of a tokenizer.

  Raises:
    InputError: it does not begin and end every text with one special token.
  """
  # By sequence number of each token: None = special, 0, 1 = of that text.
  for text in _TEXTS:
    pair = backend.encode(text, text)
    numbers = pair.sequence_ids
    if {0, 1} <= set(numbers):
      break
  else:
    raise errors.InputError("the tokenizer has no tokens for letters or digits")
  first, second = numbers.index(0), numbers.index(1)
  end = len(numbers) - numbers[::-1].index(1)
  middle = first + numbers.count(0)
  found = SpecialTokens(
    tuple(pair.ids[:first]),
    tuple(pair.ids[middle:second]),
    tuple(pair.ids[end:]),
  )
  single = backend.encode(text).ids
  wanted = [*found.before, *pair.ids[first:middle], *found.after]
  if len(found.before) != 1 or len(found.after) != 1 or single != wanted:
    raise errors.InputError(
      "the tokenizer does not begin every text with one special token, such as"
      " [CLS] or <s>, and end it with one, such as [SEP] or </s>, so it is not"
      " that of an encoder like BERT"
    )
  return found


def names(backend: tokenizers.Tokenizer) -> dict[str, str]:
  """Tokens by their use in transformers' `tokenizer_config.json`."""
  special = read(backend)
  ids = {
    "cls": special.before[0],
    "sep": special.after[0],
    "pad": _first_known(backend, _PADDING),
    "unk": _first_known(backend, _UNKNOWN),
    "mask": _first_known(backend, _MASK),
  }
  return {
    f"{use}_token": backend.id_to_token(number)
    for use, number in ids.items()
    if number is not None
  }


def padding(backend: tokenizers.Tokenizer) -> int:
  """Id of padding; 0 if no token is known: padding is always masked."""
  return _first_known(backend, _PADDING) or 0


def unknown(backend: tokenizers.Tokenizer) -> int | None:
  """Id for words that the vocabulary cannot spell; None = no such.

  Tokenizers that can spell everything, for example in bytes, do not have it.
  """
  if isinstance(backend.model, tokenizers.models.Unigram):
    return _first_known(backend, _UNKNOWN)
  token = getattr(backend.model, "unk_token", None)
  return None if token is None else backend.token_to_id(token)


def _first_known(
  backend: tokenizers.Tokenizer, names: tuple[str, ...]
) -> int | None:
  ids = (backend.token_to_id(name) for name in names)
  return next((number for number in ids if number is not None), None)
