"""What encoders of all backends share: texts and vectors around the tiles.

A backend (`encoder.py`: JAX, `onnx_encoder.py`: ONNX Runtime) computes tiles in
`_encode`; everything here is built on it.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from dpr_jax.core import forks
from dpr_jax.data import arguments
from dpr_jax.inference import encoder_calls, length_tiles
from dpr_jax.models import retriever_model
from dpr_jax.models.dual_encoder import PASSAGE, QUESTION


@runtime_checkable
class Tokens(Protocol):
  """A source of token ids by row."""

  def ids(self, row: int) -> Sequence[int] | np.ndarray:
    """Token ids of one text, cut but not padded."""
    ...


class _Lists(list):
  """A list of token ids, as `Tokens`."""

  def ids(self, row: int) -> Sequence[int]:
    """Token ids of one text."""
    return self[row]


@dataclasses.dataclass
class Work:
  """Number of encoded tokens, without and with padding."""

  tokens: int = 0
  padded_tokens: int = 0

  @property
  def padding(self) -> float:
    """Share of padding, including unfilled tiles and idle devices; 0 = none."""
    if not self.padded_tokens:
      return 0.0
    return 1 - self.tokens / self.padded_tokens


class TiledEncoder(encoder_calls.Calls, abc.ABC):
  """Encodes texts in tiles of about equal length.

  Attributes:
    model: towers and tokenizer.
    work: tokens encoded so far.
    compiles: whether each padded length is compiled at its first use.
    independent: whether a vector depends on no other text of its tile.
  """

  model: retriever_model.Towers
  work: Work
  compiles: bool
  independent: bool
  _length_step: int
  _tokens: int  # of a tile
  _home: forks.Home

  def stream(
    self,
    kind: str,
    tokens: Tokens,
    lengths: Int[np.ndarray, " texts"],
    widths: Sequence[int],
    first: int = 0,
    wanted: Bool[np.ndarray, " texts"] | None = None,
  ) -> Iterator[tuple[Int[np.ndarray, " rows"], Float[np.ndarray, "rows dim"]]]:
    """Yields (rows, their vectors), the longest texts first.

    Args:
      kind: "question" or "passage".
      tokens: source of the ids of rows `first`, `first` + 1, ...
      lengths: number of tokens of these rows; yielded rows count from 0.
      widths: padded lengths, see `length_tiles.plan`.
      first: row of the first text in `tokens`.
      wanted: rows to encode, in tiles of the shapes they have among all; None =
        all rows.  If vectors are not `independent`, all rows of a tile or none.
    """
    self._home.check(self)
    if not len(lengths):
      return
    tiles = self.tiles(lengths, widths)
    if wanted is not None and self.independent:
      tiles = length_tiles.only(tiles, wanted)
    elif wanted is not None:
      tiles = [tile for tile in tiles if wanted[tile.rows].any()]
    for rows, vectors, work in self._encode(
      kind, tokens, lengths, tiles, first
    ):
      self.work.tokens += work.tokens
      self.work.padded_tokens += work.padded_tokens
      yield rows, vectors

  @abc.abstractmethod
  def _encode(
    self,
    kind: str,
    tokens: Tokens,
    lengths: Int[np.ndarray, " texts"],
    tiles: Sequence[length_tiles.Tile],
    first: int,
  ) -> Iterator[
    tuple[Int[np.ndarray, " rows"], Float[np.ndarray, "rows dim"], Work]
  ]:
    """Yields (rows, their vectors, tokens); arguments as in `stream`."""

  def tiles(
    self, lengths: Int[np.ndarray, " texts"], widths: Sequence[int]
  ) -> list[length_tiles.Tile]:
    """The tiles in which `stream` encodes texts of these lengths."""
    # A single text has the least latency in a tile of its own.
    size = 1 if len(lengths) == 1 else self._tokens
    return length_tiles.plan(lengths, widths, size)

  @property
  def programs(self) -> int:
    """Number of compiled shapes."""
    return 0

  @property
  @abc.abstractmethod
  def backend(self) -> dict[str, str]:
    """Backend and versions, for the manifest of vectors."""

  @abc.abstractmethod
  def widths(
    self, histogram: Int[np.ndarray, " lengths"], shapes: int
  ) -> tuple[int, ...]:
    """Padded lengths for `stream`, for a corpus.

    Args:
      histogram: number of texts of each length from 0.
      shapes: maximum number of padded lengths.
    """

  @property
  def fingerprint(self) -> str:
    """sha256 of the model; equals "model" in the manifest of its vectors."""
    return self.model.fingerprint

  @property
  def settings(self) -> dict[str, Any]:
    """Settings of `config.model` that determine a vector."""
    return self.model.settings

  @property
  def dim(self) -> int:
    """Width of a vector."""
    return self.model.encoder.dim

  def encode_questions(
    self, questions: arguments.Texts
  ) -> Float[np.ndarray, "questions dim"]:
    """Float32 vectors of questions, one row per question.

    Args:
      questions: texts, or one text.

    Raises:
      InputError: an item is not a text.
    """
    texts = arguments.texts("questions", questions)
    return self.collect(QUESTION, self.model.tokenizer.question_ids(texts))

  def encode_passages(
    self, passages: arguments.Passages
  ) -> Float[np.ndarray, "passages dim"]:
    """Float32 vectors of passages, one row per passage.

    Args:
      passages: passages, or one passage; each is a text, a (title, text), a
        {"title", "text"}, a Passage or a Hit.

    Raises:
      InputError: an item is not a passage.
    """
    records = arguments.passages("passages", passages)
    return self.collect(PASSAGE, self.model.tokenizer.passage_ids(records))

  def collect(
    self,
    kind: str,
    ids: list[list[int]],
    widths: Sequence[int] = (),
    report: Callable[[int], Any] = lambda count: None,
  ) -> Float[np.ndarray, "texts dim"]:
    """Vectors of tokenized texts, in their order.

    Args:
      kind: "question" or "passage".
      ids: token ids, cut but not padded.
      widths: padded lengths, see `length_tiles.plan`; () = the multiples of
        `length_step` that the texts need.
      report: called with the number of texts, whenever some are encoded.
    """
    lengths = np.array([len(row) for row in ids], np.int64)
    if not widths:
      tokenizer = self.model.tokenizer
      limit = (
        tokenizer.question_length
        if kind == QUESTION
        else tokenizer.passage_length
      )
      widths = length_tiles.stepped_widths(lengths, self._length_step, limit)
    vectors = np.empty((len(ids), self.dim), np.float32)
    for rows, result in self.stream(kind, _Lists(ids), lengths, widths):
      vectors[rows] = result
      report(len(rows))
    return vectors
