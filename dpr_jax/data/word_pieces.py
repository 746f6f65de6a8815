"""Which tokens of a vocabulary continue a word.

Input: a tokenizer.  Output: for two neighbouring ids, whether they are pieces
of one word, so that an answer is not cut inside a word.  WordPiece marks pieces
that continue a word (`##ing`), other vocabularies mark those that begin one
with the white space before it (`\u0120in`, `\u2581in`).
"""

import dataclasses

import numpy as np
import regex
import tokenizers
from jaxtyping import Bool, Int

_SPACE = "\u2581"  # of SentencePiece
# A letter, digit or mark, or a part of one (U+FFFD); but in scripts without
# spaces a character alone may be a word.
_IN_WORD = regex.compile(
  r"[[\p{L}\p{M}\p{N}\ufffd_]--[\p{LB=SA}\p{scx=Han}\p{scx=Hiragana}"
  r"\p{scx=Katakana}]]",
  regex.VERSION1,
)


@dataclasses.dataclass(frozen=True)
class WordPieces:
  """Tables over the ids of a vocabulary.

  Attributes:
    continues: the token continues the word before it, if there is one.
    open: the token ends inside a word, or at its end.
    spaces: tokens include the white space before them.
  """

  continues: Bool[np.ndarray, " vocabulary"]
  open: Bool[np.ndarray, " vocabulary"]
  spaces: bool

  def joined(self, left: int | np.integer, right: int | np.integer) -> bool:
    """True if two neighbouring tokens are pieces of one word."""
    return bool(self.open[left] and self.continues[right])


def of(backend: tokenizers.Tokenizer) -> WordPieces:
  """The tables of a tokenizer."""
  vocabulary = backend.get_vocab()
  size = max(vocabulary.values(), default=0) + 1
  continues, ends = np.zeros(size, bool), np.zeros(size, bool)
  mark = getattr(backend.model, "continuing_subword_prefix", None)
  if mark:
    for token, number in vocabulary.items():
      continues[number] = token.startswith(mark)
    return WordPieces(continues, np.ones(size, bool), spaces=False)
  special = {
    number
    for number, token in backend.get_added_tokens_decoder().items()
    if token.special
  }
  decoder = tokenizers.decoders.ByteLevel()
  in_bytes = isinstance(backend.model, tokenizers.models.BPE) and not any(
    token.startswith(_SPACE) for token in vocabulary
  )
  for token, number in vocabulary.items():
    if number in special or not token:
      continue
    text = decoder.decode([token]) if in_bytes else token.replace(_SPACE, " ")
    if text:
      continues[number] = _IN_WORD.match(text[0]) is not None
      ends[number] = _IN_WORD.match(text[-1]) is not None
  return WordPieces(continues, ends, spaces=True)


def behind_spaces(
  text: str,
  starts: Int[np.ndarray, " tokens"],
  ends: Int[np.ndarray, " tokens"],
) -> Int[np.ndarray, " tokens"]:
  """First characters of tokens, without the white space before them."""
  starts = starts.copy()
  for place, (start, end) in enumerate(
    zip(starts.tolist(), ends.tolist(), strict=True)
  ):
    while start < end and text[start].isspace():
      start += 1
    starts[place] = start
  return starts
