"""The optimizer against AdamW written out, and the schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dpr_jax import errors
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
