"""AdamW as the original trains: warm-up, linear decay, clipping.

Weight decay spares biases and LayerNorm; the learning rate rises linearly over
the warm-up steps and falls linearly to 0 at the last step; gradients are
clipped by their global norm before Adam sees them (DPR: 2.0).  `from_config`
puts it together; for batches of another size than the recipe's see
`setting_rules.scaled`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import optax
from absl import logging

from dpr_jax.core import config as config_lib
from dpr_jax.core import setting_rules


def from_config(
  train: ml_collections.ConfigDict,
  steps: int,
  norm: Callable = optax.tree.norm,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """Optimizer and learning rate of `config.train`.

  Args:
    train: the section `train`.
    steps: of the whole training.
    norm: gives the global norm of the gradients that the transformation gets.

  Returns:
    The transformation, scaling and clipping included, and the schedule from
    step to learning rate.

  Raises:
    InputError: a setting is out of range, or the warm-up, for this batch size,
      is no shorter than the training.
  """
  rate, warmup_steps = setting_rules.warm_up(train, steps)
  if train.scale_rule != "none":
    logging.info(
      "train: learning rate %.4g, %d warm-up steps (%s rule: %.4g and %d at"
      " batches of %d)",
      rate,
      warmup_steps,
      train.scale_rule,
      train.learning_rate,
      train.warmup_steps,
      train.scale_reference,
    )
  schedule = learning_rate_schedule(rate, warmup_steps, steps)
  transformation = adamw(
    schedule,
    b1=train.adam_b1,
    b2=train.adam_b2,
    epsilon=train.adam_epsilon,
    weight_decay=train.weight_decay,
    clip_norm=train.clip_norm,
    dpr_compat_workers=train.dpr_compat_workers,
    norm=norm,
  )
  return transformation, schedule


def learning_rate_schedule(
  peak: float, warmup_steps: int, total_steps: int
) -> optax.Schedule:
  """Linear warm-up to `peak`, linear decay to 0 at `total_steps`."""
  setting_rules.below_steps("train.warmup_steps", warmup_steps, total_steps)
  return optax.schedules.join_schedules(
    [
      optax.schedules.linear_schedule(
        peak / max(warmup_steps, 1), peak, max(warmup_steps - 1, 1)
      )
      if warmup_steps > 1
      else optax.schedules.constant_schedule(peak),
      optax.schedules.linear_schedule(peak, 0.0, total_steps - warmup_steps),
    ],
    [warmup_steps],
  )


def _decays(params):
  """True for the leaves that weight decay applies to: matrices and tables."""
  return jax.tree.map_with_path(
    lambda path, _: path[-1].key in ("kernel", "embedding"), params
  )


def adamw(
  schedule: optax.Schedule,
  *,
  b1: float = 0.9,
  b2: float = 0.999,
  epsilon: float = 1e-8,
  weight_decay: float = 0.0,
  clip_norm: float = 0.0,
  dpr_compat_workers: int = 0,
  norm: Callable = optax.tree.norm,
) -> optax.GradientTransformation:
  """Clipping (if `clip_norm` is positive), then AdamW with a schedule.

  Args:
    schedule: step to learning rate.
    b1: decay of Adam's mean.
    b2: decay of Adam's mean square.
    epsilon: added to the root of the mean square.
    weight_decay: of matrices and tables.
    clip_norm: largest global norm of a gradient; 0 = any.
    dpr_compat_workers: W > 0 divides the gradient by W before clipping, as if
      the original had trained on W workers: it detaches the vectors that come
      from other workers and averages over workers, which leaves 1 / W of the
      true gradient.  Adam itself does not mind the scale of gradients, so W
      matters in two places: fewer gradients reach `clip_norm`, and `epsilon`
      weighs more.  It has nothing to do with the number of cores here.
    norm: gives the global norm of the gradients: a core may hold only a part.

  Raises:
    InputError: `dpr_compat_workers` is negative.
  """
  workers = config_lib.at_least(
    "train.dpr_compat_workers", dpr_compat_workers, 0
  )
  steps = [
    optax.adamw(
      schedule,
      b1=b1,
      b2=b2,
      eps=epsilon,
      weight_decay=weight_decay,
      mask=_decays,
    )
  ]
  if clip_norm > 0:
    steps.insert(0, _clip(clip_norm, norm))
  if workers > 0:
    steps.insert(0, optax.scale(1 / workers))
  return optax.chain(*steps)


def _clip(
  most: float, norm: Callable[..., jax.Array]
) -> optax.GradientTransformation:
  """As `optax.clip_by_global_norm`, which knows but one norm."""

  def update(gradients, state, params=None):
    del params
    length = norm(gradients)
    scale = jnp.where(length < most, 1.0, most / length)
    return jax.tree.map(lambda x: x * scale, gradients), state

  return optax.GradientTransformation(lambda _: optax.EmptyState(), update)
