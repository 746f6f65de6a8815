"""The optimizer: AdamW with warm-up, linear decay and clipping.

Weight decay excludes biases and LayerNorm.  The learning rate rises linearly
over the warm-up steps and falls linearly to 0 at the last step.  Gradients are
clipped by their global norm before Adam (DPR: 2.0).  `from_config` builds the
optimizer of a config; `setting_rules.scaled` adapts the learning rate to
another batch size.

The original (facebookresearch/DPR) differs in two places.  With a warm-up of W
steps, its learning rate of update k, from 0, is k / W of the peak, so that its
first update changes nothing; here it is (k + 1) / W.  And its AdamW, that of
transformers before version 5, adds epsilon before the bias correction.
`train.dpr_compat_schedule` does both as the original.
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
  compat = train.dpr_compat_schedule
  schedule = learning_rate_schedule(rate, warmup_steps, steps, compat)
  transformation = adamw(
    schedule,
    b1=train.adam_b1,
    b2=train.adam_b2,
    epsilon=train.adam_epsilon,
    weight_decay=train.weight_decay,
    clip_norm=train.clip_norm,
    dpr_compat_workers=train.dpr_compat_workers,
    dpr_compat_epsilon=compat,
    norm=norm,
  )
  return transformation, schedule


def learning_rate_schedule(
  peak: float, warmup_steps: int, total_steps: int, dpr_compat: bool = False
) -> optax.Schedule:
  """Linear warm-up to `peak`, linear decay to 0 at `total_steps`.

  Args:
    peak: largest learning rate.
    warmup_steps: W; the learning rate of update k < W, from 0, is (k + 1) / W
      of the peak.
    total_steps: steps of the whole training.
    dpr_compat: use k / W, as in the original: the first update is 0.
  """
  setting_rules.below_steps("train.warmup_steps", warmup_steps, total_steps)
  if dpr_compat and warmup_steps:
    rise = optax.schedules.linear_schedule(0.0, peak, warmup_steps)
  elif warmup_steps > 1:
    rise = optax.schedules.linear_schedule(
      peak / warmup_steps, peak, warmup_steps - 1
    )
  else:
    rise = optax.schedules.constant_schedule(peak)
  fall = optax.schedules.linear_schedule(peak, 0.0, total_steps - warmup_steps)
  return optax.schedules.join_schedules([rise, fall], [warmup_steps])


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
  dpr_compat_epsilon: bool = False,
  norm: Callable = optax.tree.norm,
) -> optax.GradientTransformation:
  """Clipping (if `clip_norm` is positive), then AdamW with a schedule.

  Args:
    schedule: function from step to learning rate.
    b1: decay rate of Adam's mean of gradients.
    b2: decay rate of Adam's mean of squared gradients.
    epsilon: constant added to the root of the mean square, after the bias
      correction.
    weight_decay: rate for matrices and embedding tables.
    clip_norm: largest global norm of the gradients; 0 = no clipping.
    dpr_compat_workers: W > 0 divides the gradient by W before clipping, to
      reproduce DPR's training on W workers; 0 = off.  DPR detaches the vectors
      of other workers and averages over workers, which gives 1 / W of the true
      gradient.  Adam's update does not depend on the scale of the gradients,
      so W has two effects: fewer gradients are clipped, and `epsilon` has more
      weight.  It is independent of the number of devices here.
    dpr_compat_epsilon: add epsilon before the bias correction, see
      `_huggingface_adamw`.
    norm: function from gradients to their global norm; a device may have only
      a part of them.

  Raises:
    InputError: `dpr_compat_workers` is negative.
  """
  workers = config_lib.at_least(
    "train.dpr_compat_workers", dpr_compat_workers, 0
  )
  if dpr_compat_epsilon:
    rule = _huggingface_adamw(schedule, b1, b2, epsilon, weight_decay)
  else:
    rule = optax.adamw(
      schedule,
      b1=b1,
      b2=b2,
      eps=epsilon,
      weight_decay=weight_decay,
      mask=_decays,
    )
  steps = [rule]
  if clip_norm > 0:
    steps.insert(0, _clip(clip_norm, norm))
  if workers > 0:
    steps.insert(0, optax.scale(1 / workers))
  return optax.chain(*steps)


def _huggingface_adamw(
  schedule: optax.Schedule,
  b1: float,
  b2: float,
  epsilon: float,
  weight_decay: float,
) -> optax.GradientTransformation:
  """AdamW of transformers before version 5 (`correct_bias=True`), DPR's.

  With Adam's moments m and v after t updates and the learning rate r:

    p <- p - r sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + epsilon)
    p <- p - r weight_decay p          (matrices and tables)

  Epsilon has 1 / sqrt(1 - b2^t) times its effect in `optax.adamw`: 32 times in
  the first step.  Weight decay is applied after the step, to its result.
  """

  def update(gradients, state, params):
    mean = optax.tree.update_moment(gradients, state.mu, b1, 1)
    square = optax.tree.update_moment_per_elem_norm(gradients, state.nu, b2, 2)
    count = optax.safe_increment(state.count)
    rate = schedule(state.count)
    size = rate * jnp.sqrt(1 - b2**count) / (1 - b1**count)

    def step(m, v, p, decays):
      change = -size * m / (jnp.sqrt(v) + epsilon)
      return change - rate * weight_decay * (p + change) if decays else change

    updates = jax.tree.map(step, mean, square, params, _decays(params))
    return updates, optax.ScaleByAdamState(count, mean, square)

  return optax.GradientTransformation(
    optax.scale_by_adam(b1, b2, epsilon).init, update
  )


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
