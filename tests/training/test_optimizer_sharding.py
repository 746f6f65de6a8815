"""The optimizer's state cut over the cores, and layers side by side."""

import importlib.util
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dpr_jax.core import devices as devices_lib
from dpr_jax.models import bert, dual_encoder, retriever_model
from dpr_jax.training import optimizer_sharding, train_step

pytestmark = pytest.mark.compiles

_PATH = pathlib.Path(__file__).with_name("equivalence.py")
if "equivalence" not in sys.modules:
  _SPEC = importlib.util.spec_from_file_location("equivalence", _PATH)
  sys.modules["equivalence"] = importlib.util.module_from_spec(_SPEC)
  _SPEC.loader.exec_module(sys.modules["equivalence"])
equivalence = sys.modules["equivalence"]

STEPS = 5


def _model():
  config = bert.BertConfig(
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=12,
  )
  encoder = dual_encoder.DualEncoder(config)
  tower = bert.init_params(config, jax.random.key(0))
  tower = jax.tree.map(lambda x: np.asarray(8 * x if x.ndim == 2 else x), tower)
  return retriever_model.Towers(encoder, encoder.towers(tower), None)


def _build(tiny_config, **settings):
  config = tiny_config.copy_and_resolve_references()
  with config.unlocked():
    config.train.update(
      {"clip_norm": 0.5, "weight_decay": 0.1, "warmup_steps": 1} | settings
    )
  model = _model()
  return train_step.build(config, model, STEPS), model


def _train(built, state, steps, first=0):
  batch = equivalence.batch(equivalence.Problem(1, 0.1, False))
  step, rows = built.mapped(), []
  for _ in range(first, steps):
    state, reported = step(state, devices_lib.split_over_cores(batch))
    rows.append({key: float(value) for key, value in reported.items()})
  return state, rows


@pytest.fixture(scope="module")
def plain(tiny_config):
  """What the plainest way gives: metrics of the steps and the last state."""
  built, model = _build(tiny_config)
  state, rows = _train(built, built.place(0, *built.init(model.params)), STEPS)
  return rows, built.fetch(state)


def _compare(found, wanted, tolerance=1e-4):
  """But for leaves whose gradient is 0 in exact arithmetic.

  Softmax does not see what all keys share, nor the loss what all passages do;
  Adam makes whole steps of the rounding that is left.
  """
  for (path, x), y in zip(
    jax.tree.leaves_with_path(found), jax.tree.leaves(wanted), strict=True
  ):
    name = jax.tree_util.keystr(path)
    if not name.endswith(
      ("['key']['bias']", "['passage']['layer_2']['output_norm']['bias']")
    ):
      np.testing.assert_allclose(x, y, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("shard", [False, True])
@pytest.mark.parametrize("layers", ["unrolled", "scanned"])
def test_the_trajectory_is_the_same(tiny_config, plain, shard, layers):
  """Metrics, parameters and moments, after five steps with clipping."""
  built, model = _build(tiny_config, shard_optimizer=shard, layers=layers)
  state = built.place(0, *built.init(model.params))
  state, rows = _train(built, state, STEPS)
  wanted_rows, wanted = plain
  assert wanted_rows[0]["gradient_norm"] > 0.5  # it is clipped
  for row, other in zip(rows, wanted_rows, strict=True):
    assert row == pytest.approx(other, rel=1e-4)
  found = built.fetch(state)
  assert jax.tree.structure(found) == jax.tree.structure(wanted)
  _compare(found, wanted)


def test_the_original_s_rule_is_cut_as_well(tiny_config):
  """Rate 0, so the first update changes nothing; then both go the same way."""
  found = []
  for shard in (False, True):
    built, model = _build(
      tiny_config, shard_optimizer=shard, dpr_compat_schedule=True
    )
    state = built.place(0, *built.init(model.params))
    state, rows = _train(built, state, 3)
    found.append((rows, built.fetch(state)))
  (rows, wanted), (others, cut) = found
  assert rows[0]["learning_rate"] == 0 < rows[1]["learning_rate"]
  for row, other in zip(rows, others, strict=True):
    assert row == pytest.approx(other, rel=1e-4)
  _compare(cut, wanted)


def test_a_checkpoint_goes_on_in_another_layout(tiny_config, plain):
  """Begun sharded and scanned, ended replicated and unrolled."""
  built, model = _build(tiny_config, shard_optimizer=True, layers="scanned")
  state, _ = _train(built, built.place(0, *built.init(model.params)), 2)
  saved = built.fetch(state)
  other, _ = _build(tiny_config)
  state, rows = _train(other, other.place(2, *saved), STEPS, first=2)
  assert rows[-1] == pytest.approx(plain[0][-1], rel=1e-4)
  _compare(other.fetch(state), plain[1])


def test_every_core_keeps_its_part_alone(tiny_config):
  """Of Adam's moments an eighth, but for what is too small to be cut."""
  built, model = _build(tiny_config, shard_optimizer=True, layers="scanned")
  state = built.place(0, *built.init(model.params))
  params = sum(x.size for x in jax.tree.leaves(state.params))
  of_core = sum(
    x.addressable_shards[0].data.size for x in jax.tree.leaves(state.optimizer)
  )
  assert of_core < 2 * params / 4
  shapes = built.shapes(
    jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), model.params)
  )
  assert jax.tree.map(np.shape, state) == jax.tree.map(np.shape, shapes)


def test_gradients_may_travel_in_bfloat16(tiny_config, plain):
  built, model = _build(tiny_config, reduce_dtype="bfloat16")
  state = built.place(0, *built.init(model.params))
  _, rows = _train(built, state, 1)
  assert rows[0]["loss"] == pytest.approx(plain[0][0]["loss"], rel=1e-6)
  norm = plain[0][0]["gradient_norm"]
  assert rows[0]["gradient_norm"] == pytest.approx(norm, rel=1e-2)
  assert rows[0]["gradient_norm"] != norm


def test_an_axis_is_found_or_the_array_stays_whole():
  sharing = optimizer_sharding.Sharing(8)
  assert sharing.axis((11, 16, 24)) == 1
  assert sharing.axis((16, 9, 7)) == 0
  assert sharing.axis((30522, 768)) == 1
  assert sharing.axis((64,)) == 0
  assert sharing.axis((8,)) is None  # too small
  assert sharing.axis((9, 27)) is None
  assert optimizer_sharding.Sharing(0).axis((16, 16)) is None
  tree = {"a": np.arange(128.0).reshape(16, 8), "count": np.int32(3)}
  parts = sharing.cut(tree)
  assert parts["a"].shape == (8, 2, 8)
  assert parts["count"].shape == (8,)
  jax.tree.map(np.testing.assert_array_equal, sharing.join(parts, tree), tree)


def test_nothing_recompiles_between_steps(tiny_config):
  built, model = _build(tiny_config, shard_optimizer=True, layers="scanned")
  state = built.place(0, *built.init(model.params))
  batch = devices_lib.split_over_cores(
    equivalence.batch(equivalence.Problem(1, 0.1, False))
  )
  step, compiled = built.mapped(), []

  def hear(event, seconds, **_):
    if event == "/jax/core/compile/backend_compile_duration":
      compiled.append(seconds)

  state, _ = step(state, batch)
  jax.monitoring.register_event_duration_secs_listener(hear)
  try:
    for _ in range(3):
      state, _ = step(state, batch)
  finally:
    jax.monitoring.unregister_event_duration_listener(hear)
  assert not compiled
  assert optax.tree.norm(jax.tree.map(jnp.asarray, state.params)) > 0
