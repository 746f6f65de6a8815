"""AdamW in PyTorch, as both peers train with it.

PyTorch is an extra: the peers import it and hand it on.
"""

from typing import Any


def adamw(
  torch: Any,
  model: Any,
  *,
  weight_decay: float,
  betas: tuple[float, float] = (0.9, 0.999),
  epsilon: float = 1e-8,
) -> Any:
  """Fused AdamW; vectors (biases, scales of layer norms) do not decay.

  Its learning rate is set before every step, see `descend`.
  """
  decayed, spared = [], []
  for parameter in model.parameters():
    (decayed if parameter.ndim > 1 else spared).append(parameter)
  return torch.optim.AdamW(
    [
      {"params": decayed, "weight_decay": weight_decay},
      {"params": spared, "weight_decay": 0.0},
    ],
    betas=betas,
    eps=epsilon,
    fused=True,
  )


def descend(
  torch: Any,
  model: Any,
  optimizer: Any,
  loss: Any,
  *,
  learning_rate: float,
  clip_norm: float,
) -> float:
  """One step down the gradient of `loss`.

  Args:
    torch: the module.
    model: whose parameters these are; their gradients are 0 before and after.
    optimizer: of `adamw`.
    loss: a scalar tensor of this model.
    learning_rate: of this step.
    clip_norm: of the whole gradient; 0 = no clipping.

  Returns:
    The loss before the step.
  """
  for group in optimizer.param_groups:
    group["lr"] = learning_rate
  loss.backward()
  if clip_norm > 0:
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
  optimizer.step()
  optimizer.zero_grad()
  return float(loss.detach())
