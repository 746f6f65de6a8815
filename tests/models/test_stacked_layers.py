"""Layers side by side compute what layers one by one do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpr_jax.models import bert, stacked_layers

CONFIG = bert.BertConfig(
  vocab_size=30,
  hidden_size=16,
  num_hidden_layers=3,
  num_attention_heads=2,
  intermediate_size=24,
  max_position_embeddings=12,
)


@pytest.mark.compiles
@pytest.mark.parametrize("remat", ["none", "inner", "layer"])
@pytest.mark.parametrize("first_only", [False, True])
def test_outputs_and_gradients_are_the_same(remat, first_only):
  """With dropout, whose masks follow the layer's number."""
  params = bert.init_params(CONFIG, jax.random.key(0))
  params = jax.tree.map(lambda x: 8 * x if x.ndim == 2 else x, params)
  ids = np.random.default_rng(0).integers(1, 30, (4, 10))
  mask = np.arange(10)[None] < np.array([[10], [3], [7], [1]])
  keys = jax.random.split(jax.random.key(1), 4)

  def loss(tree):
    hidden = bert.Bert(CONFIG, remat=remat).apply(
      {"params": tree}, ids, mask, dropout_keys=keys, first_only=first_only
    )
    return jnp.sum(jnp.sin(hidden[:, 0])), hidden

  stacked = stacked_layers.stack(params, jnp.stack)
  (_, wanted), wanted_gradients = jax.value_and_grad(loss, has_aux=True)(params)
  (_, found), gradients = jax.value_and_grad(loss, has_aux=True)(stacked)
  np.testing.assert_allclose(found, wanted, atol=1e-5)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4),
    stacked_layers.unstack(gradients),
    wanted_gradients,
  )


def test_unstack_is_the_inverse_in_any_tree():
  tower = jax.tree.map(np.asarray, bert.init_params(CONFIG, jax.random.key(0)))
  tree = ({"question": tower, "passage": tower}, [tower, 3])
  stacked = stacked_layers.stack(tree, np.stack)
  assert set(stacked[0]["question"]) & {"layers", "layer_0"} == {"layers"}
  assert stacked[1][0]["layers"]["query"]["kernel"].shape == (2, 16, 16)
  again = stacked_layers.unstack(stacked)
  assert jax.tree.structure(again) == jax.tree.structure(tree)
  jax.tree.map(np.testing.assert_array_equal, again, tree)


def test_one_layer_has_nothing_to_stand_beside():
  tree = {"layer_0": {"bias": np.ones(2)}, "x": np.ones(1)}
  stacked = stacked_layers.stack(tree, np.stack)
  assert set(stacked) == {"layer_0", "x"}
