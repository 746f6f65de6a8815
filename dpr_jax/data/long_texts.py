"""Shortens very long texts before tokenization without changing their ids.

A tokenizer needs time and memory for a whole text, even if few of its ids are
used, and a text can be long without having many ids: a word of 10 MB is one
`[UNK]`, half a million accents have no id.  What BERT's tokenizer does with a
character depends only on that character: it is removed, or is white space, or a
word by itself (punctuation, Chinese), or part of the word around it; and a word
that is too long is `[UNK]`, whatever its characters.  So the middle of such a
word, and repeated white space or removed characters, can be left out.  Texts
for other tokenizers are only cut, between two words (`text_cuts.py`).
"""

import functools
import re
import unicodedata
from collections.abc import Iterator

import numpy as np
import tokenizers
from jaxtyping import Int

from dpr_jax.data import text_cuts

_WORD_CHARACTERS = 100  # WordPiece's default limit; longer words are [UNK]
_BLOCK = 1_000_000  # characters that are shortened at once
_PLAIN_TOKEN = re.compile(r"\[[!-~]*\]")
_SPACES = re.compile(r"[ \n]")
_LOOKED_AT = 1000  # characters to search for a position between words
# What a tokenizer does with a character: removes it, keeps it in a word, takes
# it as white space or as a word by itself; _UNSTEADY: depends on the context.
_VANISHES, _STAYS, _SPACE, _ALONE, _UNSTEADY = range(5)


class Shortened:
  """A text from which parts without ids were removed.

  Attributes:
    text: the shortened text.
  """

  def __init__(self, text: str):
    self.text = text
    self._removed: list[tuple[np.ndarray, np.ndarray]] = []

  def leave_out(self, pattern: re.Pattern[str]) -> None:
    """Removes from every match all but the text of its groups."""
    pieces, places, counts = [], [], []
    end = length = removed = 0
    for match in pattern.finditer(self.text):
      # Of several groups in one pattern, the first is kept before the gap.
      kept = [group for group in match.groups() if group is not None]
      pieces += self.text[end : match.start()], *kept
      length += match.start() - end + len(kept[0])
      removed += match.end() - match.start() - sum(map(len, kept))
      places.append(length)
      counts.append(removed)
      length += sum(map(len, kept[1:]))
      end = match.end()
    if places:
      self.text = "".join([*pieces, self.text[end:]])
      self._removed.append((np.array(places), np.array([0, *counts])))

  def original(
    self, places: Int[np.ndarray, " places"]
  ) -> Int[np.ndarray, " places"]:
    """Positions in the original text of characters of `text` with ids."""
    for at, removed in reversed(self._removed):
      places = places + removed[np.searchsorted(at, places, side="right")]
    return places


class LongTexts:
  """Shortens texts for one tokenizer.

  Attributes:
    word: maximum characters of a word; longer words are [UNK].
  """

  def __init__(self, backend: tokenizers.Tokenizer):
    self._backend = backend
    self.word = getattr(
      backend.model, "max_input_chars_per_word", _WORD_CHARACTERS
    )
    self._kinds: dict[str, int] = {}

  @functools.cached_property
  def shortens(self) -> bool:
    """True if the tokenizer is BERT's; texts for others are not shortened."""
    backend = self._backend
    return (
      isinstance(backend.model, tokenizers.models.WordPiece)
      and isinstance(backend.normalizer, tokenizers.normalizers.BertNormalizer)
      and isinstance(
        backend.pre_tokenizer, tokenizers.pre_tokenizers.BertPreTokenizer
      )
      and self.word <= _WORD_CHARACTERS
      and all(map(self._is_plain, backend.get_added_tokens_decoder().values()))
    )

  @functools.cached_property
  def _tokens(self) -> list[str]:
    added = self._backend.get_added_tokens_decoder().values()
    return [token.content for token in added]

  @functools.cached_property
  def _decomposes(self) -> bool:
    return "\u0301" not in self._backend.normalizer.normalize_str("e\u0301")

  def _is_plain(self, token: tokenizers.AddedToken) -> bool:
    """True for a token in brackets, which removals cannot create or destroy."""
    return (
      bool(_PLAIN_TOKEN.fullmatch(token.content))
      and len(token.content) <= self.word
      and not (token.single_word or token.lstrip or token.rstrip)
      and not token.normalized
    )

  def clip(self, text: str, limit: int) -> str:
    """Cuts and shortens a text without changing its first `limit` ids.

    The cut may be inside a word and change its tokens, at most as many as a
    word has characters.  So the kept text must have that many more ids than
    `limit`; it is extended until it has.
    """
    size = self.word * limit
    if len(text) <= size:
      return text
    if not self.shortens:
      return self._cut(text, limit, size)
    kept, at = text[:size], size
    while True:
      encoding = self._backend.encode_batch_fast([kept])[0]
      if len(encoding.ids) > limit + self.word + 2:
        return kept
      if at >= len(text):
        return kept
      size = min(3 * at, _BLOCK)
      kept = self.shorten(kept + text[at : at + size]).text
      at += size

  def _cut(self, text: str, limit: int, size: int) -> str:
    """As `clip`, for other tokenizers than BERT's; keeps at least `size`."""
    special = self._backend.num_special_tokens_to_add(False)
    while size < len(text):
      end = self._cuts.between_words(text, size)
      if end is None:
        break
      encoding = self._backend.encode_batch_fast([text[:end]])[0]
      if len(encoding.ids) > limit + special:
        return text[:end]
      size = 3 * end
    return text

  @functools.cached_property
  def _cuts(self) -> text_cuts.TextCuts:
    return text_cuts.TextCuts(self._backend)

  def shorten(self, text: str) -> Shortened:
    """Removes parts without ids; no change for other tokenizers than BERT's."""
    short = Shortened(text)
    if not self.shortens:
      return short
    by_kind: list[list[str]] = [[], [], [], [], []]
    for character in set(text):
      by_kind[self._kind(character)].append(character)
    if by_kind[_UNSTEADY]:
      return short
    gone, spaces = by_kind[_VANISHES], by_kind[_SPACE]
    ends = spaces + by_kind[_ALONE]
    inner, stays = _class(ends, negated=True), _class(ends + gone, negated=True)
    one, space, blank = _class(gone), _class(spaces), _class(gone + spaces)
    # The last character is kept, because it marks the end of the word.
    head = f"(?:{one}*{stays}){{{self.word + 1}}}"
    short.leave_out(
      re.compile(f"(?<!{inner})({head}){inner}*({stays}{one}*)(?!{inner})")
    )
    # One white space replaces several, with removed characters between them.
    # Of a run of removed characters one is kept, to separate those around it.
    short.leave_out(re.compile(f"{one}*({space}){blank}+|({one}){one}+"))
    return short

  def pieces(self, text: str, size: int) -> Iterator[tuple[int, str]]:
    """Yields (first character, piece) of a text cut between words.

    The tokens of the pieces are those of the text.  A piece is a little longer
    than `size`, or as long as the word at its end requires.  For other
    tokenizers than BERT's the text is one piece.
    """
    first = 0
    while self.shortens and len(text) - first > size:
      end = self._between_words(text, first + size)
      yield first, text[first:end]
      first = end
    if first < len(text):
      yield first, text[first:]

  def _between_words(self, text: str, start: int) -> int:
    """The first position from `start` where a text can be cut, or its end."""
    for place in range(start, min(start + _LOOKED_AT, len(text))):
      if self._kind(text[place]) in (_SPACE, _ALONE) and not any(
        token in text[max(place - len(token) + 1, 0) : place + len(token) - 1]
        for token in self._tokens
      ):
        return place
    space = _SPACES.search(text, start)
    return space.start() if space else len(text)

  def _kind(self, character: str) -> int:
    """What the tokenizer does with a character in any context."""
    kind = self._kinds.get(character)
    if kind is None:
      kind = self._kinds[character] = self._look(character)
    return kind

  def _look(self, character: str) -> int:
    backend = self._backend
    try:
      normal = backend.normalizer.normalize_str(f"a{character}a")
    except (TypeError, UnicodeEncodeError):  # a lone surrogate, refused later
      return _ALONE
    words = [w for w, _ in backend.pre_tokenizer.pre_tokenize_str(normal)]
    if words == ["aa"]:
      return _VANISHES
    if words == ["a", "a"]:
      return _SPACE
    if len(words) != 1:
      return _ALONE
    # Kept marks are sorted by the normalizer, but not across characters that
    # it removes: their order would depend on what is left out.
    sorted_ = any(
      unicodedata.combining(c) or unicodedata.category(c) == "Cn"
      for c in normal
    )
    return _UNSTEADY if self._decomposes and sorted_ else _STAYS


def _class(characters: list[str], negated: bool = False) -> str:
  """A regular expression for one of these characters, or for any other."""
  if not characters:
    return r"[\s\S]" if negated else r"[^\s\S]"
  return f"[{'^' * negated}{''.join(map(re.escape, characters))}]"
