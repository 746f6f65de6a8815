"""AdamW and a training step in PyTorch, shared by both peers.

PyTorch is an extra: the peers import it and pass the module as an argument.
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
  """Fused AdamW without decay of vectors (biases, layer norm scales).

  The learning rate is set before every step, see `descend`.
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
  """Runs one optimizer step on `loss`.

  Args:
    torch: the module.
    model: model to train; its gradients must be 0, and are 0 afterwards.
    optimizer: optimizer from `adamw`.
    loss: scalar tensor computed by the model.
    learning_rate: learning rate of this step.
    clip_norm: largest global norm of the gradient; 0 = no clipping.

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
