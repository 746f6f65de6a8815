"""Rules that several settings must keep together."""

import pytest

from dpr_jax.core import setting_rules


@pytest.mark.parametrize(
  ("batch_size", "rule", "rate", "warmup_steps"),
  [
    (128, "linear", 2e-5, 1237),
    (128, "sqrt", 2e-5, 1237),
    (1024, "none", 2e-5, 1237),
    (1024, "linear", 16e-5, 155),  # 154.6
    (2048, "sqrt", 8e-5, 78),  # 77.3
    (32, "linear", 0.5e-5, 4948),
    (32, "sqrt", 1e-5, 4948),
    (10**6, "sqrt", 2e-5 * (10**6 / 128) ** 0.5, 1),  # 0.16
  ],
)
def test_scaled(batch_size, rule, rate, warmup_steps):
  """DPR's recipe for other batches; the warm-up sees as many examples."""
  found = setting_rules.scaled(2e-5, 1237, batch_size, 128, rule)
  assert found == (pytest.approx(rate, rel=1e-12), warmup_steps)
  assert setting_rules.scaled(2e-5, 0, batch_size, 128, rule)[1] == 0
