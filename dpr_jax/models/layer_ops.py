"""Operations of a transformer layer with hand-written derivatives.

Automatic differentiation keeps every intermediate result of the forward pass
for the backward pass.  These functions keep only the results of matrix products
(and LayerNorm's normalised input) and recompute the rest: softmax weights and
activations are cheap, and memory traffic is what limits a step.  The backward
pass is 1.5 times as fast on a CPU, and a layer needs less memory on any device.

Matrix products run in the dtype of their inputs; softmax, the statistics of
LayerNorm and the gradients of weights are float32.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, UInt32

from dpr_jax.models import dropout

# By the name in Hugging Face's config.json; `encoder_config` lists the names.
ACTIVATIONS = {
  # With erf: jax.nn.gelu uses erfc, which costs 2.5 times as much on a CPU.
  "gelu": lambda x: 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5))),
  "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
  "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
  "relu": jax.nn.relu,
}


def _weight_gradient(
  inputs: Float[Array, "rows n i"], outputs: Float[Array, "rows n o"]
) -> Float[Array, "i o"]:
  """Sum of outer products over all positions, in float32."""
  # One summed axis instead of two: XLA's CPU backend is 25 % faster so.
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
  """`x @ kernel + bias`: product in x's dtype, summed in float32."""
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

  Args:
    x: input.
    kernel_in: kernel of the first layer.
    bias_in: bias of the first layer.
    kernel_out: kernel of the second layer.
    bias_out: bias of the second layer.
    activation: elementwise function.
    keep: keep the result of the first layer, the largest array of the layer,
      for the backward pass; False = compute it again.
  """
  del keep
  return dense(activation(dense(x, kernel_in, bias_in)), kernel_out, bias_out)


def _feed_forward_forward(x, k_in, b_in, k_out, b_out, activation, keep):
  inner = dense(x, k_in, b_in)
  output = dense(activation(inner), k_out, b_out)
  # Where `inner` is not kept its bias takes its place: all that is needed,
  # besides x and the kernel, to compute it again.
  return output, (x, inner if keep else b_in, k_in, k_out)


def _feed_forward_backward(activation, keep, saved, gradient):
  x, inner, k_in, k_out = saved
  if not keep:
    # Without the barrier the compiler would merge this product with that of
    # the forward pass, and keep it.
    inner = dense(jax.lax.optimization_barrier(x), k_in, inner)
  # The activation is elementwise: a JVP with ones gives its value and its
  # derivative in one pass.
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


def gated_feed_forward(
  x: Float[Array, "rows n dim"],
  kernel_in: Float[ArrayLike, "dim double"],
  kernel_out: Float[ArrayLike, "inner dim"],
  activation: Callable[[Array], Array],
  drop: Callable[[Array], Array],
  keep: bool = True,
) -> Float[Array, "rows n dim"]:
  """Two dense layers without biases; half of the first gates the other half.

  Args:
    x: input.
    kernel_in: kernel of the first layer; double = 2 inner, values then gates.
    kernel_out: kernel of the second layer.
    activation: elementwise function of the values.
    drop: dropout of the gated values.
    keep: see `feed_forward`.
  """

  def first(x, kernel):
    return dense(x, kernel, jnp.zeros(kernel.shape[1], jnp.float32))

  def second(inner, kernel):
    values, gates = jnp.split(inner, 2, axis=-1)
    active = drop(activation(values) * gates)
    return dense(active, kernel, jnp.zeros(kernel.shape[1], jnp.float32))

  if keep:  # the result of the first layer alone is kept
    return jax.checkpoint(second)(first(x, kernel_in), kernel_out)
  both = jax.checkpoint(lambda x, k_in, k_out: second(first(x, k_in), k_out))
  return both(x, kernel_in, kernel_out)


def _wide(subscripts, x, y):
  """A batched product in the inputs' dtype, with a float32 result."""
  return jnp.einsum(subscripts, x, y, preferred_element_type=jnp.float32)


def _batched(subscripts, x, y):
  """A batched product, summed in float32, with a result in x's dtype."""
  return _wide(subscripts, x, y).astype(x.dtype)


def _weights(query, key, bias, position_bias):
  scores = _wide("rhqd,rhkd->rhqk", query, key) + bias
  if position_bias is not None:
    scores = scores + position_bias
  return jax.nn.softmax(scores, axis=-1)


def _drop(weights, words, rate):
  if words is None:
    return weights
  return dropout.drop_weights(weights, words, rate)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def attention(
  query: Float[Array, "rows heads q d"],
  key: Float[Array, "rows heads k d"],
  value: Float[Array, "rows heads k d"],
  bias: Float[Array, "rows 1 #q k"],
  words: UInt32[Array, "rows two"] | None,
  rate: float,
  position_bias: Float[Array, "1 heads q k"] | None = None,
) -> Float[Array, "rows heads q d"]:
  """Softmax attention; queries are already scaled.

  Args:
    query: queries, already divided by the root of d.
    key: keys of all positions.
    value: values of all positions.
    bias: float32, added to the scores; very negative at padding.
    words: dropout words of each text; None = no dropout.
    rate: dropout rate of the weights; kept weights are scaled by
      1 / (1 - rate).
    position_bias: float32, added to the scores of every text; the only bias
      with a gradient.
  """
  weights = _drop(_weights(query, key, bias, position_bias), words, rate)
  return _batched("rhqk,rhkd->rhqd", weights.astype(value.dtype), value)


def _attention_forward(query, key, value, bias, words, rate, position_bias):
  output = attention(query, key, value, bias, words, rate, position_bias)
  return output, (query, key, value, bias, words, position_bias, output)


def _attention_backward(rate, saved, gradient):
  # With S = Q K' + bias, P = softmax(S), D = dropout(P) and O = D V:
  #   dV = D' dO,  dD = dO V',  dP = dropout(dD) by the same mask,
  #   dS = P * (dP - sum_k P dP),  dQ = dS K,  dK = dS' Q.
  # Only Q, K, V and O were saved; S, P and D are computed again.
  query, key, value, bias, words, position_bias, output = saved
  weights = _weights(query, key, bias, position_bias)
  dropped = _drop(weights, words, rate).astype(value.dtype)
  to_value = _batched("rhqk,rhqd->rhkd", dropped, gradient)
  to_weights = _drop(_wide("rhqd,rhkd->rhqk", gradient, value), words, rate)
  # sum_k P dP [rows, heads, q, 1].  It equals sum_d O dO (both are
  # sum_k D dD), which needs no pass over the [q, k] matrices.
  mean = jnp.sum(
    gradient.astype(jnp.float32) * output.astype(jnp.float32),
    axis=-1,
    keepdims=True,
  )
  to_scores = weights * (to_weights - mean)
  to_position = None
  if position_bias is not None:  # of all texts
    to_position = jnp.sum(to_scores, axis=0, keepdims=True)
  to_scores = to_scores.astype(query.dtype)
  return (
    _batched("rhqk,rhkd->rhqd", to_scores, key),
    _batched("rhqk,rhqd->rhkd", to_scores, query),
    to_value,
    None,  # the bias is constant: it is made from the mask
    None,
    to_position,
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
  # `normal` in x's dtype and one number per position give x's gradient; x
  # itself is not kept.
  return output, (normal.astype(x.dtype), inverse, scale)


def _layer_norm_backward(epsilon, saved, gradient):
  del epsilon
  normal, inverse, scale = saved
  dtype = normal.dtype
  normal = normal.astype(jnp.float32)
  gradient = gradient.astype(jnp.float32)
  # With y = (x - mean) / std, the gradient of x is that of y without its
  # components along 1 (from the mean) and along y (from the variance),
  # divided by std.
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
