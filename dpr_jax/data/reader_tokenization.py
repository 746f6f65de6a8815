"""What the reader sees: a question and a window of a passage, as token ids.

The paper's layout is `[CLS] question [SEP] title [SEP] passage`.  A passage is
tokenized once, with the characters that every token comes from; a passage that
does not fit is cut into windows that overlap.  Answers are characters of the
original text on both sides: they become tokens for training, and the tokens
that the reader chooses become characters again, so that nothing is ever looked
for among word pieces.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import regex
import tokenizers
from jaxtyping import Bool, Int

from dpr_jax.core import errors, setting_rules
from dpr_jax.data import long_texts, tokenization

# "dpr": the paper's; "dpr-hf": the same with token types 0 throughout, as
# Hugging Face's DPRReader encodes; "squad": without a title, and with `[SEP]`
# at the end.
LAYOUTS = ("dpr", "dpr-hf", "squad")
_BLOCK = 1000  # texts that are tokenized at once
_LONG = 100_000  # characters; longer texts are tokenized in pieces
_GRAPHEME = regex.compile(r"\X")
_LONGEST_GRAPHEME = 256  # characters


def whole_graphemes(text: str, start: int, end: int) -> tuple[int, int]:
  """A span of characters, widened until it cuts no letter off from its marks.

  Tokenizers leave combining marks out, so the characters of a token end before
  them.  An empty span stays as it is.
  """
  if start >= end or text.isascii():
    return start, end
  # Graphemes are found from their beginning, which is never this far away.
  for found in _GRAPHEME.finditer(text, max(0, start - _LONGEST_GRAPHEME)):
    if found.start() <= start < found.end():
      start = found.start()
    if found.end() >= end:
      return start, found.end()
  return start, end


@dataclasses.dataclass(frozen=True, slots=True)
class Tokens:
  """A text as tokens.

  Attributes:
    ids: without special tokens.
    starts: character of the text where each token starts.
    ends: character behind each token.
  """

  ids: Int[np.ndarray, " tokens"]
  starts: Int[np.ndarray, " tokens"]
  ends: Int[np.ndarray, " tokens"]

  def span_of(self, start: int, end: int) -> tuple[int, int] | None:
    """First and last token of characters `start` to `end`; None: there is none.

    The tokens may reach further: an answer may begin within one.
    """
    touched = np.flatnonzero((self.ends > start) & (self.starts < end))
    touched = touched[self.ends[touched] > self.starts[touched]]
    return (int(touched[0]), int(touched[-1])) if len(touched) else None


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
  """Consecutive tokens of a passage that are read at once.

  Attributes:
    first: number of the first one.
    count: how many.
  """

  first: int
  count: int

  def holds(self, span: tuple[int, int]) -> bool:
    """True where the whole of a token span is in it."""
    return self.first <= span[0] and span[1] < self.first + self.count


@dataclasses.dataclass(frozen=True, slots=True)
class ReaderInput:
  """One row for the reader.

  Attributes:
    ids: token ids with the special ones.
    question_end: position behind the first `[SEP]`: there token type 1 begins.
    passage: position of the passage's first token.
    window: which tokens of the passage stand there.
  """

  ids: Int[np.ndarray, " length"]
  question_end: int
  passage: int
  window: Window


@dataclasses.dataclass(frozen=True)
class ReaderBatch:
  """Rows padded to one length; `models/span_reader.py` takes the fields.

  Attributes:
    ids: token ids, that of `[PAD]` where padded.
    lengths: tokens in each row.
    question_ends: where token type 1 begins; the length where it never does.
    passages: position of the passage's first token.
    counts: tokens of the passage.
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
    backend: from the checkpoint's folder, without truncation or padding.
    length: tokens of an input at most.
    question_length: tokens of a question at most; it is cut there.
    overlap: tokens that two windows of a long passage share.
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
    """The settings that decide an input's ids, vocabulary aside."""
    names = [field.name for field in dataclasses.fields(self)]
    return {name: getattr(self, name) for name in names if name != "backend"}

  @functools.cached_property
  def _special(self) -> tuple[int, int]:
    """Ids of `[CLS]` and `[SEP]`."""
    return tuple(self.backend.token_to_id(t) for t in ("[CLS]", "[SEP]"))

  @functools.cached_property
  def continues(self) -> Bool[np.ndarray, " vocabulary"]:
    """True for ids of pieces that continue a word, `##ing`."""
    vocabulary = self.backend.get_vocab()
    table = np.zeros(max(vocabulary.values()) + 1, bool)
    table[[i for token, i in vocabulary.items() if token[:2] == "##"]] = True
    return table

  def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
    """Tokens of texts, however long, with their characters."""
    found = []
    for first in range(0, len(texts), _BLOCK):
      some = list(texts[first : first + _BLOCK])
      short = ["" if len(text) > _LONG else text for text in some]
      tokens = self._tokenize(short)
      for place, text in enumerate(some):
        if len(text) > _LONG:
          tokens[place] = self._tokenize_long(text)
      found += tokens
    return found

  def _tokenize(self, texts: list[str]) -> list[Tokens]:
    try:
      encodings = self.backend.encode_batch(texts, add_special_tokens=False)
    except TypeError as error:
      raise errors.InputError(tokenization.name_bad_text(texts)) from error
    found = []
    for encoding in encodings:
      offsets = np.array(encoding.offsets, np.int32).reshape(-1, 2)
      ids = np.array(encoding.ids, np.int32)
      found.append(Tokens(ids, offsets[:, 0], offsets[:, 1]))
    return found

  def _tokenize_long(self, text: str) -> Tokens:
    """Tokens of a long text, piece by piece, as if of the whole."""
    parts = []
    for first, piece in self._long_texts.pieces(text, _LONG):
      short = self._long_texts.shorten(piece)
      (tokens,) = self._tokenize([short.text])
      starts = short.original(tokens.starts)
      # Of its last character, for what is left out stands before or behind it.
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
    """Ids of questions, cut to one more than `question_length`.

    The one more shows that a question is cut; `compose` leaves it out.
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
    """What stands before the passage, and the position behind its first [SEP].

    Question and title have half of the length at most; what is too long is cut.
    """
    cls, separator = self._special
    question = question[: self.question_length]
    parts = [[cls], question, [separator]]
    if self.layout != "squad":
      room = self.length // 2 - len(question) - 3
      parts += [title[: max(room, 0)], [separator]]
    ids = np.concatenate([np.asarray(part, np.int32) for part in parts])
    return ids, len(question) + 2

  def windows(self, head: int, count: int) -> list[Window]:
    """The windows of a passage of `count` tokens behind a head; at least one.

    All but the last are as long as they can be; each shares `overlap` tokens
    with the one before.
    """
    room = self.length - head - (self.layout == "squad")
    found = [Window(0, min(count, room))]
    while found[-1].first + found[-1].count < count:
      first = found[-1].first + room - self.overlap
      found.append(Window(first, min(room, count - first)))
    return found

  def compose(
    self,
    head: Int[np.ndarray, " head"],
    question_end: int,
    passage: Int[np.ndarray, " tokens"],
    window: Window,
  ) -> ReaderInput:
    """One input from what `head` and `windows` gave."""
    parts = [head, passage[window.first : window.first + window.count]]
    if self.layout == "squad":
      parts.append(np.array(self._special[1:], np.int32))
    ids = np.concatenate(parts)
    return ReaderInput(ids, question_end, len(head), window)

  def pad(self, inputs: Sequence[ReaderInput], length: int) -> ReaderBatch:
    """Pads inputs of at most `length` to a batch."""
    padding = tokenization.pad_id(self.backend)
    ids = np.full((len(inputs), length), padding, np.int32)
    for row, one in enumerate(inputs):
      ids[row, : len(one.ids)] = one.ids

    def numbers(values) -> np.ndarray:
      return np.array(list(values), np.int32)

    ends = (each.question_end for each in inputs)
    if self.layout == "dpr-hf":
      ends = (length for _ in inputs)
    return ReaderBatch(
      ids,
      numbers(len(each.ids) for each in inputs),
      numbers(ends),
      numbers(each.passage for each in inputs),
      numbers(each.window.count for each in inputs),
    )

  def whole_words(
    self, ids: Int[np.ndarray, " tokens"], first: int, last: int
  ) -> tuple[int, int]:
    """A token span widened until it neither begins nor ends within a word."""
    continues = self.continues
    while first > 0 and continues[ids[first]]:
      first -= 1
    while last + 1 < len(ids) and continues[ids[last + 1]]:
      last += 1
    return first, last
