"""The reader: a BERT that reads question and passage together.

Three heads use the last hidden states (Karpukhin et al. 2020, section 6.1):
start and end of the answer at every token, the passage's rank at [CLS].
Parameters are `{"bert": tree, "span": {"kernel", "bias"}, "rank": {…}}`.  The
input is padded rows of `data/reader_tokenization.py`, the output float32
scores.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key

from dpr_jax.core import errors
from dpr_jax.models import bert

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
class Scores:
  """Scores of the three heads.

  Attributes:
    start: score of an answer that starts at a token; `IMPOSSIBLE` outside the
      passage.
    end: score of an answer that ends with a token, likewise.
    rank: score of the passage.
  """

  start: Float[Array, "*chunks rows length"]
  end: Float[Array, "*chunks rows length"]
  rank: Float[Array, "*chunks rows"]


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
    chunk_size: rows that a device reads at once; 0 = all.
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

  def scores(self, params: dict[str, Any], rows: Rows) -> Scores:
    """The heads' scores of every row."""
    count, size = rows.ids.shape[0], self.chunk_size
    words = bert.look_up(params["bert"], rows.ids)
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
    return jax.tree.map(lambda x: x.reshape(count, *x.shape[2:]), scores)

  def _scores(self, params: dict[str, Any], rows: Rows, words: Array) -> Scores:
    places = jnp.arange(rows.ids.shape[1])[None]
    hidden = (
      bert.Bert(self.config, self.dtype, self.remat, self.attention)
      .apply(
        {"params": params["bert"]},
        rows.ids,
        places < rows.lengths[:, None],
        token_types=(places >= rows.question_ends[:, None]).astype(jnp.int32),
        dropout_keys=rows.dropout_keys,
        words=words,
      )
      .astype(jnp.float32)
    )
    spans = hidden @ params["span"]["kernel"] + params["span"]["bias"]
    inside = in_passage(rows)
    start, end = (
      jnp.where(inside, spans[..., side], IMPOSSIBLE) for side in (0, 1)
    )
    rank = hidden[:, 0] @ params["rank"]["kernel"] + params["rank"]["bias"]
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


def in_passage(rows: Rows) -> Bool[Array, "rows length"]:
  """True at the tokens of the passage, the only ones that can be an answer."""
  places = jnp.arange(rows.ids.shape[1])[None]
  first = rows.passages[:, None]
  return (places >= first) & (places < first + rows.counts[:, None])
