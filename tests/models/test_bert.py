"""The encoder: exact in parts, blind to padding, dropout tied to the row."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpr_jax.core import errors
from dpr_jax.models import bert, stacked_layers, text_layout

CONFIG = bert.BertConfig(
  vocab_size=50,
  hidden_size=16,
  num_hidden_layers=2,
  num_attention_heads=4,
  intermediate_size=24,
  max_position_embeddings=12,
)


@pytest.fixture(scope="module")
def params():
  """Parameters large enough for every part to show."""
  tree = bert.init_params(CONFIG, jax.random.key(0))
  return jax.tree.map(lambda x: 10 * x if x.ndim == 2 else x, tree)


def _texts(rows=5, length=9, seed=0):
  generator = np.random.default_rng(seed)
  ids = generator.integers(1, 50, (rows, length)).astype(np.int32)
  lengths = generator.integers(2, length + 1, rows)
  mask = np.arange(length)[None] < lengths[:, None]
  return ids * mask, mask


def test_padding_does_not_change_a_text(params):
  """Two more padded columns, whatever stands in them, change nothing."""
  ids, mask = _texts()
  model = bert.Bert(CONFIG)
  plain = model.apply({"params": params}, ids, mask)
  wide_ids = np.pad(ids, ((0, 0), (0, 2)), constant_values=7)
  wide_mask = np.pad(mask, ((0, 0), (0, 2)))
  wide = model.apply({"params": params}, wide_ids, wide_mask)[:, :-2]
  difference = np.abs(np.where(mask[:, :, None], plain - wide, 0))
  assert difference.max() < 1e-5
  assert np.abs(plain).max() > 0.1


def test_first_only_is_exact(params):
  """The last layer for position 0 alone gives position 0 of the whole."""
  ids, mask = _texts()
  model = bert.Bert(CONFIG)
  whole = model.apply({"params": params}, ids, mask)
  first = model.apply({"params": params}, ids, mask, first_only=True)
  assert first.shape == (5, 1, 16)
  np.testing.assert_allclose(first, whole[:, :1], atol=1e-6)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fused_parameters_give_the_same(params, first_only, stacked, dtype):
  """Products side by side and cast once: what is not fused gives, exactly."""
  ids, mask = _texts()
  model = bert.Bert(CONFIG, jnp.dtype(dtype))
  plain = stacked_layers.stack(params, jnp.stack) if stacked else params
  fused = bert.fuse(plain, first_only, dtype)
  names = {
    path[-2].key
    for path, _ in jax.tree.leaves_with_path(fused)
    if len(path) > 1
  }
  assert "query_key_value" in names or "key_value" in names
  assert not {"key", "value"} & names
  outputs = [
    model.apply({"params": tree}, ids, mask, first_only=first_only)
    for tree in (plain, fused)
  ]
  assert outputs[0].dtype == outputs[1].dtype == dtype
  np.testing.assert_allclose(
    *(np.float32(x) for x in outputs), rtol=0, atol=1e-6
  )


def test_first_only_gradients_are_exact(params):
  """So are its gradients."""
  ids, mask = _texts()
  weights = np.random.default_rng(1).normal(size=(5, 16)).astype(np.float32)

  def loss(tree, first_only):
    hidden = bert.Bert(CONFIG).apply(
      {"params": tree}, ids, mask, first_only=first_only
    )
    return jnp.sum(weights * hidden[:, 0])

  whole = jax.grad(loss)(params, False)
  first = jax.grad(loss)(params, True)
  for one, other in zip(
    jax.tree.leaves(whole), jax.tree.leaves(first), strict=True
  ):
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_dropout_follows_the_row_not_its_place(params):
  """The same texts with the same keys in another order, other neighbours."""
  ids, mask = _texts()
  keys = jax.random.split(jax.random.key(3), 5)
  model = bert.Bert(CONFIG)
  together = model.apply({"params": params}, ids, mask, dropout_keys=keys)
  order = np.array([4, 2, 0])
  apart = model.apply(
    {"params": params}, ids[order], mask[order], dropout_keys=keys[order]
  )
  np.testing.assert_allclose(apart, together[order], atol=1e-5)
  without = model.apply({"params": params}, ids, mask)
  assert np.abs(together - without).max() > 0.01


def test_dropout_drops_the_rate_and_keeps_the_mean():
  """A tenth is zero, the rest is scaled up; sites and rows differ."""
  ones = jnp.ones((4, 50, 100))
  keys = jax.random.split(jax.random.key(0), 4)
  layout = text_layout.Padded(np.ones((4, 50), bool), keys)
  dropped = np.asarray(layout.drop(ones, 0.1, 0))
  assert 0.08 < (dropped == 0).mean() < 0.12
  np.testing.assert_allclose(dropped[dropped != 0], 1 / 0.9, rtol=1e-6)
  assert (dropped[0] != dropped[1]).any()
  assert (dropped != np.asarray(layout.drop(ones, 0.1, 1))).any()
  assert text_layout.Padded(layout.mask).drop(ones, 0.1, 0) is ones


def test_bfloat16_compute_keeps_float32_parameters():
  """The computation is bfloat16, the parameters are not."""
  ids, mask = _texts()
  model = bert.Bert(CONFIG, dtype=jnp.bfloat16)
  variables = model.init(jax.random.key(0), ids, mask)
  kinds = {leaf.dtype for leaf in jax.tree.leaves(variables)}
  assert kinds == {jnp.dtype("float32")}
  assert model.apply(variables, ids, mask).dtype == jnp.bfloat16


def test_too_long_a_text_is_refused(params):
  """Positions beyond the table would silently clamp."""
  ids = np.ones((1, 13), np.int32)
  with pytest.raises(errors.InputError, match="13 tokens.*12 positions"):
    bert.Bert(CONFIG).apply({"params": params}, ids, ids == 1)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"model_type": "gpt2"}, "model_type 'gpt2'.*bert, dpr, roberta"),
    ({"position_embedding_type": "relative_key"}, "relative_key"),
    ({"hidden_act": "swish"}, "hidden_act 'swish'.*gelu"),
    ({"num_attention_heads": 5}, "16 is not a multiple"),
  ],
)
def test_unsupported_configs_are_refused(tmp_path, changes, message):
  """Each with the value that is not supported."""
  raw = {"hidden_size": 16, "num_attention_heads": 4} | changes
  (tmp_path / "config.json").write_text(json.dumps(raw))
  with pytest.raises(errors.InputError, match=message):
    bert.BertConfig.read(tmp_path)


def test_missing_or_broken_config(tmp_path):
  """Named with its path."""
  with pytest.raises(errors.InputError, match="config.json"):
    bert.BertConfig.read(tmp_path)
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(errors.InputError, match="config.json is not JSON"):
    bert.BertConfig.read(tmp_path)
