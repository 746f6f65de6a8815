"""AdamW as the original trains: warm-up, linear decay, clipping.

Weight decay spares biases and LayerNorm; the learning rate rises linearly over
the warm-up steps and falls linearly to 0 at the last step; gradients are
clipped by their global norm before Adam sees them (DPR: 2.0).
"""

import jax
import optax

from dpr_jax import errors


def learning_rate_schedule(
  peak: float, warmup_steps: int, total_steps: int
) -> optax.Schedule:
  """Linear warm-up to `peak`, linear decay to 0 at `total_steps`."""
  if warmup_steps >= total_steps:
    raise errors.InputError(
      f"config.train.warmup_steps={warmup_steps} is not below the {total_steps}"
      " steps of the training: lower it, or train longer"
    )
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
) -> optax.GradientTransformation:
  """Clipping (if `clip_norm` is positive), then AdamW with a schedule."""
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
    steps.insert(0, optax.clip_by_global_norm(clip_norm))
  return optax.chain(*steps)
