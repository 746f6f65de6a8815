"""The optimizer: AdamW with warm-up, linear decay and clipping, as in DPR.

Weight decay excludes biases and LayerNorm.  The learning rate rises linearly
over the warm-up steps and falls linearly to 0 at the last step.  Gradients are
clipped by their global norm before Adam (DPR: 2.0).  `from_config` builds the
optimizer of a config; `setting_rules.scaled` adapts the learning rate to
another batch size.
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
    train: section `train` of a config.
    steps: number of steps of the whole training.
    norm: function from gradients to their global norm; these may be one
      device's part of the gradients.

  Returns:
    The optax transformation, with scaling and clipping, and the schedule from
    step to learning rate.

  Raises:
    InputError: a setting is out of range, or the warm-up, scaled to this batch
      size, is not shorter than the training.
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
  """True for the leaves with weight decay: matrices and embedding tables."""
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
    schedule: function from step to learning rate.
    b1: decay rate of Adam's mean of gradients.
    b2: decay rate of Adam's mean of squared gradients.
    epsilon: constant added to the root of the mean square.
    weight_decay: rate for matrices and embedding tables.
    clip_norm: largest global norm of the gradients; 0 = no clipping.
    dpr_compat_workers: W > 0 divides the gradient by W before clipping, to
      reproduce DPR's training on W workers; 0 = off.  DPR detaches the vectors
      of other workers and averages over workers, which gives 1 / W of the true
      gradient.  Adam's update does not depend on the scale of the gradients,
      so W has two effects: fewer gradients are clipped, and `epsilon` has more
      weight.  It is independent of the number of devices here.
    norm: function from gradients to their global norm; a device may have only
      a part of them.

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
  """`optax.clip_by_global_norm` with a norm of choice.

  Optax always computes the norm of the arrays it gets; with a sharded
  optimizer these are only one device's part.
  """

  def update(gradients, state, params=None):
    del params
    length = norm(gradients)
    scale = jnp.where(length < most, 1.0, most / length)
    return jax.tree.map(lambda x: x * scale, gradients), state

  return optax.GradientTransformation(lambda _: optax.EmptyState(), update)
