"""The two towers: questions and passages in, vectors out.

A tower is an encoder and what makes one vector of its hidden states
(`pooling_layers.py`).  Both towers start from the same checkpoint, or from one
of a pair each, and have weights of their own, as in the paper, unless `shared`
is set.  [CLS] pooling and the plain dot product are the paper's; the other
poolings, dense layers, unit vectors and a temperature are those of other
encoders.  Parameters are `{"question": tree, "passage": tree}` or
`{"shared": tree}`; dense layers are part of a tree.
"""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key

from dpr_jax.core import errors
from dpr_jax.models import (
  bert,
  packed_texts,
  pooling_layers,
  stacked_layers,
  text_layout,
)

POOLINGS = pooling_layers.POOLINGS
QUESTION, PASSAGE, SHARED = "question", "passage", "shared"


@flax.struct.dataclass
class Texts:
  """Token ids of texts of one kind, a row per text.

  Attributes:
    token_ids: WordPiece ids, padded with 0.
    mask: False where padded.
    dropout_keys: one key per text, or None for no dropout.
  """

  token_ids: Int[ArrayLike, "*cores rows length"]
  mask: Bool[ArrayLike, "*cores rows length"]
  dropout_keys: Key[ArrayLike, "*cores rows"] | None = None


AnyTexts = Texts | packed_texts.PackedTexts


@dataclasses.dataclass(frozen=True)
class DualEncoder:
  """Structure of the towers; parameters are passed in.

  Attributes:
    config: sizes of the BERTs.
    pooling: one of `POOLINGS`: "cls" = hidden state at position 0, "mean" =
      mean over the tokens, ...
    dense: dense layers after pooling.
    normalize: scale vectors to length 1.
    question_skip: number of tokens at the beginning of every question, [CLS]
      and the prefix, that are not pooled; 0 = all are.
    passage_skip: the same for passages.
    shared: one BERT for both kinds of text.
    dtype: dtype of the computation; vectors are float32.
    chunk_size: texts that a device encodes at once; 0 = all.  A chunk that
      fits into the CPU's cache is faster.  Of packed texts it is a row.
    question_chunk_size: the same for questions, which are short; 0 =
      chunk_size.
    gradient_cache: keep only the vectors of a chunk, and encode it again in the
      backward pass: memory grows with the chunk instead of the batch, for 1/3
      more work.  Both passes have the same dropout masks.
    remat: see `bert.Bert`.
    attention: see `bert.Bert`.
  """

  config: bert.BertConfig
  pooling: str = "cls"
  normalize: bool = False
  shared: bool = False
  dtype: Any = jnp.float32
  chunk_size: int = 0
  question_chunk_size: int = 0
  gradient_cache: bool = False
  remat: str = "none"
  attention: str = "plain"
  dense: tuple[pooling_layers.DenseLayer, ...] = ()
  question_skip: int = 0
  passage_skip: int = 0

  def __post_init__(self):
    if self.pooling not in POOLINGS:
      raise errors.InputError(
        f"config.model.pooling={self.pooling!r}: must be one of"
        f" {', '.join(POOLINGS)}"
      )
    if self.dense and self.dense[0].inputs != self.config.hidden_size:
      raise errors.InputError(
        f"the dense layer after pooling takes {self.dense[0].inputs} numbers,"
        f" the encoder gives {self.config.hidden_size}: they are not of the"
        " same checkpoint"
      )
    bert.check_attention(self.config, self.attention)
    if self.remat not in bert.REMATS:
      raise errors.InputError(
        f"config.train.remat={self.remat!r}: must be one of"
        f" {', '.join(bert.REMATS)}"
      )

  @property
  def names(self) -> tuple[str, ...]:
    """Names of the towers in the parameters."""
    return (SHARED,) if self.shared else (QUESTION, PASSAGE)

  @property
  def dim(self) -> int:
    """Width of a vector."""
    return self.dense[-1].outputs if self.dense else self.config.hidden_size

  @property
  def first_only(self) -> bool:
    """Whether a vector depends on the last hidden state at position 0 alone."""
    skips = self.question_skip or self.passage_skip
    return self.pooling == "cls" and not skips

  def towers(
    self, params: dict[str, Any], passage: dict[str, Any] | None = None
  ) -> dict[str, Any]:
    """Parameters of both towers.

    Args:
      params: pretrained tree of both towers, or of the question tower.
      passage: pretrained tree of the passage tower; None = a copy of `params`.
    """
    if self.shared:
      return {SHARED: params}
    if passage is None:
      passage = jax.tree.map(lambda x: x.copy(), params)
    return {QUESTION: params, PASSAGE: passage}

  def fuse(self, params: dict[str, Any]) -> dict[str, Any]:
    """Parameters that give the same vectors faster; not for training."""
    return {
      name: bert.fuse(tower, self.first_only, self.dtype)
      for name, tower in params.items()
    }

  def encode_questions(
    self, params: dict[str, Any], questions: AnyTexts
  ) -> Float[Array, "texts dim"]:
    """Vectors of questions, in the order of rows, then slots."""
    tower = params[SHARED if self.shared else QUESTION]
    size = self.question_chunk_size or self.chunk_size
    return self._encode(tower, questions, size, self.question_skip)

  def encode_passages(
    self, params: dict[str, Any], passages: AnyTexts
  ) -> Float[Array, "texts dim"]:
    """Vectors of passages, in the order of rows, then slots."""
    tower = params[SHARED if self.shared else PASSAGE]
    return self._encode(tower, passages, self.chunk_size, self.passage_skip)

  def _encode(
    self, tower: dict[str, Any], texts: AnyTexts, size: int, skip: int
  ) -> Array:
    rows = texts.token_ids.shape[0]
    if isinstance(texts, packed_texts.PackedTexts):
      size = 1  # a row is a chunk
    encode = functools.partial(self._encode_chunk, skip)
    if self.gradient_cache:
      encode = jax.checkpoint(encode)
    if not size or size >= rows:
      return encode(tower, texts, None)
    if rows % size:
      raise errors.InputError(
        f"config.train.chunk_size={size} does not divide the {rows} texts of a"
        " device: choose a divisor, or 0 for all at once (for questions,"
        " config.train.question_chunk_size)"
      )
    words = None
    if not self.gradient_cache:
      # Looked up for all chunks at once: otherwise the gradient of the whole
      # embedding table would be summed once per chunk.
      words = bert.look_up(tower, texts.token_ids)
    if stacked_layers.STACK not in tower:
      tower = bert.fuse(tower, self.first_only)  # once, not per chunk
    # [rows, ...] to [chunks, size, ...].  Rows keep their order, so the
    # vectors need only be reshaped back.
    chunks = jax.tree.map(
      lambda x: x.reshape(rows // size, size, *x.shape[1:]), (texts, words)
    )
    vectors = jax.lax.map(lambda chunk: encode(tower, *chunk), chunks)
    return vectors.reshape(-1, vectors.shape[-1])

  def _encode_chunk(
    self,
    skip: int,
    tower: dict[str, Any],
    texts: AnyTexts,
    words: Array | None,
  ) -> Array:
    layout: text_layout.Layout
    if isinstance(texts, packed_texts.PackedTexts):
      layout = text_layout.Packed(texts)
    else:
      layout = text_layout.Padded(texts.mask, texts.dropout_keys)
    hidden = bert.Bert(
      self.config, self.dtype, self.remat, self.attention
    ).apply(
      {"params": tower},
      texts.token_ids,
      layout,
      first_only=self.first_only,
      words=words,
    )
    by_text = layout.split if self.first_only else layout.to_tiles
    vectors = jnp.concatenate(
      [
        pooling_layers.pool(tile, mask, self.pooling, skip)
        for tile, mask in zip(by_text(hidden), layout.masks, strict=True)
      ]
    )
    vectors = pooling_layers.apply_dense(tower, self.dense, vectors)
    return pooling_layers.unit(vectors) if self.normalize else vectors
