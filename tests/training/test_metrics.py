"""Figures of a step's time and padding, with a clock that is set by hand."""

import numpy as np
import pytest

from dpr_jax.core import progress
from dpr_jax.training import metrics


@pytest.fixture
def clock(monkeypatch):
  """Seconds that pass only when a test says so."""
  now = [100.0]
  monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
  return now


def _batch(lengths, width):
  mask = np.arange(width) < np.array(lengths)[:, None]
  return {"mask": mask}


def test_speed_and_waiting_of_each_step(clock):
  """8 questions and 24 passages in 4 s, 1 of them spent on waiting."""
  timer = metrics.Timer(8, 24)

  def loader():
    while True:
      clock[0] += 1
      yield {
        "questions": _batch([2, 4], 4),
        "passages": _batch([3, 1, 2], 6),
      }

  batches = loader()
  timer.wait_for(batches)
  clock[0] += 3
  assert timer.lap() == {
    "questions_per_second": 2.0,
    "passages_per_second": 6.0,
    "padding_share": pytest.approx(1 - 12 / 26),
    "data_wait_share": 0.25,
  }
  clock[0] += 2  # nothing was waited for in this step
  found = timer.lap()
  assert (found["questions_per_second"], found["data_wait_share"]) == (4.0, 0)
  assert timer.total() == 6.0


def test_a_pause_is_no_steps_time(clock):
  """An evaluation of 50 s between two steps."""
  timer = metrics.Timer(8, 24)
  clock[0] += 1
  with timer.paused():
    clock[0] += 50
  clock[0] += 1
  assert timer.lap()["questions_per_second"] == 4.0
  assert timer.total() == 52.0


def test_padding_of_packed_texts():
  """4 + 3 and 2 + 1 tokens in rows of 8, 2 in a row of 4."""
  tiles = ({"lengths": np.array([[4], [2]])}, {"lengths": np.array([[3], [1]])})
  batch = {
    "passages": {"token_ids": np.zeros((2, 8)), "tiles": tiles},
    "questions": {
      "token_ids": np.zeros((1, 4)),
      "tiles": ({"lengths": np.array([[2]])},),
    },
  }
  assert metrics.padding_share(batch) == pytest.approx(1 - 12 / 20)


def test_padding_of_the_readers_inputs():
  """7 tokens in 2 * 4 + 1 * 6 places."""
  groups = (
    {"lengths": np.array([4, 1]), "ids": np.zeros((2, 4))},
    {"lengths": np.array([2]), "ids": np.zeros((1, 6))},
  )
  assert metrics.padding_share({"inputs": groups}) == 0.5
  tiles = ({"lengths": np.array([[4], [3]])},)
  packed = {"token_ids": np.zeros((2, 7)), "tiles": tiles}
  assert metrics.padding_share({"inputs": {"texts": packed}}) == 0.5


@pytest.mark.parametrize(
  ("more", "kind"), [({}, "in-batch"), ({"rank_loss": 0.1}, "ranking")]
)
def test_progress_does_not_count_compiling(
  clock, monkeypatch, tmp_path, caplog, more, kind
):
  """Restoring and evaluating 50 s, then 42 s of which 30 s are compiling.

  The first step takes 12 s, the second 14 s: 13 s each, and 5 are left.
  """
  monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
  log = metrics.MetricsLog(tmp_path / "metrics.jsonl", "train")
  log.open(first_step=3, steps=10)
  clock[0] += 50
  log.start_clock(7.0)
  row = {"loss": 0.2174, "accuracy": 0.938, "compile_seconds": 37.0, **more}
  with caplog.at_level("INFO", logger="absl"):
    for seconds in (42, 14):
      clock[0] += seconds
      log.advance(row)
  log.close()
  figures = f"loss 0.217, {kind} accuracy 0.94"
  assert caplog.messages == [
    f"train: step 4/10, 12 s/step, 1:12 left, {figures}",
    f"train: step 5/10, 13 s/step, 1:05 left, {figures}",
  ]


def test_a_resumed_run_keeps_the_rows_up_to_its_checkpoint(tmp_path):
  """That of step 2 included; a last line that a crash cut off goes."""
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
  log = metrics.MetricsLog(path, "train")
  log.open(first_step=2, steps=5)
  log.close()
  assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_profile_runs_from_the_first_step_to_the_last(tmp_path, monkeypatch):
  calls = []
  for name in ("start_trace", "stop_trace"):
    monkeypatch.setattr(
      metrics.jax.profiler,
      name,
      lambda *_, name=name: calls.append((name, step)),
    )
  profiler = metrics.Profiler(tmp_path, (2, 4))
  for step in range(1, 7):
    profiler.before(step)
    profiler.after(step, np.zeros(1))
  profiler.close()
  assert calls == [("start_trace", 2), ("stop_trace", 4)]


def test_what_is_not_finite_is_named():
  metrics.check_finite(3, {"loss": 1.0, "gradient_norm": 2.0}, "step 2")
  for key in ("loss", "gradient_norm"):
    row = {"loss": 1.0, "gradient_norm": 2.0, key: float("inf")}
    with pytest.raises(FloatingPointError, match=f"step 3: {key} is inf"):
      metrics.check_finite(3, row, "step 2")
  metrics.check_parameters(3, {"a": np.ones(2)}, "step 2")
  with pytest.raises(FloatingPointError, match="parameters are not finite"):
    metrics.check_parameters(
      3, {"a": np.ones(2), "b": np.array([1, np.nan])}, "step 2"
    )
