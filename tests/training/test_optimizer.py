"""The optimizer against AdamW written out, and the schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.training import optimizer


def test_schedule_rises_and_falls_linearly():
  """Warm-up to the peak, then down to 0 at the last step."""
  schedule = optimizer.learning_rate_schedule(1.0, 4, 12)
  values = [float(schedule(step)) for step in range(13)]
  np.testing.assert_allclose(values[:4], [0.25, 0.5, 0.75, 1.0], rtol=1e-6)
  np.testing.assert_allclose(np.diff(values[4:]), -1 / 8, rtol=1e-5)
  assert values[12] == 0.0
  assert float(optimizer.learning_rate_schedule(1.0, 0, 5)(0)) == 1.0
  assert float(optimizer.learning_rate_schedule(1.0, 1, 5)(0)) == 1.0


def test_the_original_s_schedule_begins_at_0():
  """Its rate of update k is k / W: the second is where our first is."""
  schedule = optimizer.learning_rate_schedule(1.0, 4, 12, dpr_compat=True)
  wanted = [0, 1 / 4, 2 / 4, 3 / 4, 1, 7 / 8, 6 / 8, 5 / 8]
  wanted += [4 / 8, 3 / 8, 2 / 8, 1 / 8, 0]
  found = [float(schedule(step)) for step in range(13)]
  np.testing.assert_allclose(found, wanted, rtol=1e-6)
  one, none = (
    optimizer.learning_rate_schedule(1.0, warmup, 5, dpr_compat=True)
    for warmup in (1, 0)
  )
  np.testing.assert_allclose(
    [float(one(step)) for step in range(5)], [0, 1, 3 / 4, 2 / 4, 1 / 4]
  )
  np.testing.assert_allclose(
    [float(none(step)) for step in range(5)], [1, 4 / 5, 3 / 5, 2 / 5, 1 / 5]
  )


def test_warmup_longer_than_training_is_refused():
  """The learning rate would never come down."""
  with pytest.raises(errors.InputError, match="warmup_steps=10 .* 10 steps"):
    optimizer.learning_rate_schedule(1.0, 10, 10)


def test_one_step_by_hand():
  """Clipping, then AdamW; no decay on biases and LayerNorm."""
  params = {
    "query": {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full(2, 2.0)},
    "norm": {"scale": jnp.full(2, 2.0)},
    "table": {"embedding": jnp.full((1, 2), 2.0)},
  }
  gradients = jax.tree.map(lambda x: jnp.full(x.shape, 3.0), params)
  rate, decay, epsilon = 0.1, 0.5, 0.4
  transformation = optimizer.adamw(
    optax.schedules.constant_schedule(rate),
    epsilon=epsilon,
    weight_decay=decay,
    clip_norm=1.0,
  )
  updates, _ = transformation.update(
    gradients, transformation.init(params), params
  )
  clipped = 3.0 / np.sqrt(10 * 9.0)  # ten parameters
  adam = -rate * clipped / (clipped + epsilon)
  np.testing.assert_allclose(updates["query"]["bias"], adam, rtol=1e-5)
  np.testing.assert_allclose(updates["norm"]["scale"], adam, rtol=1e-5)
  for leaf in (updates["query"]["kernel"], updates["table"]["embedding"]):
    np.testing.assert_allclose(leaf, adam - rate * decay * 2.0, rtol=1e-5)
  unclipped = optimizer.adamw(
    optax.schedules.constant_schedule(rate), epsilon=epsilon
  )
  updates, _ = unclipped.update(gradients, unclipped.init(params), params)
  np.testing.assert_allclose(
    updates["norm"]["scale"], -rate * 3.0 / (3.0 + epsilon), rtol=1e-5
  )


def _updates(transformation, gradients):
  """Updates of some steps from parameters of one."""
  params = {"scale": jnp.ones(len(gradients[0]))}
  state, found = transformation.init(params), []
  for gradient in gradients:
    updates, state = transformation.update(
      {"scale": jnp.asarray(gradient)}, state, params
    )
    found.append(np.asarray(updates["scale"]))
  return np.stack(found)


def test_dpr_workers_do_not_change_adam_itself():
  """Without clipping and epsilon the scale of gradients is lost in Adam."""
  generator = np.random.default_rng(0)
  gradients = generator.standard_normal((4, 6)).astype(np.float32)
  schedule = optax.schedules.constant_schedule(0.1)
  plain, compat = (
    optimizer.adamw(schedule, epsilon=0.0, dpr_compat_workers=workers)
    for workers in (0, 8)
  )
  np.testing.assert_array_equal(
    _updates(compat, gradients), _updates(plain, gradients)
  )


@pytest.mark.parametrize(
  ("workers", "seen_by_adam"),
  # The gradient (3, 4) has norm 5; clipped at 2 it is (1.2, 1.6).
  [
    (0, (1.2, 1.6)),
    (1, (1.2, 1.6)),
    (2, (1.2, 1.6)),  # norm 2.5, still clipped
    (4, (0.75, 1.0)),  # norm 1.25, not clipped
    (8, (0.375, 0.5)),
  ],
)
def test_dpr_workers_change_clipping_and_epsilon(workers, seen_by_adam):
  """By hand: the first step of Adam is g / (g + epsilon)."""
  rate, epsilon = 0.1, 0.5
  transformation = optimizer.adamw(
    optax.schedules.constant_schedule(rate),
    epsilon=epsilon,
    clip_norm=2.0,
    dpr_compat_workers=workers,
  )
  gradient = np.array(seen_by_adam)
  found = _updates(transformation, [np.array([3.0, 4.0], np.float32)])[0]
  np.testing.assert_allclose(
    found, -rate * gradient / (gradient + epsilon), rtol=1e-5
  )


def test_from_config():
  """Every setting arrives, the scaled rate and warm-up too."""
  config = config_lib.base_config().train
  config.update(
    batch_size=512,
    scale_rule="sqrt",
    learning_rate=0.1,
    warmup_steps=15,
    adam_b1=0.5,
    adam_b2=0.75,
    adam_epsilon=0.25,
    weight_decay=0.5,
    clip_norm=1.0,
    dpr_compat_workers=4,
  )
  transformation, schedule = optimizer.from_config(config, 20)
  np.testing.assert_allclose(
    [float(schedule(step)) for step in (0, 3, 4, 12, 20)],
    [0.05, 0.2, 0.2, 0.1, 0.0],
    rtol=1e-6,
  )
  params = {"kernel": jnp.ones(2)}
  state = transformation.init(params)
  mean, square = np.zeros(2), np.zeros(2)
  for step, true in enumerate([(12.0, 16.0), (0.8, -1.6)]):
    updates, state = transformation.update(
      {"kernel": jnp.array(true)}, state, params
    )
    gradient = np.array(true) / 4
    gradient /= max(1.0, np.linalg.norm(gradient))
    mean = 0.5 * mean + 0.5 * gradient
    square = 0.75 * square + 0.25 * gradient**2
    power = step + 1
    root = np.sqrt(square / (1 - 0.75**power))
    adam = mean / (1 - 0.5**power) / (root + 0.25)
    np.testing.assert_allclose(
      updates["kernel"], -0.05 * power * (adam + 0.5), rtol=1e-5
    )


def _compat(**settings):
  """Section `train` of the original's optimizer, without clipping."""
  config = config_lib.base_config().train
  config.update(
    learning_rate=0.5, warmup_steps=2, clip_norm=0.0, dpr_compat_schedule=True
  )
  config.update(settings)
  return config


def test_three_steps_of_the_original_by_hand():
  """Rates 0, 1/4, 1/2; both decays 1/2, epsilon 1; gradients 1, 1, 2.

  m is 1/2, 3/4, 11/8 and v 1/2, 3/4, 19/8; the bias correction 1/2, 3/4, 7/8.
  """
  config = _compat(adam_b1=0.5, adam_b2=0.5, adam_epsilon=1.0)
  transformation, _ = optimizer.from_config(config, 4)
  found = _updates(transformation, [np.float32([g]) for g in (1, 1, 2)])
  second = 1 / 4 * np.sqrt(3 / 4) / (3 / 4) * (3 / 4) / (np.sqrt(3 / 4) + 1)
  third = 1 / 2 * np.sqrt(7 / 8) / (7 / 8) * (11 / 8) / (np.sqrt(19 / 8) + 1)
  assert second == pytest.approx(0.116025, abs=1e-6)
  np.testing.assert_allclose(found[:, 0], [0, -second, -third], rtol=1e-6)
  # With epsilon after the correction: 1/4 * 1 / (1 + 1), and so on.
  config.dpr_compat_schedule = False
  plain, _ = optimizer.from_config(config, 4)
  found = _updates(plain, [np.float32([g]) for g in (1, 1, 2)])
  root = np.sqrt(19 / 8 / (7 / 8))
  np.testing.assert_allclose(
    found[:, 0], [-1 / 8, -1 / 4, -1 / 2 * (11 / 7) / (root + 1)], rtol=1e-6
  )


def _numpy_original(start, gradients, rates, epsilon, decay):
  """Parameters after the steps of the original's loop, in float64."""
  params = {name: value.copy() for name, value in start.items()}
  mean, square = ({k: np.zeros(6) for k in start} for _ in range(2))
  for step, (rate, given) in enumerate(zip(rates, gradients, strict=True)):
    norm = np.sqrt(sum((g.astype(float) ** 2).sum() for g in given.values()))
    size = rate * np.sqrt(1 - 0.999 ** (step + 1)) / (1 - 0.9 ** (step + 1))
    for name, value in params.items():
      gradient = given[name].astype(float) * min(1.0, 2.0 / norm)
      mean[name] = 0.9 * mean[name] + 0.1 * gradient
      square[name] = 0.999 * square[name] + 0.001 * gradient**2
      value -= size * mean[name] / (np.sqrt(square[name]) + epsilon)
      if name == "kernel":
        value -= rate * decay * value
  return params


@pytest.mark.parametrize("compat", [True, False])
def test_the_original_s_thirty_steps_in_numpy(compat):
  """With clipping and decay; our own rule ends somewhere else."""
  config = _compat(
    learning_rate=1e-2,
    warmup_steps=5,
    clip_norm=2.0,
    weight_decay=0.1,
    adam_epsilon=1e-2,
    dpr_compat_schedule=compat,
  )
  transformation, _ = optimizer.from_config(config, 30)
  generator = np.random.default_rng(3)
  start = {name: generator.normal(size=6) for name in ("kernel", "bias")}
  gradients = [
    {
      name: generator.normal(0, 0.3 * (1 + step % 4), 6).astype(np.float32)
      for name in start
    }
    for step in range(30)
  ]
  params = {k: jnp.asarray(v, jnp.float32) for k, v in start.items()}
  state = transformation.init(params)
  for given in gradients:
    updates, state = transformation.update(
      jax.tree.map(jnp.asarray, given), state, params
    )
    params = optax.apply_updates(params, updates)
  rates = [
    1e-2 * (step / 5 if step < 5 else (30 - step) / 25) for step in range(30)
  ]
  wanted = _numpy_original(start, gradients, rates, 1e-2, 0.1)
  error = max(np.abs(params[name] - wanted[name]).max() for name in start)
  assert error < 1e-6 if compat else error > 1e-3


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("scale_rule", "cubic", "scale_rule='cubic': must be one of none, linear"),
    ("scale_reference", 0, "scale_reference=0: must be >= 1"),
    ("dpr_compat_workers", -1, "dpr_compat_workers=-1: must be >= 0"),
    ("warmup_steps", -1, "warmup_steps=-1: must be >= 0"),
    ("warmup_steps", 30, "=30 for batches of 128 is 120 .* of 32 .* 100 steps"),
  ],
)
def test_settings_that_are_refused(key, value, message):
  """With key and value."""
  config = config_lib.base_config().train
  config.update(batch_size=32, scale_rule="linear", warmup_steps=10)
  config[key] = value
  with pytest.raises(errors.InputError, match=message):
    optimizer.from_config(config, 100)
