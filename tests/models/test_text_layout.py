"""Packed texts: the same vectors and gradients as padded, in every way."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpr_jax.core import errors
from dpr_jax.models import (
  bert,
  dual_encoder,
  encoder_config,
  packed_texts,
  pooling_layers,
  stacked_layers,
  text_layout,
)

LENGTHS = [[6, 3, 2], [5, 4, 1]]  # of two rows; the slots of a tile differ
TILES = [(1, 8), (2, 4)]
WIDTH = 12


def _packed():
  """Two rows of three texts, with dropout keys."""
  generator = np.random.default_rng(0)
  ids = [[generator.integers(2, 40, n) for n in row] for row in LENGTHS]
  keys = jax.random.split(jax.random.key(1), 6).reshape(2, 3)
  return packed_texts.pack(ids, WIDTH, TILES).replace(dropout_keys=keys)


def _padded(packed):
  """The same texts, each padded to 7 tokens."""
  ids = np.zeros((6, 7), np.int32)
  for row, slot in np.ndindex(2, 3):
    own = packed.slots[row] == slot
    own &= np.arange(WIDTH) < sum(LENGTHS[row])
    ids[3 * row + slot, : own.sum()] = packed.token_ids[row][own]
  lengths = np.ravel(LENGTHS)
  return dual_encoder.Texts(
    ids, np.arange(7) < lengths[:, None], packed.dropout_keys.reshape(-1)
  )


def _layout():
  first_row = jax.tree.map(lambda x: x[:1], _packed())
  return text_layout.Packed(first_row)


def test_tokens_to_tiles_and_back():
  """Texts of 6, 3 and 2 tokens in tiles of 1 x 8 and 2 x 4; by hand."""
  layout = _layout()
  assert layout.longest == 8
  tokens = 10.0 * np.arange(1, 13)[None, :, None]
  one, two = layout.to_tiles(jnp.asarray(tokens))
  assert one[0, :6, 0].tolist() == [10, 20, 30, 40, 50, 60]
  assert two[0, :3, 0].tolist() == [70, 80, 90]
  assert two[1, :2, 0].tolist() == [100, 110]
  assert layout.masks[0].tolist() == [6 * [True] + 2 * [False]]
  assert layout.masks[1].tolist() == [
    [True, True, True, False],
    [True, True, False, False],
  ]
  back = layout.from_tiles((one, two))
  assert back[0, :11, 0].tolist() == tokens[0, :11, 0].tolist()
  firsts = layout.firsts(jnp.asarray(tokens))
  assert firsts[:, 0, 0].tolist() == [10, 70, 100]
  assert [x.tolist() for x in layout.split(jnp.arange(3))] == [[0], [1, 2]]


def test_gradients_go_back_to_their_tokens():
  """Those of padding and of unused places are exactly 0."""
  layout = _layout()
  zeros = jnp.zeros((1, WIDTH, 1))
  tiles, back = jax.vjp(layout.to_tiles, zeros)
  numbered = (
    jnp.arange(1.0, 9).reshape(1, 8, 1),
    jnp.arange(11.0, 19).reshape(2, 4, 1),
  )
  wanted = [1, 2, 3, 4, 5, 6, 11, 12, 13, 15, 16, 0]
  # What comes from padding is 0 in attention, and is not read here.
  assert back(numbered)[0][0, :, 0].tolist() == wanted
  _, back = jax.vjp(layout.from_tiles, tiles)
  ((one, two),) = back(jnp.arange(1.0, 13).reshape(1, WIDTH, 1))
  assert one[0, :, 0].tolist() == [1, 2, 3, 4, 5, 6, 0, 0]
  assert two[:, :, 0].tolist() == [[7, 8, 9, 0], [10, 11, 0, 0]]
  _, back = jax.vjp(layout.firsts, zeros)
  (tokens,) = back(jnp.array([[[1.0]], [[2.0]], [[3.0]]]))
  assert tokens[0, :, 0].tolist() == [1, 0, 0, 0, 0, 0, 2, 0, 0, 3, 0, 0]


def _encoder(name, **settings):
  """A tower of two narrow layers of a family, with dropout; or of three."""
  config = dataclasses.replace(
    encoder_config.FAMILIES[name](),
    vocab_size=40,
    hidden_size=8,
    num_hidden_layers=3 if name == "modernbert" else 2,
    num_attention_heads=2,
    intermediate_size=12,
    max_position_embeddings=8,
    hidden_dropout_prob=0.1,
    attention_probs_dropout_prob=0.1,
    **{"embedding_size": 4} if name == "electra" else {},
    **{"local_attention": 4} if name == "modernbert" else {},
  )
  return dual_encoder.DualEncoder(config, shared=True, **settings)


def _params(encoder):
  tower = bert.init_params(encoder.config, jax.random.key(0))
  return encoder.towers(
    jax.tree.map(lambda x: 8 * x if x.ndim == 2 else x, tower)
  )


def _compute(encoder, params, texts):
  """Vectors [6, 8], and gradients of a sum with different weights."""
  weights = np.random.default_rng(2).normal(size=(6, 8)).astype(np.float32)

  def loss(params):
    vectors = encoder.encode_passages(params, texts)
    return jnp.sum(weights * vectors), vectors

  (_, vectors), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(
    params
  )
  return vectors, stacked_layers.unstack(gradients)


def _same(found, wanted, tolerance=1e-5):
  np.testing.assert_allclose(found[0], wanted[0], atol=tolerance)
  for (path, one), other in zip(
    jax.tree.leaves_with_path(found[1]), jax.tree.leaves(wanted[1]), strict=True
  ):
    limit = 10 * tolerance * max(np.linalg.norm(other), 0.1)
    assert np.linalg.norm(one - other) <= limit, path


# Each setting in one family.
WAYS = {
  "bert": {"gradient_cache": True},
  "roberta": {"pooling": "mean", "remat": "layer"},
  "electra": {"pooling": "max", "passage_skip": 1, "remat": "inner"},
  "distilbert": {"attention": "fused"},
  "mpnet": {"pooling": "mean", "normalize": True},
  "modernbert": {},
}
STACKED = ("bert", "mpnet", "modernbert")


@pytest.mark.compiles
@pytest.mark.parametrize("name", sorted(WAYS))
def test_packed_is_padded(name):
  """Every kind of encoder, with dropout; stacked layers in three of them."""
  encoder = _encoder(name, **WAYS[name])
  params = _params(encoder)
  packed = _packed()
  plain = dataclasses.replace(
    encoder, gradient_cache=False, remat="none", attention="plain"
  )
  wanted = _compute(plain, params, _padded(packed))
  if name in STACKED:
    params = stacked_layers.stack(params, jnp.stack)
  found = _compute(encoder, params, packed)
  assert np.abs(wanted[0]).max() > 0.1
  assert np.ptp(wanted[0], axis=0).min() > 1e-3  # texts differ
  _same(found, wanted)


@pytest.mark.compiles
def test_one_row_of_another_dtype_and_of_questions():
  """bfloat16, as near as padded texts in bfloat16 are to one another."""
  encoder = _encoder("bert", pooling="mean")
  params = _params(encoder)
  row = jax.tree.map(lambda x: x[:1], _packed())
  padded = jax.tree.map(lambda x: x[:3], _padded(_packed()))

  def encode(texts, dtype=jnp.float32):
    ours = dataclasses.replace(encoder, dtype=dtype)
    return jax.jit(ours.encode_questions)(params, texts)

  wanted = np.asarray(encode(padded))
  np.testing.assert_allclose(encode(row), wanted, atol=1e-5)
  found = encode(row, jnp.bfloat16)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, wanted, atol=0.15)


@pytest.mark.parametrize("skip", [0, 1])
@pytest.mark.parametrize("pooling", sorted(pooling_layers.POOLINGS))
def test_every_pooling(pooling, skip, monkeypatch):
  """Of hidden states that are given, without the layers below."""
  encoder = _encoder("bert", pooling=pooling, passage_skip=skip)
  packed = _packed()
  packed = jax.tree.map(lambda x: x[:1], packed)
  states = np.random.default_rng(3).normal(size=(40, 8)).astype(np.float32)

  class Given:
    """Hidden states that follow from the token and its position."""

    def __init__(self, *_):
      pass

    def apply(self, _, ids, layout, *, first_only, **__):
      hidden = jnp.asarray(states)[ids] + layout.positions[..., None]
      return layout.firsts(hidden) if first_only else hidden

  monkeypatch.setattr(bert, "Bert", Given)
  tower = {"shared": {}}
  padded = jax.tree.map(lambda x: x[:3], _padded(_packed()))
  wanted = np.asarray(encoder.encode_passages(tower, padded))
  assert np.ptp(wanted, axis=0).min() > 1e-3
  np.testing.assert_allclose(
    encoder.encode_passages(tower, packed), wanted, atol=1e-6
  )


def test_tiles_longer_than_the_models_positions_are_refused():
  """Of 8 positions a tile of 8 is full; texts in one of 16 may be longer."""
  encoder = _encoder("bert")
  ids = [[np.ones(3, np.int32)]]
  packed = packed_texts.pack(ids, 16, [(1, 16)])
  with pytest.raises(errors.InputError, match="16 tokens: .* has 8 positions"):
    jax.eval_shape(encoder.encode_passages, _params(encoder), packed)
