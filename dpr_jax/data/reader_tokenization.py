"""Builds the reader's inputs: token ids of a question and a passage window.

The paper's layout is `[CLS] question [SEP] title [SEP] passage`, with the
special tokens of the tokenizer.  A passage is tokenized once, with the
character offsets of every token; a passage that does not fit is cut into
overlapping windows.  Answers are characters of the original
text: they are converted to tokens for training, and the tokens that the reader
chooses back to characters, so that word pieces are never searched.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import regex
import tokenizers
from jaxtyping import Int

from dpr_jax.core import errors, setting_rules
from dpr_jax.data import (
  long_texts,
  special_tokens,
  tokenization,
  word_pieces,
)

# "dpr": the paper's layout; "dpr-hf": the same with all token types 0, as in
# Hugging Face's DPRReader; "squad": no title, and `[SEP]` at the end.
LAYOUTS = ("dpr", "dpr-hf", "squad")
_BLOCK = 1000  # texts tokenized at once
_LONG = 100_000  # characters; longer texts are tokenized in pieces
_GRAPHEME = regex.compile(r"\X")
_LONGEST_GRAPHEME = 256  # characters


def whole_graphemes(text: str, start: int, end: int) -> tuple[int, int]:
  """Widens a span of characters so that no letter is separated from its marks.

  Tokenizers drop combining marks, so the characters of a token end before them.
  An empty span is not changed.
  """
  if start >= end or text.isascii():
    return start, end
  # Graphemes are matched from their beginning, which is never farther away.
  for match in _GRAPHEME.finditer(text, max(0, start - _LONGEST_GRAPHEME)):
    if match.start() <= start < match.end():
      start = match.start()
    if match.end() >= end:
      return start, match.end()
  return start, end


@dataclasses.dataclass(frozen=True, slots=True)
class Tokens:
  """A text as tokens.

  Attributes:
    ids: token ids without special tokens.
    starts: index of each token's first character in the text.
    ends: index after each token's last character.
  """

  ids: Int[np.ndarray, " tokens"]
  starts: Int[np.ndarray, " tokens"]
  ends: Int[np.ndarray, " tokens"]

  def span_of(self, start: int, end: int) -> tuple[int, int] | None:
    """First and last token of characters `start` to `end`; None = no token.

    The tokens may cover more: an answer may begin inside a token.
    """
    touched = np.flatnonzero((self.ends > start) & (self.starts < end))
    touched = touched[self.ends[touched] > self.starts[touched]]
    return (int(touched[0]), int(touched[-1])) if len(touched) else None


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
  """Consecutive tokens of a passage that form one input.

  Attributes:
    first: index of the first token.
    count: number of tokens.
  """

  first: int
  count: int

  def holds(self, span: tuple[int, int]) -> bool:
    """True if the window contains all tokens of a (first, last) span."""
    return self.first <= span[0] and span[1] < self.first + self.count


@dataclasses.dataclass(frozen=True, slots=True)
class ReaderInput:
  """One row for the reader.

  Attributes:
    ids: token ids, including special tokens.
    question_end: position after the first `[SEP]`, where token type 1 begins.
    passage: position of the passage's first token.
    window: tokens of the passage that are in the row.
  """

  ids: Int[np.ndarray, " length"]
  question_end: int
  passage: int
  window: Window


@dataclasses.dataclass(frozen=True)
class ReaderBatch:
  """Rows padded to one length; `models/span_reader.py` takes the fields.

  Attributes:
    ids: token ids, padded with the tokenizer's id of padding.
    lengths: number of tokens in each row.
    question_ends: position where token type 1 begins; the padded length = no
      token has type 1.
    passages: position of the passage's first token.
    counts: number of the passage's tokens.
  """

  ids: Int[np.ndarray, "rows length"]
  lengths: Int[np.ndarray, " rows"]
  question_ends: Int[np.ndarray, " rows"]
  passages: Int[np.ndarray, " rows"]
  counts: Int[np.ndarray, " rows"]


@dataclasses.dataclass(frozen=True)
class ReaderTokenizer:
  """A fast tokenizer and the layout of the reader's inputs.

  Attributes:
    backend: tokenizer of the checkpoint, without truncation or padding.
    length: maximum tokens of an input.
    question_length: maximum tokens of a question; longer ones are cut.
    overlap: tokens shared by consecutive windows of a long passage.
    layout: one of `LAYOUTS`.
  """

  backend: tokenizers.Tokenizer
  length: int = 350
  question_length: int = 64
  overlap: int = 128
  layout: str = "dpr"

  def __post_init__(self):
    if self.layout not in LAYOUTS:
      raise errors.InputError(
        f"config.reader.layout={self.layout!r}: must be auto or one of"
        f" {', '.join(LAYOUTS)}"
      )
    setting_rules.reader_lengths(
      self.length, self.question_length, self.overlap
    )

  def text_format(self) -> dict[str, int | str]:
    """All settings, besides the vocabulary, that determine an input's ids."""
    names = [field.name for field in dataclasses.fields(self)]
    return {name: getattr(self, name) for name in names if name != "backend"}

  @functools.cached_property
  def _special(self) -> special_tokens.SpecialTokens:
    """Ids of the special tokens around the texts."""
    return special_tokens.read(self.backend)

  @functools.cached_property
  def _pieces(self) -> word_pieces.WordPieces:
    return word_pieces.of(self.backend)

  def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
    """Tokens of texts of any length, with their character offsets."""
    result = []
    for first in range(0, len(texts), _BLOCK):
      some = list(texts[first : first + _BLOCK])
      short = ["" if len(text) > _LONG else text for text in some]
      tokens = self._tokenize(short)
      for place, text in enumerate(some):
        if len(text) > _LONG:
          tokens[place] = self._tokenize_long(text)
      result += tokens
    return result

  def _tokenize(self, texts: list[str]) -> list[Tokens]:
    try:
      encodings = self.backend.encode_batch(texts, add_special_tokens=False)
    except TypeError as error:
      raise errors.InputError(tokenization.name_bad_text(texts)) from error
    result = []
    for text, encoding in zip(texts, encodings, strict=True):
      offsets = np.array(encoding.offsets, np.int32).reshape(-1, 2)
      ids = np.array(encoding.ids, np.int32)
      starts, ends = offsets[:, 0], offsets[:, 1]
      if self._pieces.spaces:  # a token includes the white space before it
        starts = word_pieces.behind_spaces(text, starts, ends)
      result.append(Tokens(ids, starts, ends))
    return result

  def _tokenize_long(self, text: str) -> Tokens:
    """Tokens of a long text, piece by piece; the same as of the whole text."""
    parts = []
    for first, piece in self._long_texts.pieces(text, _LONG):
      short = self._long_texts.shorten(piece)
      (tokens,) = self._tokenize([short.text])
      starts = short.original(tokens.starts)
      # Map the last character, not the end: removed text may follow it.
      ends = short.original(np.maximum(tokens.ends - 1, tokens.starts)) + 1
      ends = np.where(tokens.ends > tokens.starts, ends, starts)
      parts.append((tokens.ids, starts + first, ends + first))
    ids, starts, ends = (
      np.concatenate(part).astype(np.int32) for part in zip(*parts, strict=True)
    )
    return Tokens(ids, starts, ends)

  @functools.cached_property
  def _long_texts(self) -> long_texts.LongTexts:
    return long_texts.LongTexts(self.backend)

  def question_ids(
    self, questions: Sequence[str]
  ) -> list[Int[np.ndarray, " tokens"]]:
    """Ids of questions, cut to `question_length` + 1.

    The extra id shows that a question is too long; `head` leaves it out.
    """
    limit = self.question_length + 1
    try:
      short = [self._long_texts.clip(each, limit) for each in questions]
    except TypeError as error:
      raise errors.InputError(tokenization.name_bad_text(questions)) from error
    return [tokens.ids[:limit] for tokens in self.tokenize(short)]

  def head(
    self,
    question: Int[np.ndarray, " question"],
    title: Int[np.ndarray, " title"],
  ) -> tuple[Int[np.ndarray, " head"], int]:
    """The ids before the passage, and the position after their first [SEP].

    Question and title together get at most half of the length; the title is cut
    to fit.
    """
    special = self._special
    question = question[: self.question_length]
    parts = [special.before, question, special.between]
    if self.layout != "squad":
      free = self.length // 2 - len(question) - 1 - 2 * len(special.between)
      parts += [title[: max(free, 0)], special.between]
    ids = np.concatenate([np.asarray(part, np.int32) for part in parts])
    return ids, len(question) + 2

  def windows(self, head: int, count: int) -> list[Window]:
    """The windows of a passage; at least one.

    All but the last have the maximum length; consecutive windows share
    `overlap` tokens.

    Args:
      head: number of tokens before the passage.
      count: number of the passage's tokens.
    """
    size = self.length - head - (self.layout == "squad")
    if size <= self.overlap:
      raise errors.InputError(
        f"config.reader.length={self.length}: {head} tokens before the passage"
        f" leave {size}, not more than config.reader.overlap={self.overlap}:"
        " increase the length"
      )
    windows = [Window(0, min(count, size))]
    while windows[-1].first + windows[-1].count < count:
      first = windows[-1].first + size - self.overlap
      windows.append(Window(first, min(size, count - first)))
    return windows

  def composed_length(self, head: int, window: Window) -> int:
    """Tokens of the input that `compose` builds.

    Args:
      head: number of tokens before the passage.
      window: tokens of the passage.
    """
    return head + window.count + (self.layout == "squad")

  def compose(
    self,
    head: Int[np.ndarray, " head"],
    question_end: int,
    passage: Int[np.ndarray, " tokens"],
    window: Window,
  ) -> ReaderInput:
    """Builds one input from the results of `head` and `windows`."""
    parts = [head, passage[window.first : window.first + window.count]]
    if self.layout == "squad":
      parts.append(np.array(self._special.after, np.int32))
    ids = np.concatenate(parts)
    return ReaderInput(ids, question_end, len(head), window)

  def pad(self, inputs: Sequence[ReaderInput], length: int) -> ReaderBatch:
    """Pads inputs of at most `length` to a batch."""
    padding = special_tokens.padding(self.backend)
    ids = np.full((len(inputs), length), padding, np.int32)
    for row, one in enumerate(inputs):
      ids[row, : len(one.ids)] = one.ids
    lengths = np.array([len(each.ids) for each in inputs], np.int32)
    return ReaderBatch(ids, lengths, **self.parts(inputs, length))

  def parts(
    self, inputs: Sequence[ReaderInput], length: int
  ) -> dict[str, Int[np.ndarray, " rows"]]:
    """`question_ends`, `passages` and `counts` of a `ReaderBatch`.

    Args:
      inputs: inputs of at most `length`.
      length: position after all tokens.
    """
    ends = [each.question_end for each in inputs]
    if self.layout == "dpr-hf":
      ends = [length] * len(inputs)
    return {
      "question_ends": np.array(ends, np.int32),
      "passages": np.array([each.passage for each in inputs], np.int32),
      "counts": np.array([each.window.count for each in inputs], np.int32),
    }

  def whole_words(
    self, ids: Int[np.ndarray, " tokens"], first: int, last: int
  ) -> tuple[int, int]:
    """Widens a token span so that it does not begin or end inside a word."""
    pieces = self._pieces
    while first > 0 and pieces.joined(ids[first - 1], ids[first]):
      first -= 1
    while last + 1 < len(ids) and pieces.joined(ids[last], ids[last + 1]):
      last += 1
    return first, last
