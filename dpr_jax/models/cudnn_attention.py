"""Attention by cuDNN on NVIDIA GPUs: scores stay on the chip.

It is JAX's own binding, `jax.nn.dot_product_attention`.  There is no dropout of
the attention weights in it, and it computes in bfloat16 only.  On other devices
the same function is computed by XLA.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dpr_jax.core import errors

NAME = "cudnn"
_PADDING = -1.0  # the bias is 0 at tokens, far below this at padding


def attention(
  query: Float[Array, "rows heads q d"],
  key: Float[Array, "rows heads k d"],
  value: Float[Array, "rows heads k d"],
  bias: Float[Array, "rows 1 1 k"],
) -> Float[Array, "rows heads q d"]:
  """`layer_ops.attention` without dropout, for texts that are padded behind.

  Args:
    query: queries, already divided by the root of d.
    key: keys of all positions.
    value: values of all positions.
    bias: 0 at tokens, very negative at padding.

  Raises:
    InputError: the arrays are float32, which cuDNN does not take.
  """
  implementation = NAME if jax.default_backend() == "gpu" else "xla"
  if implementation == NAME and query.dtype == jnp.float32:
    raise errors.InputError(
      "config.model.attention='cudnn' computes in bfloat16: set"
      " config.model.compute_dtype=bfloat16, or config.model.attention=plain"
    )
  lengths = jnp.sum(bias[:, 0, 0] > _PADDING, axis=-1, dtype=jnp.int32)

  def places_first(x: Array) -> Array:  # [rows, n, heads, d]
    return x.transpose(0, 2, 1, 3)

  context = jax.nn.dot_product_attention(
    *map(places_first, (query, key, value)),
    key_value_seq_lengths=lengths,
    query_seq_lengths=jnp.full_like(lengths, query.shape[2]),
    scale=1.0,
    implementation=implementation,
  )
  return context.transpose(0, 2, 1, 3)


def check(dropout: bool) -> None:
  """`InputError` if a call would drop attention weights."""
  if dropout:
    raise errors.InputError(
      "config.model.attention='cudnn' has no dropout of attention weights: set"
      " config.model.dropout=0, or config.model.attention=plain"
    )
