"""Counts tokens and FLOPs of encoding, with and without padding.

The count is that of the model, not of the compiled program: the matrix products
that a BERT of these sizes needs for texts of these lengths.  Work on padding is
counted separately, so that the figures tell a faster program from one that does
less work.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from dpr_jax.models import bert

# The backward pass has two matrix products for each one of the forward pass.
TRAINING = 3


def layer_flops(config: bert.BertConfig, length: int) -> int:
  """FLOPs of one token in the forward pass of one layer.

  Four products with [width, width], two with the feed-forward's kernels, and
  scores and their sum over a text of `length` tokens.
  """
  width, inner = config.hidden_size, config.intermediate_size
  return 2 * (4 * width**2 + 2 * width * inner) + 4 * length * width


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
  each, layers = layer_flops(config, length), config.num_hidden_layers
  if not first_only:
    return layers * length * each
  keys = 2 * 2 * config.hidden_size**2
  return (layers - 1) * length * each + each + (length - 1) * keys


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


def training_work(
  config: bert.BertConfig, masks: Sequence[Bool[np.ndarray, "_ _"]]
) -> Work:
  """Work of a train step on texts with these masks; counts layers only."""
  total = Work()
  for mask in masks:
    rows, length = mask.shape
    lengths = [int(count) for count in mask.sum(axis=1)]
    total += Work(
      tokens=sum(lengths),
      padded_tokens=rows * length,
      flops=TRAINING * sum(encoding_flops(config, n) for n in lengths),
      padded_flops=TRAINING * rows * encoding_flops(config, length),
    )
  return total
