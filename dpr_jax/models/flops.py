"""Counts tokens and FLOPs of encoding, with and without padding.

The count is that of the model, not of the compiled program: the matrix products
that a BERT of these sizes needs for texts of these lengths.  Work on padding is
counted separately, so that the figures tell a faster program from one that does
less work.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Integer

from dpr_jax.models import bert

# The backward pass has two matrix products for each one of the forward pass.
TRAINING = 3


def layer_flops(config: bert.BertConfig, length: int, number: int = 0) -> int:
  """FLOPs of one token in the forward pass of one layer.

  Four products with [width, width], two with the feed-forward's kernels (three
  where it is gated), and scores and their sum over a text of `length` tokens,
  or over the near ones in a local layer.

  Args:
    config: sizes of the model.
    length: tokens of the text.
    number: index of the layer.
  """
  width, inner = config.hidden_size, config.intermediate_size
  kernels = 3 if config.pre_norm else 2
  if config.local_attention and number % config.global_attn_every_n_layers:
    length = min(length, config.local_attention + 1)
  return 2 * (4 * width**2 + kernels * width * inner) + 4 * length * width


def encoding_flops(
  config: bert.BertConfig, length: int, *, first_only: bool = False
) -> int:
  """FLOPs of encoding a text of `length` tokens.

  Counts matrix products only: two FLOPs per multiplication and addition.

  Args:
    config: sizes of the model.
    length: tokens of the text.
    first_only: the last layer is computed for position 0 alone, as for [CLS]
      pooling; the other positions only give keys and values.
  """
  each = [
    layer_flops(config, length, number)
    for number in range(config.num_hidden_layers)
  ]
  projection = 0  # of the embeddings
  if config.embedding_width != config.hidden_size:
    projection = 2 * length * config.embedding_width * config.hidden_size
  if not first_only:
    return projection + length * sum(each)
  keys = 2 * 2 * config.hidden_size**2
  last = each[-1] + (length - 1) * keys
  return projection + length * sum(each[:-1]) + last


@dataclasses.dataclass(frozen=True)
class Work:
  """Tokens and FLOPs of some texts; the work of several steps can be added.

  Attributes:
    tokens: tokens without padding.
    padded_tokens: tokens with padding.
    flops: FLOPs of training without padding.
    padded_flops: FLOPs of training with padding.
  """

  tokens: int = 0
  padded_tokens: int = 0
  flops: int = 0
  padded_flops: int = 0

  def __add__(self, other: "Work") -> "Work":
    return Work(
      self.tokens + other.tokens,
      self.padded_tokens + other.padded_tokens,
      self.flops + other.flops,
      self.padded_flops + other.padded_flops,
    )

  @property
  def padding(self) -> float:
    """Share of padding among all tokens."""
    return 1 - self.tokens / self.padded_tokens


def training_flops(
  config: bert.BertConfig, lengths: Integer[np.ndarray, " texts"]
) -> int:
  """FLOPs of training on texts of these lengths, without padding."""
  found, counts = np.unique(lengths, return_counts=True)
  return TRAINING * sum(
    int(count) * encoding_flops(config, int(length))
    for length, count in zip(found, counts, strict=True)
  )


def training_work(
  config: bert.BertConfig, masks: Sequence[Bool[np.ndarray, "_ _"]]
) -> Work:
  """Work of a train step on texts with these masks; counts layers only."""
  total = Work()
  for mask in masks:
    rows, length = mask.shape
    total += Work(
      tokens=int(mask.sum()),
      padded_tokens=rows * length,
      flops=training_flops(config, mask.sum(axis=1)),
      padded_flops=TRAINING * rows * encoding_flops(config, length),
    )
  return total


def packed_training_work(
  config: bert.BertConfig,
  tiles: Sequence[tuple[Integer[np.ndarray, "_ _"], int]],
  places: int,
) -> Work:
  """Work of a train step on packed texts (`packed_texts`); counts layers only.

  Args:
    config: sizes of the model.
    tiles: tokens of each text [rows, texts], and the length that attention pads
      them to.
    places: places of all rows.
  """
  lengths = np.concatenate([each.ravel() for each, _ in tiles])
  number = range(config.num_hidden_layers)
  # Of one token: all layers without attention to others.
  alone = encoding_flops(config, 1) - sum(
    layer_flops(config, 1, n) - layer_flops(config, 0, n) for n in number
  )
  attention = sum(
    each.size * (encoding_flops(config, length) - length * alone)
    for each, length in tiles
  )
  return Work(
    tokens=int(lengths.sum()),
    padded_tokens=places,
    flops=training_flops(config, lengths),
    padded_flops=TRAINING * (places * alone + attention),
  )
