"""How much work a step is: tokens with and without padding, and FLOPs.

The count is the model's, not the program's: what products of matrices a BERT of
these sizes needs for texts of these lengths.  Work on padding is counted apart,
so that a program can be fast by doing work well or by doing less of it, and the
figures tell which.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from dpr_jax.models import bert

# Backward costs two products for each of the forward's.
TRAINING = 3


def layer_flops(config: bert.BertConfig, length: int) -> int:
  """FLOPs of one token's way forward through one layer.

  Four products with [width, width], two with the feed-forward's kernels, and
  scores and their sum over a text of `length` tokens.
  """
  width, inner = config.hidden_size, config.intermediate_size
  return 2 * (4 * width**2 + 2 * width * inner) + 4 * length * width


def encoding_flops(
  config: bert.BertConfig, length: int, *, first_only: bool = False
) -> int:
  """FLOPs of encoding a text of `length` tokens.

  Products of matrices alone, two FLOPs for a multiplication and an addition.

  Args:
    config: sizes.
    length: of the text.
    first_only: the last layer is computed for position 0 alone, as [CLS]
      pooling needs: the others only give keys and values.
  """
  each, layers = layer_flops(config, length), config.num_hidden_layers
  if not first_only:
    return layers * length * each
  keys = 2 * 2 * config.hidden_size**2
  return (layers - 1) * length * each + each + (length - 1) * keys


@dataclasses.dataclass(frozen=True)
class Work:
  """The work of some texts; of several steps when added up.

  Attributes:
    tokens: real tokens.
    padded_tokens: places in the arrays, padding included.
    flops: of training on the real tokens alone.
    padded_flops: of training on everything in the arrays.
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
    """Share of padding among all places."""
    return 1 - self.tokens / self.padded_tokens


def training_work(
  config: bert.BertConfig, masks: Sequence[Bool[np.ndarray, "_ _"]]
) -> Work:
  """The work of a train step on texts with these masks, layers alone."""
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
