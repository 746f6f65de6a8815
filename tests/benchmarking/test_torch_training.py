"""AdamW of the peers: one step by hand."""

import pytest

from dpr_jax.benchmarking import torch_training


@pytest.fixture
def torch():
  """PyTorch, an extra."""
  return pytest.importorskip("torch", reason="no torch: extra `bench`")


@pytest.mark.parametrize(("clip_norm", "scale"), [(0.0, 1.0), (2.5, 0.5)])
def test_one_step_by_hand(torch, clip_norm, scale):
  """Gradients 3 of the weight and 4 of the bias, of norm 5.

  Adam's first step is learning_rate * g / (|g| + epsilon); with epsilon as
  large as g it is half of the rate.  Only the matrix decays: 1 - 0.1 * 0.5.
  """
  model = torch.nn.Linear(1, 1)
  with torch.no_grad():
    model.weight.fill_(1.0)
    model.bias.fill_(1.0)
  optimizer = torch_training.adamw(
    torch, model, weight_decay=0.5, epsilon=3.0 * scale
  )
  loss = 3 * model.weight.sum() + 4 * model.bias.sum()
  before = torch_training.descend(
    torch,
    model,
    optimizer,
    loss,
    learning_rate=0.1,
    clip_norm=clip_norm,
  )
  assert before == 7.0
  assert model.weight.item() == pytest.approx(0.95 - 0.1 / 2, rel=1e-5)
  assert model.bias.item() == pytest.approx(1 - 0.1 * 4 / 7, rel=1e-5)
  assert all(p.grad is None or not p.grad.any() for p in model.parameters())
