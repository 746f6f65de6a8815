"""`attention="cudnn"`: the same function; by XLA where there is no GPU."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpr_jax.core import errors
from dpr_jax.models import bert, cudnn_attention, layer_ops, retriever_model

HEADS, WIDTH = 2, 8


def _inputs(dtype=jnp.float32):
  """Queries, keys and values of 3 texts of 7, 4 and 1 tokens, and the bias."""
  generator = np.random.default_rng(0)
  arrays = generator.normal(size=(3, 3, HEADS, 7, WIDTH)).astype(np.float32)
  mask = np.arange(7) < np.array([[7], [4], [1]])
  bias = np.where(mask, 0.0, -1e9).astype(np.float32)[:, None, None]
  return [jnp.asarray(x, dtype) for x in arrays], jnp.asarray(bias), mask


def test_outputs_and_gradients_are_those_of_plain_attention():
  arrays, bias, mask = _inputs()

  def loss(query, key, value, run):
    # What is computed for padding is not used, and has no gradient.
    return jnp.sum(jnp.sin(run(query, key, value)) * mask[:, None, :, None])

  def plain(*parts):
    return layer_ops.attention(*parts, bias, None, 0.0)

  def cudnn(*parts):
    return cudnn_attention.attention(*parts, bias)

  np.testing.assert_allclose(
    np.asarray(cudnn(*arrays)).transpose(0, 2, 1, 3)[mask],
    np.asarray(plain(*arrays)).transpose(0, 2, 1, 3)[mask],
    atol=2e-6,
  )
  gradients = [
    jax.grad(loss, argnums=(0, 1, 2))(*arrays, run) for run in (plain, cudnn)
  ]
  for wanted, found in zip(*gradients, strict=True):
    np.testing.assert_allclose(found, wanted, atol=5e-6)


def test_a_value_by_hand():
  """Scores 0 and ln 3: weights 1/4 and 3/4; the third place is padding."""
  query = jnp.full((1, 1, 1, 1), np.log(3.0))
  key = jnp.array([0.0, 1.0, 9.0]).reshape(1, 1, 3, 1)
  value = jnp.array([8.0, 4.0, 100.0]).reshape(1, 1, 3, 1)
  bias = jnp.array([0.0, 0.0, -1e9]).reshape(1, 1, 1, 3)
  found = cudnn_attention.attention(query, key, value, bias)
  np.testing.assert_allclose(found.item(), 8 / 4 + 4 * 3 / 4, rtol=1e-6)


@pytest.mark.compiles
def test_a_model_computes_the_same(tiny_config):
  """All layers; only dropout of its weights is refused."""
  towers = retriever_model.start(tiny_config)
  config = towers.encoder.config
  params = towers.params["passage"]
  ids = jnp.asarray(np.random.default_rng(1).integers(5, 60, (2, 6)))
  mask = jnp.arange(6) < jnp.array([[6], [3]])
  plain, cudnn = (
    bert.Bert(config, attention=name).apply({"params": params}, ids, mask)
    for name in ("plain", "cudnn")
  )
  np.testing.assert_allclose(cudnn[mask], plain[mask], atol=2e-5)
  dropping = dataclasses.replace(config, attention_probs_dropout_prob=0.1)
  keys = jax.random.split(jax.random.key(0), 2)
  with pytest.raises(errors.InputError, match="config.model.dropout=0"):
    bert.Bert(dropping, attention="cudnn").apply(
      {"params": params}, ids, mask, dropout_keys=keys
    )


def test_float32_is_refused_on_a_gpu(monkeypatch):
  """With the fix; nothing is computed for it here."""
  arrays, bias, _ = _inputs()
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  with pytest.raises(errors.InputError, match="compute_dtype=bfloat16"):
    cudnn_attention.attention(*arrays, bias)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_every_platform_has_an_answer(platform, monkeypatch):
  """Dtype of "auto", and where a kernel is made for other devices."""
  monkeypatch.setattr(jax, "default_backend", lambda: platform)
  wanted = "float32" if platform == "cpu" else "bfloat16"
  assert retriever_model.compute_dtype("auto") == jnp.dtype(wanted)
  warned = []
  monkeypatch.setattr(
    retriever_model.logging, "warning", lambda text, *rest: warned.append(rest)
  )
  for name in bert.ATTENTIONS:
    assert retriever_model.attention(name) == name
  made_for = {"cpu": ["TPU", "GPU"], "gpu": ["TPU"], "tpu": ["GPU"]}
  assert [rest[1] for rest in warned] == made_for[platform]
