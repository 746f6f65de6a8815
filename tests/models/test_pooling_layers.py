"""Poolings and dense layers: those of Sentence-Transformers, and by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpr_jax.core import errors
from dpr_jax.models import bert, dual_encoder, pooling_layers

LENGTHS = np.array([7, 3, 1, 5])
THEIR_NAMES = {"mean_sqrt_len": "mean_sqrt_len_tokens"}


def _hidden():
  generator = np.random.default_rng(0)
  hidden = generator.normal(size=(4, 7, 6)).astype(np.float32)
  return hidden, np.arange(7)[None] < LENGTHS[:, None]


@pytest.mark.parametrize(
  ("how", "wanted"),
  [
    ("cls", [1.0, -8.0]),
    ("mean", [3.0, -4.0]),
    ("max", [5.0, -1.0]),
    ("weightedmean", [(1 + 6 + 15) / 6, (-8 - 6 - 3) / 6]),
    ("lasttoken", [5.0, -1.0]),
    ("mean_sqrt_len", [9 / 3**0.5, -12 / 3**0.5]),
  ],
)
def test_by_hand(how, wanted):
  """Three tokens and one of padding."""
  hidden = jnp.array([[[1.0, -8], [3, -3], [5, -1], [100, 100]]])
  mask = np.array([[True, True, True, False]])
  found = pooling_layers.pool(hidden, mask, how)
  np.testing.assert_allclose(found, [wanted], rtol=1e-6)


@pytest.mark.parametrize(
  ("how", "wanted"),
  [
    ("cls", [3.0]),
    ("mean", [4.0]),
    ("max", [5.0]),
    ("weightedmean", [(2 * 3 + 3 * 5) / 5]),
    ("lasttoken", [5.0]),
    ("mean_sqrt_len", [8 / 2**0.5]),
  ],
)
def test_a_prefix_is_not_pooled(how, wanted):
  """Weights count from the beginning of the text all the same."""
  hidden = jnp.array([[[9.0], [3], [5], [100]]])
  mask = np.array([[True, True, True, False]])
  found = pooling_layers.pool(hidden, mask, how, skip=1)
  np.testing.assert_allclose(found, [wanted], rtol=1e-6)
  nothing = pooling_layers.pool(hidden, mask, how, skip=3)
  assert np.isfinite(nothing).all()


@pytest.mark.compiles  # it imports torch
@pytest.mark.parametrize("skip", [0, 1, 2])
@pytest.mark.parametrize("how", pooling_layers.POOLINGS)
def test_as_in_sentence_transformers(how, skip):
  """Padding included; of what is skipped, with include_prompt=False."""
  torch = pytest.importorskip("torch", reason="no torch: extra `parity`")
  modules = pytest.importorskip(
    "sentence_transformers.sentence_transformer.modules",
    reason="no sentence-transformers: extra `parity`",
  )
  hidden, mask = _hidden()
  mask[2, :3] = True  # as long as the prompt, and one
  theirs = modules.Pooling(
    6, pooling_mode=THEIR_NAMES.get(how, how), include_prompt=False
  )
  features = {
    "token_embeddings": torch.tensor(hidden),
    "attention_mask": torch.tensor(mask.astype(np.int64)),
  }
  if skip:
    features["prompt_length"] = skip
  wanted = theirs(features)["sentence_embedding"].numpy()
  found = pooling_layers.pool(jnp.asarray(hidden), mask, how, skip)
  np.testing.assert_allclose(found, wanted, atol=2e-6)


CONFIG = bert.BertConfig(
  vocab_size=40,
  hidden_size=16,
  num_hidden_layers=2,
  num_attention_heads=2,
  intermediate_size=20,
  max_position_embeddings=10,
)
LAYERS = (
  pooling_layers.DenseLayer(16, 12, True, "tanh"),
  pooling_layers.DenseLayer(12, 5, False, "identity"),
)


def _dense_params():
  generator = np.random.default_rng(1)
  return {
    pooling_layers.dense_name(number): {
      name: generator.normal(size=shape).astype(np.float32)
      for name, shape in layer.shapes().items()
    }
    for number, layer in enumerate(LAYERS)
  }


@pytest.mark.compiles
@pytest.mark.parametrize("how", pooling_layers.POOLINGS)
def test_dense_layers_follow_pooling_chunked_and_fused(how):
  """The width is the last layer's; each way of computing gives the same."""
  tree = bert.init_params(CONFIG, jax.random.key(0)) | _dense_params()
  generator = np.random.default_rng(0)
  mask = np.arange(10)[None] < np.array([10, 3, 7, 5])[:, None]
  ids = generator.integers(1, 40, (4, 10)).astype(np.int32) * mask
  texts = dual_encoder.Texts(ids, mask)
  encoder = dual_encoder.DualEncoder(
    CONFIG, pooling=how, dense=LAYERS, normalize=True, passage_skip=2
  )
  params = encoder.towers(tree)
  assert encoder.dim == 5
  hidden = bert.Bert(CONFIG).apply({"params": tree}, ids, mask)
  dense = _dense_params()
  for skip, encode in (
    (0, dual_encoder.DualEncoder.encode_questions),
    (2, dual_encoder.DualEncoder.encode_passages),
  ):
    pooled = np.asarray(pooling_layers.pool(hidden, mask, how, skip))
    first = np.tanh(
      pooled @ dense["dense_0"]["kernel"] + dense["dense_0"]["bias"]
    )
    wanted = first @ dense["dense_1"]["kernel"]
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(
      encode(encoder, params, texts), wanted, atol=2e-6
    )
    fused = encode(encoder, encoder.fuse(params), texts)
    np.testing.assert_allclose(fused, wanted, atol=2e-6)
    chunked = dataclasses.replace(encoder, chunk_size=2)
    np.testing.assert_allclose(
      encode(chunked, params, texts), wanted, atol=2e-6
    )


def test_dense_layers_of_another_encoder_are_refused():
  """The widths are named."""
  with pytest.raises(errors.InputError, match=r"takes 7 numbers.* gives 16"):
    dual_encoder.DualEncoder(
      CONFIG, dense=(pooling_layers.DenseLayer(7, 3, True, "tanh"),)
    )
