"""Pooling, unit vectors, shared towers, chunks."""

import dataclasses

import jax
import numpy as np
import pytest

from dpr_jax.core import errors
from dpr_jax.models import bert, dual_encoder

CONFIG = bert.BertConfig(
  vocab_size=40,
  hidden_size=16,
  num_hidden_layers=2,
  num_attention_heads=2,
  intermediate_size=20,
  max_position_embeddings=10,
)


@pytest.fixture(scope="module")
def tower():
  """One pretrained tree."""
  tree = bert.init_params(CONFIG, jax.random.key(0))
  return jax.tree.map(lambda x: 8 * x if x.ndim == 2 else x, tree)


@pytest.fixture(scope="module")
def texts():
  """Six texts of mixed lengths."""
  generator = np.random.default_rng(0)
  lengths = np.array([10, 3, 7, 2, 9, 5])
  mask = np.arange(10)[None] < lengths[:, None]
  ids = generator.integers(1, 40, (6, 10)).astype(np.int32) * mask
  return dual_encoder.Texts(ids, mask)


def test_cls_is_the_state_at_position_0(tower, texts):
  """No pooler, no projection."""
  encoder = dual_encoder.DualEncoder(CONFIG)
  hidden = bert.Bert(CONFIG).apply(
    {"params": tower}, texts.token_ids, texts.mask
  )
  vectors = encoder.encode_passages(encoder.towers(tower), texts)
  np.testing.assert_allclose(vectors, hidden[:, 0], atol=1e-6)


def test_mean_is_over_the_tokens_alone(tower, texts):
  """Padding does not count; unit vectors have length 1."""
  encoder = dual_encoder.DualEncoder(CONFIG, pooling="mean")
  params = encoder.towers(tower)
  hidden = np.asarray(
    bert.Bert(CONFIG).apply({"params": tower}, texts.token_ids, texts.mask)
  )
  wanted = np.stack(
    [
      state[keep].mean(axis=0)
      for state, keep in zip(hidden, texts.mask, strict=True)
    ]
  )
  vectors = encoder.encode_questions(params, texts)
  np.testing.assert_allclose(vectors, wanted, atol=1e-5)
  unit = dataclasses.replace(encoder, normalize=True)
  lengths = np.linalg.norm(wanted, axis=1, keepdims=True)
  np.testing.assert_allclose(
    unit.encode_questions(params, texts), wanted / lengths, atol=1e-5
  )


def test_towers_are_separate_unless_shared(tower, texts):
  """Changing the passage tower leaves questions alone; shared has one."""
  encoder = dual_encoder.DualEncoder(CONFIG)
  params = encoder.towers(tower)
  before = encoder.encode_questions(params, texts)
  params["passage"] = jax.tree.map(lambda x: x + 1.0, params["passage"])
  np.testing.assert_array_equal(encoder.encode_questions(params, texts), before)
  shared = dual_encoder.DualEncoder(CONFIG, shared=True)
  assert set(shared.towers(tower)) == {"shared"}
  np.testing.assert_array_equal(
    shared.encode_questions(shared.towers(tower), texts),
    shared.encode_passages(shared.towers(tower), texts),
  )


@pytest.mark.compiles
@pytest.mark.parametrize("pooling", ["cls", "mean", "lasttoken"])
def test_chunks_change_nothing(tower, texts, pooling):
  """Vectors in chunks are those of the whole, dropout included."""
  keys = jax.random.split(jax.random.key(5), 6)
  texts = texts.replace(dropout_keys=keys)
  whole = dual_encoder.DualEncoder(CONFIG, pooling=pooling)
  params = whole.towers(tower)
  wanted = whole.encode_passages(params, texts)
  for size in (1, 2, 3, 6, 100):
    chunked = dataclasses.replace(whole, chunk_size=size)
    np.testing.assert_allclose(
      chunked.encode_passages(params, texts), wanted, atol=1e-5
    )


def test_chunks_must_divide(tower, texts):
  """An error, not a dropped remainder."""
  encoder = dual_encoder.DualEncoder(CONFIG, chunk_size=4)
  with pytest.raises(errors.InputError, match="chunk_size=4 .* 6 texts"):
    encoder.encode_passages(encoder.towers(tower), texts)


def test_unknown_pooling():
  """The message lists what there is."""
  with pytest.raises(
    errors.InputError, match="'median': must be one of cls, mean, max, weight"
  ):
    dual_encoder.DualEncoder(CONFIG, pooling="median")
