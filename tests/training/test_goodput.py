"""Where a run's seconds go, with a clock that is set by hand."""

import types

import numpy as np
import pytest

from dpr_jax.training import goodput


@pytest.fixture
def clock(monkeypatch):
  """Seconds that pass only when a test says so."""
  now = [100.0]
  monkeypatch.setattr(goodput.time, "monotonic", lambda: now[0])
  return now


def _array(ready):
  return types.SimpleNamespace(is_ready=lambda: ready)


def test_every_second_has_one_cause(clock):
  """20 s: 2 to start, 5 of the first call to compile, 3 of 4 waited lost."""
  run = goodput.Goodput()
  built = [10.0]
  clock[0] += 2
  run.begin()
  with run.waiting(None):  # nothing runs yet
    clock[0] += 3
  with run.compiling(lambda: built[0]):
    clock[0] += 6
    built[0] += 5
  with run.waiting({"loss": _array(ready=False)}):
    clock[0] += 1
  clock[0] += 2  # the rest of the steps
  with run.lost_to("checkpoint"):
    clock[0] += 1
  with run.lost_to("evaluation"):
    clock[0] += 2
    with run.lost_to("checkpoint"):
      clock[0] += 2
    clock[0] += 1
  assert run.summary() == {
    "run_seconds": 20.0,
    "goodput": 4 / 20,
    "lost_start_seconds": 2.0,
    "lost_compile_seconds": 5.0,
    "lost_data_seconds": 3.0,
    "lost_checkpoint_seconds": 3.0,
    "lost_evaluation_seconds": 3.0,
  }
  assert run.line("train", 7) == (
    "train: 7 steps in 20 s: 20 % in steps, 10 % starting, 25 % compiling,"
    " 15 % waiting for data, 15 % saving checkpoints, 15 % evaluating"
  )


def test_a_wait_is_lost_once_the_devices_are_idle(clock):
  run = goodput.Goodput()
  run.begin()
  for ready, seconds in ((True, 3), (False, 5)):
    with run.waiting({"loss": _array(ready)}):
      clock[0] += seconds
  assert run.summary()["lost_data_seconds"] == 3.0
  assert run.summary()["goodput"] == 5 / 8


def test_an_error_in_a_block_is_charged_to_it(clock):
  run = goodput.Goodput()
  run.begin()

  def fails():
    clock[0] += 4
    raise KeyError

  with pytest.raises(KeyError), run.lost_to("evaluation"):
    fails()
  clock[0] += 1
  assert run.summary()["lost_evaluation_seconds"] == 4.0
  assert run.summary()["goodput"] == 0.2


def test_what_a_restart_has_cost(clock):
  """Killed 30 s after the checkpoint of step 4; 6 s to come back.

  Until step 4 there were 50 s, 10 of them lost; then 14 s of steps follow.
  """
  before = {"lost_compile_seconds": 10.0}
  rows = [
    {"step": 0, "dev_loss": 1.0},
    {"step": 2, "run_seconds": 25.0, **before},
    {"step": 4, "run_seconds": 50.0, **before},
    {"step": 5, "run_seconds": 60.0, **before},
    {"step": 6, "run_seconds": 80.0, **before, "lost_data_seconds": 3.0},
  ]
  run = goodput.Goodput()
  clock[0] += 4
  run.resume(rows, 4)
  clock[0] += 2
  run.begin()
  clock[0] += 14
  assert run.summary() == {
    "run_seconds": 100.0,
    "goodput": 0.54,
    "lost_compile_seconds": 10.0,
    "lost_restart_seconds": 36.0,
  }
  # Killed again, before the next checkpoint: both losses add up.
  again = goodput.Goodput()
  again.resume([*rows[:3], {"step": 6, **run.summary()}], 4)
  again.begin()
  assert again.summary()["run_seconds"] == 100.0
  assert again.summary()["lost_restart_seconds"] == 50.0


def test_a_run_that_loses_all_of_its_steps(clock):
  """No checkpoint was written: it begins again, and the 25 s are lost."""
  run = goodput.Goodput()
  run.resume([{"step": 2, "run_seconds": 25.0}], 0)
  clock[0] += 5
  run.begin()
  clock[0] += 20
  assert run.summary() == {
    "run_seconds": 50.0,
    "goodput": 0.4,
    "lost_start_seconds": 5.0,
    "lost_restart_seconds": 25.0,
  }


def test_flops_of_the_step_whose_metrics_have_arrived(clock, monkeypatch):
  """Steps of 600 and 300 FLOPs in 2 s each, on two devices of 500 at best."""
  monkeypatch.setattr(goodput.jax, "local_device_count", lambda: 2)
  run = goodput.Goodput(lambda batch: batch["flops"], 500.0)
  run.begin()
  run.sent({"flops": 600})
  clock[0] += 2
  run.sent({"flops": 300})  # before the metrics of the first are here
  row = run.columns(2.0)
  assert (row["useful_flops_per_second"], row["mfu"]) == (300.0, 0.3)
  clock[0] += 2
  row = run.columns(2.0)
  assert (row["useful_flops_per_second"], row["mfu"]) == (150.0, 0.15)
  assert run.summary()["mfu"] == 900 / 4 / 1000
  assert run.line("train", 2) == (
    "train: 2 steps in 4 s: 100 % in steps; 22 % of the devices' peak"
  )


def test_flops_where_no_peak_is_known(clock):
  run = goodput.Goodput(lambda batch: 6_000_000_000)
  run.begin()
  run.sent({})
  clock[0] += 4
  row = run.columns(4.0)
  assert row["useful_flops_per_second"] == 1.5e9
  assert "mfu" not in row
  assert run.line("train", 1).endswith("in steps; 1.5 GFLOP/s without padding")


def test_lengths_in_every_layout():
  """Padded, the reader's, and packed rows: 3, 1 and 2 tokens."""
  mask = np.array([[1, 1, 1, 0], [1, 0, 0, 0]], bool)
  padded = {
    "questions": ({"mask": mask},),
    "passages": ({"mask": mask[:1, :2]},),
    "keys": np.arange(9),
  }
  reader = {"inputs": ({"ids": np.zeros((2, 4)), "lengths": np.array([3, 1])},)}
  tile = {"places": np.zeros((2, 1, 2, 3)), "lengths": [[[3, 1]], [[2, 2]]]}
  packed = {"passages": {"token_ids": np.zeros((2, 1, 8)), "tiles": (tile,)}}
  assert goodput.text_lengths(padded).tolist() == [3, 1, 2]
  assert goodput.text_lengths(reader).tolist() == [3, 1]
  assert goodput.text_lengths(packed).tolist() == [3, 1, 2, 2]
