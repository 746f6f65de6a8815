"""Attention that keeps its scores on the chip, as a TPU kernel (Pallas).

In `layer_ops.attention` XLA writes the scores and weights of every head to
memory and reads them back: heads x length float32 values per token, more
traffic than the rest of a layer of a dual encoder, whose texts are short.  Here
one call of the kernel holds the queries, keys and values of one text and loops
over the heads; scores never leave the chip's fast memory.  The backward pass
recomputes them, as in `layer_ops.attention`.

Texts of up to 512 tokens fit into that memory whole, so FlashAttention's
running softmax (Dao et al. 2022) is not needed.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

from dpr_jax.core import jax_unstable
from dpr_jax.models import dropout

pl, pltpu = jax_unstable.pallas(), jax_unstable.pallas_tpu()

_VMEM = 12 * 2**20  # bytes of fast memory that every TPU has, with a margin


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def attention(
  projected: Float[Array, "rows n triple"],
  bias: Float[Array, "rows 1 n"],
  words: UInt32[Array, "rows two"] | None,
  heads: int,
  rate: float,
) -> Float[Array, "rows n dim"]:
  """Softmax attention of every text with itself.

  Args:
    projected: queries, keys and values concatenated, each with its heads
      concatenated, so triple = 3 dim; not scaled.
    bias: float32, added to the scores; very negative at padding.
    words: dropout words of each text; the same weights are dropped as in
      `layer_ops.attention`; None = no dropout.
    heads: number of heads; a divisor of dim.
    rate: dropout rate of the weights.
  """
  return _attention_forward(projected, bias, words, heads, rate)[0]


def _attention_forward(projected, bias, words, heads, rate):
  rows, length, width = projected.shape
  width //= 3
  output = _call(
    _forward_kernel,
    (projected,) * 3,
    bias,
    words,
    jax.ShapeDtypeStruct((rows, length, width), projected.dtype),
    heads=heads,
    rate=rate,
    products=2,
  )
  return output, (projected, bias, words, output)


def _attention_backward(heads, rate, saved, gradient):
  projected, bias, words, output = saved
  to_projected = _call(
    _backward_kernel,
    (projected,) * 3 + (output, gradient),
    bias,
    words,
    jax.ShapeDtypeStruct(projected.shape, projected.dtype),
    heads=heads,
    rate=rate,
    products=5,
  )
  return to_projected, None, None  # the bias is constant: made from the mask


attention.defvjp(_attention_forward, _attention_backward)


def _call(
  kernel: Callable[..., None],
  arrays: tuple[Array, ...],
  bias: Array,
  words: Array | None,
  result: jax.ShapeDtypeStruct,
  *,
  heads: int,
  rate: float,
  products: int,
) -> Array:
  """Runs `kernel(*arrays, bias[, words], result)` for every text.

  Args:
    kernel: function of the arrays of one text.
    arrays: queries, keys and values (the same array three times), then others.
    bias: as in `attention`.
    words: as in `attention`.
    result: shape and dtype of the result.
    heads: as in `attention`.
    rate: as in `attention`.
    products: matrix products per head, for the cost estimate.
  """
  rows, length, width = arrays[0].shape
  width //= 3

  # `projected` is passed three times; block `part` of its last axis is the
  # queries (0), keys (1) or values (2), so that no copy of them is made.
  def block(last: int, part: int = 0) -> pl.BlockSpec:
    return pl.BlockSpec((None, length, last), lambda row: (row, 0, part))

  inputs = [*arrays, bias]
  specs = [block(width, part) for part in range(3)]
  specs += [block(width)] * (len(arrays) - 3)
  specs.append(pl.BlockSpec((None, 1, length), lambda row: (row, 0, 0)))
  if words is not None:
    inputs.append(
      jax.lax.bitcast_convert_type(words, jnp.int32).reshape(rows, 1, 2)
    )
    specs.append(
      pl.BlockSpec(
        (None, 1, 2), lambda row: (row, 0, 0), memory_space=pltpu.SMEM
      )
    )
  moved = len(arrays) + result.shape[-1] // width
  # Two texts at a time, because the next one is loaded while the first is
  # computed; each in its dtype and in float32; and the scores of two heads.
  held = moved * width * result.dtype.itemsize + 4 * width + 4 * 8 * length
  vmem = max(2 * length * held, _VMEM)
  cost = pl.CostEstimate(
    flops=products * 2 * rows * length**2 * width,
    bytes_accessed=moved * rows * length * width * result.dtype.itemsize
    + 4 * bias.size,
    transcendentals=rows * heads * length**2,
  )

  def run(*inputs: Array, interpret: bool) -> Array:
    return pl.pallas_call(
      functools.partial(
        kernel,
        size=width // heads,
        rate=0.0 if words is None else rate,
      ),
      out_shape=result,
      grid=(rows,),
      in_specs=specs,
      out_specs=block(result.shape[-1]),
      compiler_params=pltpu.CompilerParams(
        dimension_semantics=(pltpu.PARALLEL,), vmem_limit_bytes=vmem
      ),
      cost_estimate=cost,
      interpret=interpret,
    )(*inputs)

  return jax.lax.platform_dependent(
    *inputs,
    tpu=functools.partial(run, interpret=False),
    default=functools.partial(run, interpret=True),
  )


def _forward_kernel(query, key, value, bias, *others, size, rate):
  *words, output = others
  for head, place in enumerate(_heads(query, size)):
    weights = _weights(query[:, place], key[:, place], bias[...])
    weights = _drop(weights, words, head, rate).astype(value.dtype)
    output[:, place] = _product(weights, value[:, place]).astype(output.dtype)


def _backward_kernel(
  query, key, value, output, gradient, bias, *others, size, rate
):
  # Per head: q, k, v, g [n, d]; weights and their gradients [n, n].  The same
  # formula as `layer_ops._attention_backward`, whose comments explain it.
  *words, result = others
  width = query.shape[-1]
  for head, place in enumerate(_heads(query, size)):
    q, k, v = query[:, place], key[:, place], value[:, place]
    g = gradient[:, place]
    weights = _weights(q, k, bias[...])
    dropped = _drop(weights, words, head, rate).astype(v.dtype)
    to_weights = _drop(_product(g, v, (1, 1)), words, head, rate)
    mean = jnp.sum(
      g.astype(jnp.float32) * output[:, place].astype(jnp.float32),
      axis=-1,
      keepdims=True,
    )
    to_scores = (weights * (to_weights - mean)).astype(q.dtype)
    parts = (
      _product(to_scores, k) * size**-0.5,
      _product(to_scores, _scaled(q), (0, 0)),
      _product(dropped, g, (0, 0)),
    )
    # Gradients of queries, keys and values, concatenated as `projected` is.
    for number, part in enumerate(parts):
      start = number * width + place.start
      result[:, start : start + size] = part.astype(result.dtype)


def _heads(query, size: int) -> list[slice]:
  return [slice(n, n + size) for n in range(0, query.shape[-1], size)]


def _scaled(query: Array) -> Array:
  return query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)


def _product(
  x: Array, y: Array, summed: tuple[int, int] = (1, 0)
) -> Float[Array, "n m"]:
  """Matrix product, summed over one axis of each operand, in float32."""
  return jax.lax.dot_general(
    x,
    y,
    (((summed[0],), (summed[1],)), ((), ())),
    preferred_element_type=jnp.float32,
  )


def _weights(query: Array, key: Array, bias: Array) -> Float[Array, "n n"]:
  scores = _product(_scaled(query), key, (1, 1)) + bias
  powers = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
  return powers / jnp.sum(powers, axis=-1, keepdims=True)


def _drop(values: Array, words: list[Any], head: int, rate: float) -> Array:
  """What `dropout.drop_weights` does to this head's values."""
  if not rate:
    return values
  pair = (words[0][0, 0], words[0][0, 1])
  keep = dropout.keep_head(pair, values.shape, head, rate)
  return jnp.where(keep, values / (1.0 - rate), 0.0)
