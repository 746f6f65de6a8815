"""The two towers: questions and passages in, vectors out.

A tower is a BERT and a pooling rule.  Both towers start from the same
checkpoint and have weights of their own, as in the paper, unless `shared` is
set.  [CLS] pooling and the plain dot product are the paper's; mean pooling,
unit vectors and a temperature are those of other encoders.  Parameters are
`{"question": tree, "passage": tree}` or `{"shared": tree}`.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key

from dpr_jax.core import errors
from dpr_jax.models import bert, stacked_layers

POOLINGS = ("cls", "mean")
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


@dataclasses.dataclass(frozen=True)
class DualEncoder:
  """Structure of the towers; parameters are passed in.

  Attributes:
    config: sizes of the BERTs.
    pooling: "cls" = hidden state at position 0; "mean" = mean over the tokens.
    normalize: scale vectors to length 1.
    shared: one BERT for both kinds of text.
    dtype: dtype of the computation; vectors are float32.
    chunk_size: texts that a device encodes at once; 0 = all.  A chunk that
      fits into the CPU's cache is faster.
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

  def __post_init__(self):
    if self.pooling not in POOLINGS:
      raise errors.InputError(
        f"config.model.pooling={self.pooling!r}: must be one of"
        f" {', '.join(POOLINGS)}"
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

  def towers(self, params: dict[str, Any]) -> dict[str, Any]:
    """Two towers that start from one pretrained tree."""
    if self.shared:
      return {SHARED: params}
    copy = jax.tree.map(lambda x: x.copy(), params)
    return {QUESTION: params, PASSAGE: copy}

  def fuse(self, params: dict[str, Any]) -> dict[str, Any]:
    """Parameters that give the same vectors faster; not for training."""
    first_only = self.pooling == "cls"
    return {
      name: bert.fuse(tower, first_only, self.dtype)
      for name, tower in params.items()
    }

  def encode_questions(
    self, params: dict[str, Any], questions: Texts
  ) -> Float[Array, "rows dim"]:
    """Vectors of questions."""
    tower = params[SHARED if self.shared else QUESTION]
    size = self.question_chunk_size or self.chunk_size
    return self._encode(tower, questions, size)

  def encode_passages(
    self, params: dict[str, Any], passages: Texts
  ) -> Float[Array, "rows dim"]:
    """Vectors of passages."""
    tower = params[SHARED if self.shared else PASSAGE]
    return self._encode(tower, passages, self.chunk_size)

  def _encode(self, tower: dict[str, Any], texts: Texts, size: int) -> Array:
    rows = texts.token_ids.shape[0]
    encode = self._encode_chunk
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
      tower = bert.fuse(tower, self.pooling == "cls")  # once, not per chunk
    # [rows, ...] to [chunks, size, ...].  Rows keep their order, so the
    # vectors need only be reshaped back.
    chunks = jax.tree.map(
      lambda x: x.reshape(rows // size, size, *x.shape[1:]), (texts, words)
    )
    vectors = jax.lax.map(lambda chunk: encode(tower, *chunk), chunks)
    return vectors.reshape(rows, -1)

  def _encode_chunk(
    self, tower: dict[str, Any], texts: Texts, words: Array | None
  ) -> Array:
    hidden = bert.Bert(
      self.config, self.dtype, self.remat, self.attention
    ).apply(
      {"params": tower},
      texts.token_ids,
      texts.mask,
      dropout_keys=texts.dropout_keys,
      first_only=self.pooling == "cls",
      words=words,
    )
    if self.pooling == "cls":
      vectors = hidden[:, 0].astype(jnp.float32)
    else:
      # Mean over the tokens [rows, length, dim], padding excluded.
      weights = texts.mask.astype(jnp.float32)[:, :, None]
      vectors = jnp.sum(hidden.astype(jnp.float32) * weights, axis=1)
      vectors = vectors / jnp.maximum(jnp.sum(weights, axis=1), 1.0)
    if self.normalize:
      # The constant keeps the gradient of a zero vector finite.
      norms = jnp.sqrt(jnp.sum(vectors**2, axis=-1, keepdims=True) + 1e-24)
      vectors = vectors / norms
    return vectors
