"""The arithmetic of a transformer layer, with derivatives written out.

Automatic differentiation would keep every intermediate result of the forward
pass for the backward pass.  These functions keep what a matrix product made
(and LayerNorm's normalised input) and compute the rest again: softmax weights
and activations cost little, and memory traffic is what a step waits for.  On a
CPU the backward pass is half again as fast, on any device a layer holds less.

Products run in the inputs' dtype; softmax, LayerNorm's statistics and the
gradients of weights are float32.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, UInt32

from dpr_jax.models import dropout


def _weight_gradient(
  inputs: Float[Array, "rows n i"], outputs: Float[Array, "rows n o"]
) -> Float[Array, "i o"]:
  """Sum of outer products over all positions, in float32."""
  # Flat first: XLA's CPU backend is a quarter slower with two summed axes.
  return jnp.matmul(
    inputs.reshape(-1, inputs.shape[-1]).T,
    outputs.reshape(-1, outputs.shape[-1]),
    preferred_element_type=jnp.float32,
  )


def _bias_gradient(outputs: Float[Array, "rows n o"]) -> Float[Array, " o"]:
  return jnp.sum(outputs, axis=(0, 1), dtype=jnp.float32)


def _product(
  x: Float[Array, "rows n i"], kernel: Float[ArrayLike, "i o"]
) -> Float[Array, "rows n o"]:
  """`x @ kernel` in x's dtype, result in float32."""
  return jnp.matmul(
    x, kernel.astype(x.dtype), preferred_element_type=jnp.float32
  )


@jax.custom_vjp
def dense(
  x: Float[Array, "rows n i"],
  kernel: Float[ArrayLike, "i o"],
  bias: Float[ArrayLike, " o"],
) -> Float[Array, "rows n o"]:
  """`x @ kernel + bias`: product of x's dtype, summed in float32."""
  return (_product(x, kernel) + bias).astype(x.dtype)


def _dense_forward(x, kernel, bias):
  return dense(x, kernel, bias), (x, kernel)


def _dense_backward(saved, gradient):
  x, kernel = saved
  return (
    _product(gradient, kernel.T).astype(x.dtype),
    _weight_gradient(x, gradient),
    _bias_gradient(gradient),
  )


dense.defvjp(_dense_forward, _dense_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def feed_forward(
  x: Float[Array, "rows n dim"],
  kernel_in: Float[ArrayLike, "dim inner"],
  bias_in: Float[ArrayLike, " inner"],
  kernel_out: Float[ArrayLike, "inner dim"],
  bias_out: Float[ArrayLike, " dim"],
  activation: Callable[[Array], Array],
  keep: bool = True,
) -> Float[Array, "rows n dim"]:
  """Two dense layers with an elementwise activation between them.

  The first layer's product is what the backward pass keeps most of; with `keep`
  False it is computed again.
  """
  del keep
  return dense(activation(dense(x, kernel_in, bias_in)), kernel_out, bias_out)


def _feed_forward_forward(x, k_in, b_in, k_out, b_out, activation, keep):
  inner = dense(x, k_in, b_in)
  output = dense(activation(inner), k_out, b_out)
  return output, (x, inner if keep else b_in, k_in, k_out)


def _feed_forward_backward(activation, keep, saved, gradient):
  x, inner, k_in, k_out = saved
  if not keep:
    # Behind a barrier, or the compiler keeps the product after all.
    inner = dense(jax.lax.optimization_barrier(x), k_in, inner)
  active, slope = jax.jvp(activation, (inner,), (jnp.ones_like(inner),))
  to_inner = (_product(gradient, k_out.T) * slope).astype(x.dtype)
  return (
    _product(to_inner, k_in.T).astype(x.dtype),
    _weight_gradient(x, to_inner),
    _bias_gradient(to_inner),
    _weight_gradient(active, gradient),
    _bias_gradient(gradient),
  )


feed_forward.defvjp(_feed_forward_forward, _feed_forward_backward)


def _wide(subscripts, x, y):
  """A batched product of their dtype, result in float32."""
  return jnp.einsum(subscripts, x, y, preferred_element_type=jnp.float32)


def _batched(subscripts, x, y):
  """A batched product, summed in float32, result in their dtype."""
  return _wide(subscripts, x, y).astype(x.dtype)


def _weights(query, key, bias):
  scores = _wide("rhqd,rhkd->rhqk", query, key)
  return jax.nn.softmax(scores + bias, axis=-1)


def _drop(weights, words, rate):
  return weights if words is None else dropout.masked(weights, words, rate)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def attention(
  query: Float[Array, "rows heads q d"],
  key: Float[Array, "rows heads k d"],
  value: Float[Array, "rows heads k d"],
  bias: Float[Array, "rows 1 1 k"],
  words: UInt32[Array, "rows two"] | None,
  rate: float,
) -> Float[Array, "rows heads q d"]:
  """Softmax attention; queries are already scaled.

  Args:
    query: scaled by the root of d.
    key: of every position.
    value: of every position.
    bias: float32, added to the scores: very negative where padded.
    words: decide which weights are dropped (`dropout`); None = none.
    rate: of that dropout; what is kept is scaled by 1 / (1 - rate).
  """
  weights = _drop(_weights(query, key, bias), words, rate)
  return _batched("rhqk,rhkd->rhqd", weights.astype(value.dtype), value)


def _attention_forward(query, key, value, bias, words, rate):
  output = attention(query, key, value, bias, words, rate)
  return output, (query, key, value, bias, words, output)


def _attention_backward(rate, saved, gradient):
  query, key, value, bias, words, output = saved
  weights = _weights(query, key, bias)
  dropped = _drop(weights, words, rate).astype(value.dtype)
  to_value = _batched("rhqk,rhqd->rhkd", dropped, gradient)
  to_weights = _drop(_wide("rhqd,rhkd->rhqk", gradient, value), words, rate)
  # The mean of `to_weights` by `weights`, without another pass over them.
  mean = jnp.sum(
    gradient.astype(jnp.float32) * output.astype(jnp.float32),
    axis=-1,
    keepdims=True,
  )
  to_scores = (weights * (to_weights - mean)).astype(query.dtype)
  return (
    _batched("rhqk,rhkd->rhqd", to_scores, key),
    _batched("rhqk,rhqd->rhkd", to_scores, query),
    to_value,
    None,  # the bias is made from the mask
    None,
  )


attention.defvjp(_attention_forward, _attention_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(
  x: Float[Array, "rows n dim"],
  scale: Float[ArrayLike, " dim"],
  bias: Float[ArrayLike, " dim"],
  epsilon: float,
) -> Float[Array, "rows n dim"]:
  """LayerNorm over the last axis, statistics in float32."""
  return _layer_norm_forward(x, scale, bias, epsilon)[0]


def _layer_norm_forward(x, scale, bias, epsilon):
  wide = x.astype(jnp.float32)
  centered = wide - jnp.mean(wide, axis=-1, keepdims=True)
  variance = jnp.mean(centered**2, axis=-1, keepdims=True)
  inverse = jax.lax.rsqrt(variance + epsilon)
  normal = centered * inverse
  output = (normal * scale + bias).astype(x.dtype)
  return output, (normal.astype(x.dtype), inverse, scale)


def _layer_norm_backward(epsilon, saved, gradient):
  del epsilon
  normal, inverse, scale = saved
  dtype = normal.dtype
  normal = normal.astype(jnp.float32)
  gradient = gradient.astype(jnp.float32)
  scaled = gradient * scale
  mean = jnp.mean(scaled, axis=-1, keepdims=True)
  slope = jnp.mean(scaled * normal, axis=-1, keepdims=True)
  to_x = inverse * (scaled - mean - normal * slope)
  return (
    to_x.astype(dtype),
    jnp.sum(gradient * normal, axis=(0, 1)),
    jnp.sum(gradient, axis=(0, 1)),
  )


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)
