"""Derivatives that are written out, against a hand's and against autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpr_jax.models import dropout, layer_ops

ROWS, LENGTH, DIM, INNER, HEADS = 2, 5, 8, 12, 2
RATE = 0.25


def _normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def _same_gradients(ours, plain, *arguments):
  """Values and all gradients, of a sum with different weights everywhere."""
  weights = _normal(99, *plain(*arguments).shape)
  found, wanted = (
    jax.value_and_grad(
      lambda *given, function=function: jnp.sum(weights * function(*given)),
      argnums=tuple(range(len(arguments))),
    )(*arguments)
    for function in (ours, plain)
  )
  jax.tree.map(
    lambda one, other: np.testing.assert_allclose(
      one, other, rtol=1e-4, atol=1e-5
    ),
    found,
    wanted,
  )


def test_layer_norm_by_hand():
  """X has mean 1 and deviation 1: normal = (-1, -1, 1, 1).

  Of a gradient (4, 0, 0, 0) the mean, 1, goes off, and normal times the mean
  of normal * gradient, -1.
  """
  x = jnp.array([[[0.0, 0.0, 2.0, 2.0]]])
  gradient = jnp.array([[[4.0, 0.0, 0.0, 0.0]]])
  value, back = jax.vjp(
    lambda *given: layer_ops.layer_norm(*given, 0.0),
    x,
    jnp.ones(4),
    jnp.full(4, 0.5),
  )
  np.testing.assert_allclose(value[0, 0], [-0.5, -0.5, 1.5, 1.5])
  to_x, to_scale, to_bias = back(gradient)
  np.testing.assert_allclose(to_x[0, 0], [2, -2, 0, 0], atol=1e-6)
  np.testing.assert_allclose(to_scale, [-4, 0, 0, 0])
  np.testing.assert_allclose(to_bias, [4, 0, 0, 0])


def test_layer_norm():
  def plain(x, scale, bias):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + 1e-3) * scale + bias

  _same_gradients(
    lambda *given: layer_ops.layer_norm(*given, 1e-3),
    plain,
    _normal(0, ROWS, LENGTH, DIM),
    _normal(1, DIM),
    _normal(2, DIM),
  )


def test_dense():
  _same_gradients(
    layer_ops.dense,
    lambda x, kernel, bias: x @ kernel + bias,
    _normal(0, ROWS, LENGTH, DIM),
    _normal(1, DIM, INNER),
    _normal(2, INNER),
  )


@pytest.mark.parametrize("keep", [True, False])
def test_feed_forward(keep):
  _same_gradients(
    lambda *given: layer_ops.feed_forward(*given, jax.nn.gelu, keep),
    lambda x, k_in, b_in, k_out, b_out: (
      jax.nn.gelu(x @ k_in + b_in) @ k_out + b_out
    ),
    _normal(0, ROWS, LENGTH, DIM),
    _normal(1, DIM, INNER),
    _normal(2, INNER),
    _normal(3, INNER, DIM),
    _normal(4, DIM),
  )


@pytest.mark.parametrize("drops", [False, True])
def test_attention(drops):
  """With two padded places, and with weights dropped on both ways."""
  bias = jnp.where(jnp.arange(LENGTH) < 3, 0.0, -1e9)[None, None, None]
  bias = jnp.broadcast_to(bias, (ROWS, 1, 1, LENGTH))
  words, keep = None, 1.0
  if drops:
    keys = jax.random.split(jax.random.key(7), ROWS)
    words = dropout.words(keys, 3)
    shape = (HEADS, LENGTH, LENGTH)
    keep = dropout.keep_weights(words, shape, RATE) / (1 - RATE)

  def plain(query, key, value):
    scores = jnp.einsum("rhqd,rhkd->rhqk", query, key) + bias
    weights = keep * jax.nn.softmax(scores, axis=-1)
    return jnp.einsum("rhqk,rhkd->rhqd", weights, value)

  _same_gradients(
    lambda *given: layer_ops.attention(*given, bias, words, RATE),
    plain,
    *(_normal(n, ROWS, HEADS, LENGTH, DIM) for n in range(3)),
  )
