"""Dev figures from scores."""

import numpy as np

from dpr_jax.training import validation


def test_pool_figures():
  """Ranks start at 1, a tie counts against the gold passage."""
  scores = np.array([[3.0, 1.0, 2.0], [1.0, 2.0, 2.0], [0.0, 0.0, 5.0]])
  gold = np.array([0, 1, 0])
  loss, ranks = validation.pool_figures(scores, gold)
  assert ranks.tolist() == [1, 2, 3]
  shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
  wanted = -np.log(shares[np.arange(3), gold]).mean()
  np.testing.assert_allclose(loss, wanted)
