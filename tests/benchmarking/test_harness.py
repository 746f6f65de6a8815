"""Contests: who takes turns when, and what the figures say of known times."""

import numpy as np
import pytest

from dpr_jax.benchmarking import harness
from dpr_jax.core import errors


class Clock:
  """Time that passes only when somebody works."""

  def __init__(self):
    self.now = 100.0

  def __call__(self) -> float:
    return self.now

  def worker(self, name, seconds, log):
    """A contender that takes `seconds[number]` and notes its turn."""

    def run(number):
      log.append((name, number))
      self.now += seconds[number]
      return f"{name}{number}"

    return harness.Contender(name, run)


def test_contenders_alternate_and_warm_ups_do_not_count():
  clock, log = Clock(), []
  outcome = harness.contest(
    [
      clock.worker("a", [1.0, 2.0, 4.0], log),
      clock.worker("b", [3.0, 3.0, 20.0], log),
    ],
    rounds=3,
    warmups=(0, 2),
    clock=clock,
  )
  assert log[:4] == [("a", 0), ("b", 0), ("a", 2), ("b", 2)]
  assert log[4:] == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
  assert outcome.seconds == {"a": [1.0, 2.0, 4.0], "b": [3.0, 3.0, 20.0]}
  assert outcome.results["b"] == ["b0", "b1", "b2"]


def test_speedup_by_medians_and_by_pairs():
  """The two differ where the machine drifts between rounds."""
  found = harness.speedup([1.0, 2.0, 4.0], [3.0, 3.0, 20.0])
  assert found["of_medians"] == 3.0 / 2.0
  assert found["pairs"] == [3.0, 1.5, 5.0]
  assert found["median_of_pairs"] == 3.0
  line = harness.speedup_line("ours", "theirs", found)
  assert "1.50 times as fast as theirs by medians, 3.00 by" in line
  assert "3 pairs (1.50 to 5.00)" in line
  with pytest.raises(ValueError, match="zip"):
    harness.speedup([1.0], [1.0, 2.0])


def test_spread_in_order():
  assert harness.spread([5.0, 1.0, 3.0, 2.0, 4.0]) == {
    "least": 1.0,
    "quartile1": 2.0,
    "median": 3.0,
    "quartile3": 4.0,
    "greatest": 5.0,
  }
  assert set(harness.spread([7.0]).values()) == {7.0}


def test_matrix_peak_counts_two_flops_per_element_and_row():
  ticks = iter(np.cumsum([0, 4, 0, 2, 0, 3, 0, 5]).astype(float))
  assert harness.matrix_peak(100, lambda: next(ticks)) == 2e6 / 2 / 1e9


def test_machine_and_versions():
  found = harness.machine()
  assert found["cores"] >= 1
  assert found["cpu"]
  versions = harness.versions()
  assert versions["jax"]
  assert set(versions) == set(harness.PACKAGES)
  report = {"machine": found, "versions": versions | {"torch": None}}
  line = harness.machine_line(report | {"matrix_peak_gflops": 99.6})
  assert "100 GFLOP/s" in line
  assert f"jax {versions['jax']}" in line
  assert "torch" not in line


def test_report_file_is_checked_before_the_work(tmp_path):
  harness.check_writable(tmp_path / "new" / "report.json")
  assert not list((tmp_path / "new").iterdir())
  (tmp_path / "file").write_text("")
  for path in (tmp_path, tmp_path / "file" / "report.json"):
    with pytest.raises(errors.InputError, match="--json=.*cannot be written"):
      harness.check_writable(path)
