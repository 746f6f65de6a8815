"""The TPU kernel, interpreted on the CPU: the same numbers as without it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpr_jax.models import bert, fused_attention, layer_ops

ROWS, LENGTH, WIDTH, HEADS = 3, 24, 64, 4


def _plain(projected, bias, words, heads, rate):
  rows, length, width = projected.shape
  size = width // 3 // heads
  query, key, value = (
    part.reshape(rows, length, heads, size).transpose(0, 2, 1, 3)
    for part in jnp.split(projected, 3, axis=-1)
  )
  output = layer_ops.attention(
    query * size**-0.5, key, value, bias[:, None], words, rate
  )
  return output.transpose(0, 2, 1, 3).reshape(rows, length, heads * size)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_same_as_plain(dtype, rate):
  """Outputs and gradients, padded, with the very same weights dropped."""
  generator = np.random.default_rng(0)
  projected = jnp.asarray(
    2 * generator.normal(size=(ROWS, LENGTH, 3 * WIDTH)), dtype
  )
  gradient = jnp.asarray(generator.normal(size=(ROWS, LENGTH, WIDTH)), dtype)
  lengths = np.array([5, 24, 17])
  bias = np.where(np.arange(LENGTH)[None] < lengths[:, None], 0.0, -1e9)
  bias = jnp.asarray(bias[:, None], jnp.float32)
  words = None
  if rate:
    words = jnp.asarray(generator.integers(0, 2**32, (ROWS, 2), np.uint32))
  found = []
  for attention in (_plain, fused_attention.attention):
    output, pull = jax.vjp(
      lambda x, run=attention: run(x, bias, words, HEADS, rate), projected
    )
    assert output.dtype == dtype
    found.append([np.float32(x) for x in (output, *pull(gradient))])
  for plain, fused in zip(*found, strict=True):
    tolerance = 1e-5 if dtype == "float32" else 2**-7
    assert np.abs(plain).max() > 1
    np.testing.assert_allclose(
      fused, plain, rtol=0, atol=tolerance * np.abs(plain).max()
    )


@pytest.mark.compiles
@pytest.mark.parametrize("first_only", [False, True])
def test_a_whole_bert(first_only):
  config = bert.BertConfig(
    vocab_size=50,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=24,
    max_position_embeddings=12,
  )
  params = bert.init_params(config, jax.random.key(0))
  params = jax.tree.map(lambda x: 8 * x if x.ndim == 2 else x, params)
  ids = np.random.default_rng(0).integers(1, 50, (3, 9))
  mask = np.arange(9)[None] < np.array([[9], [3], [7]])
  keys = jax.random.split(jax.random.key(1), 3)

  def loss(params, attention):
    hidden = bert.Bert(config, attention=attention).apply(
      {"params": params}, ids, mask, dropout_keys=keys, first_only=first_only
    )
    return jnp.sum(jnp.sin(hidden[:, 0]))

  plain, fused = (
    jax.value_and_grad(loss)(params, name) for name in ("plain", "fused")
  )
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4),
    plain,
    fused,
  )
