"""Converts the texts of the retriever to token ids.

Questions become `[CLS] question [SEP]`, passages `[CLS] title [SEP] text [SEP]`
(`[CLS] text [SEP]` without a title), cut to a maximum length with `[SEP]` as
the last token; token types are all 0 and are not stored.  Other tokenizers have
other special tokens (`special_tokens.py`), for example `<s> title </s></s> text
</s>`.  This is DPR's format
except for the second `[SEP]` that DPR puts at the last position of padded
texts, and for titles longer than half of the maximum, which DPR cuts before the
text; here a shorter cut is a prefix of a longer one, so that one token store
serves every length.  `title="joined"` and prefixes are for other encoders.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import numpy as np
import tokenizers
from jaxtyping import Bool, Int

from dpr_jax.core import errors
from dpr_jax.data import long_texts, records, special_tokens

TITLES = ("pair", "joined", "none")
# Files of which a fast tokenizer needs one; the last are SentencePiece models.
_FILES = (
  *("tokenizer.json", "vocab.txt", "vocab.json"),
  *("sentencepiece.bpe.model", "spiece.model"),
)


@dataclasses.dataclass(frozen=True)
class TokenBatch:
  """Token ids of some texts, padded to one length.

  Attributes:
    ids: token ids, padded with the tokenizer's id of padding.
    mask: False where padded.
  """

  ids: Int[np.ndarray, "rows length"]
  mask: Bool[np.ndarray, "rows length"]


@dataclasses.dataclass(frozen=True)
class TextTokenizer:
  """A fast tokenizer and the format of questions and passages.

  Attributes:
    backend: tokenizer of the checkpoint, without truncation or padding.
    question_length: maximum tokens of a question.
    passage_length: maximum tokens of a passage.
    title: "pair" (DPR), "joined" (title and text as one string) or "none".
    question_prefix: text before every question.
    passage_prefix: text before every title, or before the text if there is no
      title.
  """

  backend: tokenizers.Tokenizer
  question_length: int = 32
  passage_length: int = 256
  title: str = "pair"
  question_prefix: str = ""
  passage_prefix: str = ""

  def __post_init__(self):
    if self.title not in TITLES:
      raise errors.InputError(
        f"config.model.title={self.title!r}: must be one of {', '.join(TITLES)}"
      )
    for name in ("question_length", "passage_length"):
      if getattr(self, name) < 3:
        raise errors.InputError(
          f"config.model.{name}={getattr(self, name)}: must be >= 3"
        )

  def text_format(self) -> dict[str, int | str]:
    """All settings, besides the vocabulary, that determine a text's ids."""
    names = [field.name for field in dataclasses.fields(self)]
    return {name: getattr(self, name) for name in names if name != "backend"}

  @functools.cached_property
  def special(self) -> special_tokens.SpecialTokens:
    """Ids of the special tokens around a text."""
    return special_tokens.read(self.backend)

  @property
  def separator(self) -> int:
    """Id of the last token of every text, `[SEP]`."""
    return self.special.after[0]

  @functools.cached_property
  def padding(self) -> int:
    """Id of padding."""
    return special_tokens.padding(self.backend)

  def questions(
    self, questions: Sequence[str], length: int | None = None
  ) -> TokenBatch:
    """Token ids of questions, padded to `length` (default question_length)."""
    ids = self.question_ids(questions)
    return self.pad(ids, length or self.question_length)

  def passages(
    self, passages: Sequence[records.Passage], length: int | None = None
  ) -> TokenBatch:
    """Token ids of passages, padded to `length` (default passage_length)."""
    ids = self.passage_ids(passages)
    return self.pad(ids, length or self.passage_length)

  def question_ids(self, questions: Sequence[str]) -> list[list[int]]:
    """Token ids of questions, cut but not padded."""
    texts = [self.question_text(question) for question in questions]
    return self._encode(texts, self.question_length)

  def passage_ids(self, passages: Sequence[records.Passage]) -> list[list[int]]:
    """Token ids of passages, cut but not padded."""
    texts = [self.passage_text(passage) for passage in passages]
    return self._encode(texts, self.passage_length)

  def pad(
    self, ids: Sequence[Sequence[int] | np.ndarray], length: int
  ) -> TokenBatch:
    """Pads id lists of at most `length` to a batch."""
    batch = np.full((len(ids), length), self.padding, np.int32)
    mask = np.zeros((len(ids), length), bool)
    for row, values in enumerate(ids):
      batch[row, : len(values)] = values
      mask[row, : len(values)] = True
    return TokenBatch(batch, mask)

  def question_text(self, question: str) -> str:
    """The text of a question to tokenize."""
    return self.question_prefix + question

  def passage_text(self, passage: records.Passage) -> str | tuple[str, str]:
    """The text or pair of a passage to tokenize."""
    title, text = passage.title, passage.text
    if not title or self.title == "none":
      return self.passage_prefix + text
    if self.title == "joined":
      return f"{self.passage_prefix}{title} {text}"
    return self.passage_prefix + title, text

  def _encode(
    self, texts: list[str | tuple[str, str]], limit: int
  ) -> list[list[int]]:
    texts = [
      self._clip(text, limit)
      if isinstance(text, str)
      else tuple(self._clip(part, limit) for part in text)
      for text in texts
    ]
    try:
      encodings = self.backend.encode_batch_fast(texts)
    except TypeError as error:
      raise errors.InputError(name_bad_text(texts)) from error
    cut = []
    for encoding in encodings:
      ids = encoding.ids
      if len(ids) > limit:
        ids = [*ids[: limit - 1], self.separator]
      cut.append(ids)
    return cut

  def _clip(self, text: str, limit: int) -> str:
    """Shortens a text without changing its first `limit` ids."""
    try:
      return self._long_texts.clip(text, limit)
    except TypeError as error:
      raise errors.InputError(name_bad_text([text])) from error

  @functools.cached_property
  def _long_texts(self) -> long_texts.LongTexts:
    return long_texts.LongTexts(self.backend)


def name_bad_text(texts: Sequence) -> str:
  """Message that names the text that a tokenizer refused, and why."""
  for text in texts:
    try:
      "".join(text).encode()
    except UnicodeEncodeError as error:
      return (
        f"text {''.join(text)[:60]!r}… cannot be encoded: character"
        f" {error.start} is a lone surrogate; remove it"
      )
    except TypeError:
      return f"not a text: {text!r}"
  return "a text cannot be tokenized"


def load_tokenizer(folder: pathlib.Path) -> tokenizers.Tokenizer:
  """The fast tokenizer of a checkpoint folder.

  Raises:
    InputError: the folder has no tokenizer, or not one of an encoder.
  """
  folder = pathlib.Path(folder)
  if not any((folder / name).exists() for name in _FILES):
    raise errors.InputError(
      f"{folder} has neither tokenizer.json nor vocab.txt, nor another"
      f" tokenizer's file ({', '.join(_FILES[2:])}): copy the tokenizer's files"
      " of the checkpoint there"
    )
  # A finished workdir has tokenizer.json alone, and does not need it: half of
  # the time of all imports.
  import transformers

  try:
    backend = transformers.AutoTokenizer.from_pretrained(
      str(folder), use_fast=True, local_files_only=True, trust_remote_code=False
    ).backend_tokenizer
  # Many libraries read the files, one in Rust, whose panic is no Exception.
  except BaseException as error:
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
      raise
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    raise errors.InputError(
      f"{folder}: the tokenizer's files are damaged, or not those of a fast"
      f" tokenizer: {type(error).__name__}: {reason}"
    ) from error
  backend.no_truncation()
  backend.no_padding()
  try:
    special_tokens.read(backend)
  except errors.InputError as error:
    raise errors.InputError(f"{folder}: {error}") from error
  return backend
