"""Learned biases of attention scores by the distance of two tokens (MPNet).

Distances are counted exactly up to a quarter of the buckets in each direction,
then in steps that grow with the logarithm (Raffel et al. 2020, T5; Song et al.
2020, MPNet).  All layers share the biases.
"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

NAME = "relative_attention_bias"
_FARTHEST = 128  # from this distance on all tokens are in the last bucket


def buckets(count: int, length: int) -> Int[np.ndarray, "length length"]:
  """Bucket of every pair of positions, [from, to].

  Args:
    count: number of buckets; the upper half is of tokens to the right.
    length: number of tokens.
  """
  places = np.arange(length)
  distance = places[None] - places[:, None]
  side = count // 2
  exact = side // 2
  far = np.abs(distance)
  # In float32 and in this order, as the models were trained.
  scale = np.float32(math.log(_FARTHEST / exact))
  ratio = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact))
  steps = (ratio / scale * np.float32(side - exact)).astype(np.int64)
  growing = np.minimum(exact + steps, side - 1)
  bucket = np.where(far < exact, far, growing)
  return (bucket + side * (distance > 0)).astype(np.int32)


def bias(
  count: int, heads: int, length: int, initializer: Any
) -> Float[Array, "1 heads length length"]:
  """The biases, float32; called by a module, whose parameters they become.

  Args:
    count: number of buckets.
    heads: number of heads.
    length: number of tokens.
    initializer: initializer of the table.
  """
  table = nn.Embed(count, heads, embedding_init=initializer, name=NAME)
  values = table(jnp.asarray(buckets(count, length)))
  return values.transpose(2, 0, 1)[None]
