"""Whom the guard of a process names."""

from dpr_jax.core import process_guard


def test_who_lags_is_stuck():
  line = process_guard.who_is_stuck({0: 7, 1: 5, 2: 7}, 31.0)
  assert "process 1 is stuck" in line
  assert "begun step 7" in line
  line = process_guard.who_is_stuck({0: 7, 1: 7}, 31.0)
  assert line == "no process has finished step 7 for 31 s"
