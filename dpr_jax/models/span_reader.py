"""The reader: a BERT that reads question and passage together.

Three heads use the last hidden states (Karpukhin et al. 2020, section 6.1):
start and end of the answer at every token, the passage's rank at [CLS].
Parameters are `{"bert": tree, "span": {"kernel", "bias"}, "rank": {…}}`.  The
inputs are those of `data/reader_tokenization.py`, padded (`Rows`) or packed
(`PackedRows`), the output is float32 scores.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key

from dpr_jax.core import errors
from dpr_jax.models import bert, packed_texts, text_layout

IMPOSSIBLE = -1e9  # score of a position that cannot hold an answer


@flax.struct.dataclass
class Rows:
  """Inputs of one padded length, see `reader_tokenization.ReaderBatch`."""

  ids: Int[ArrayLike, "*cores rows length"]
  lengths: Int[ArrayLike, "*cores rows"]
  question_ends: Int[ArrayLike, "*cores rows"]
  passages: Int[ArrayLike, "*cores rows"]
  counts: Int[ArrayLike, "*cores rows"]
  dropout_keys: Key[ArrayLike, "*cores rows"] | None = None


@flax.struct.dataclass
class PackedRows:
  """Inputs in packed rows; per text the fields of `Rows`."""

  texts: packed_texts.PackedTexts
  question_ends: Int[ArrayLike, "*cores rows texts"]
  passages: Int[ArrayLike, "*cores rows texts"]
  counts: Int[ArrayLike, "*cores rows texts"]


@flax.struct.dataclass
class Scores:
  """Scores of the three heads for every input: of packed rows, by row and slot.

  Attributes:
    start: score of an answer that starts at a token; `IMPOSSIBLE` outside the
      passage.
    end: score of an answer that ends with a token, likewise.
    rank: score of the passage.
  """

  start: Float[Array, "*chunks inputs length"]
  end: Float[Array, "*chunks inputs length"]
  rank: Float[Array, "*chunks inputs"]


@flax.struct.dataclass
class BestSpans:
  """The best answer of every row.

  Attributes:
    rank: score of the passage.
    score: start + end score; at most `IMPOSSIBLE` where there is no passage.
    first: index of the answer's first token within the passage's tokens.
    last: index of its last token, inclusive.
  """

  rank: Float[Array, "*cores rows"]
  score: Float[Array, "*cores rows"]
  first: Int[Array, "*cores rows"]
  last: Int[Array, "*cores rows"]


@dataclasses.dataclass(frozen=True)
class SpanReader:
  """Structure of the reader; parameters are passed in.

  Attributes:
    config: sizes of the BERT.
    dtype: dtype of the BERT's computation; the heads compute in float32.
    chunk_size: rows that a device reads at once; 0 = all.  Of packed inputs it
      is one row.
    remat: see `bert.Bert`.
    attention: see `bert.Bert`.
  """

  config: bert.BertConfig
  dtype: Any = jnp.float32
  chunk_size: int = 0
  remat: str = "none"
  attention: str = "plain"

  def __post_init__(self):
    bert.check_attention(self.config, self.attention)
    if self.remat not in bert.REMATS:
      raise errors.InputError(
        f"config.reader.remat={self.remat!r}: must be one of"
        f" {', '.join(bert.REMATS)}"
      )

  def init_heads(self, seed: int) -> dict[str, Any]:
    """Fresh heads, as BERT initialises dense layers."""
    generator = np.random.default_rng((seed, 6))
    width, scale = self.config.hidden_size, self.config.initializer_range
    return {
      name: {
        "kernel": np.float32(scale * generator.standard_normal((width, count))),
        "bias": np.zeros(count, np.float32),
      }
      for name, count in (("span", 2), ("rank", 1))
    }

  def fuse(self, params: dict[str, Any]) -> dict[str, Any]:
    """Parameters that give the same scores faster; not for training."""
    return {
      name: bert.fuse(node, False, self.dtype) if name == "bert" else node
      for name, node in params.items()
    }

  def scores(self, params: dict[str, Any], rows: Rows | PackedRows) -> Scores:
    """The heads' scores of every input, as long as the longest tile."""
    is_packed = isinstance(rows, PackedRows)
    ids = rows.texts.token_ids if is_packed else rows.ids
    count, size = ids.shape[0], 1 if is_packed else self.chunk_size
    words = bert.look_up(params["bert"], ids)
    if not size or size >= count:
      return self._scores(params, rows, words)
    if count % size:
      raise errors.InputError(
        f"config.reader.chunk_size={size} does not divide the {count} inputs of"
        " a device: choose a divisor, or 0 for all at once"
      )
    # Once, not per chunk.
    params = params | {"bert": bert.fuse(params["bert"], first_only=False)}
    chunks = jax.tree.map(
      lambda x: x.reshape(count // size, size, *x.shape[1:]), (rows, words)
    )
    scores = jax.lax.map(lambda chunk: self._scores(params, *chunk), chunks)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), scores)

  def _scores(
    self, params: dict[str, Any], rows: Rows | PackedRows, words: Array
  ) -> Scores:
    layout: text_layout.Layout
    if isinstance(rows, PackedRows):
      ids, layout = rows.texts.token_ids, text_layout.Packed(rows.texts)
      question_ends = rows.question_ends[0, rows.texts.slots]
    else:
      ids, question_ends = rows.ids, rows.question_ends[:, None]
      mask = jnp.arange(ids.shape[1])[None] < rows.lengths[:, None]
      layout = text_layout.Padded(mask, rows.dropout_keys)
    hidden = (
      bert.Bert(self.config, self.dtype, self.remat, self.attention)
      .apply(
        {"params": params["bert"]},
        ids,
        layout,
        token_types=(layout.positions >= question_ends).astype(jnp.int32),
        words=words,
      )
      .astype(jnp.float32)
    )
    spans = hidden @ params["span"]["kernel"] + params["span"]["bias"]
    first, count = jnp.ravel(rows.passages), jnp.ravel(rows.counts)
    tiles = [
      _within(*tile, layout.longest)
      for tile in zip(
        layout.to_tiles(spans),
        layout.split(first),
        layout.split(count),
        strict=True,
      )
    ]
    start, end = jnp.moveaxis(jnp.concatenate(tiles), -1, 0)
    firsts = layout.firsts(hidden)[:, 0]
    rank = firsts @ params["rank"]["kernel"] + params["rank"]["bias"]
    return Scores(start, end, rank[:, 0])

  def best_spans(
    self, params: dict[str, Any], rows: Rows, most: int
  ) -> BestSpans:
    """The best span of at most `most` tokens in every row.

    Of equal scores the earliest start is taken, then the shortest span.
    """
    scores = self.scores(params, rows)
    count, length = rows.ids.shape
    most = min(most, length)
    # sums[row, first * most + more] = start[first] + end[first + more]: all
    # spans of at most `most` tokens, in the order in which ties are decided.
    ends = jnp.pad(
      scores.end, ((0, 0), (0, most - 1)), constant_values=IMPOSSIBLE
    )
    sums = jnp.stack(
      [scores.start + ends[:, more : more + length] for more in range(most)],
      axis=-1,
    ).reshape(count, length * most)
    best = jnp.argmax(sums, axis=-1)
    first = best // most - rows.passages
    return BestSpans(
      scores.rank,
      sums[jnp.arange(count), best],
      first,
      first + best % most,
    )


def _within(
  scores: Float[Array, "inputs n two"],
  first: Int[Array, " inputs"],
  count: Int[Array, " inputs"],
  length: int,
) -> Float[Array, "inputs length two"]:
  """Scores with `IMPOSSIBLE` outside the passage, and up to a length.

  Only the passage's tokens, `count` from `first` on, can be an answer.
  """
  places = jnp.arange(scores.shape[1])
  inside = (places >= first[:, None]) & (places < (first + count)[:, None])
  scores = jnp.where(inside[..., None], scores, IMPOSSIBLE)
  more = ((0, 0), (0, length - scores.shape[1]), (0, 0))
  return jnp.pad(scores, more, constant_values=IMPOSSIBLE)
