"""The loop on a toy: what happens in which order, and what is told to whom."""

import itertools
import json
import os
import shutil
import signal

import jax
import numpy as np
import optax
import pytest

from dpr_jax.core import devices as devices_lib
from dpr_jax.core import errors, multiprocess, signals
from dpr_jax.models import checkpoints, model_files
from dpr_jax.training import (
  checkpoint_selection,
  metrics,
  optimizer_sharding,
  run_identity,
  train_step,
)
from dpr_jax.training import compilations as compilations_lib
from dpr_jax.training import job as job_lib
from dpr_jax.training import loop as loop_lib
from tests.training import power_cuts


class _Batches:
  """Step s of a round brings s + 1 as its value, to every device."""

  def __init__(self, scale=1.0):
    self._scale = scale

  def __len__(self):
    return 6

  def __getitem__(self, step):
    ones = np.ones(jax.device_count(), np.float32)
    text = {"ids": ones[:, None].astype(int), "lengths": ones.astype(int)}
    return {"value": self._scale * (step + 1) * ones, "inputs": (text,)}


class _OfTwoShapes(_Batches):
  """Step 3 has a wider text."""

  def __getitem__(self, step):
    batch = super().__getitem__(step)
    (text,) = batch["inputs"]
    ids = np.repeat(text["ids"], 2 if step == 3 else 1, axis=1)
    return {**batch, "inputs": ({**text, "ids": ids},)}

  def first_of_each_shape(self, steps):
    return sorted({steps[0], *({3} & {*steps})})


def _add(state, batch):
  """Adds a batch's value to the parameter."""
  value = jax.lax.pmean(batch["value"].mean(), devices_lib.AXIS)
  reported = {"loss": state.params["sum"][0], "gradient_norm": value}
  params = {"sum": state.params["sum"] + value}
  return train_step.TrainState(
    state.step + 1, params, state.optimizer
  ), reported


def _store_model(folder):
  folder.mkdir(exist_ok=True)
  (folder / model_files.FILE).write_text("{}")


def _job(folder, **changes):
  """Six steps, a checkpoint after every second one, a dev row after three."""
  transformation = optax.sgd(0.1)
  built = train_step.Built(
    _add,
    transformation,
    optax.constant_schedule(0.1),
    optimizer_sharding.Sharing(),
    scanned=False,
  )
  values = {
    "name": "toy",
    "folder": folder,
    "steps": 6,
    "rounds": (job_lib.Round(0, _Batches),),
    "questions": 1,
    "passages": 1,
    "built": built,
    "params": {"sum": np.zeros(1, np.float32)},
    "dev": lambda params: {"dev_sum": float(params["sum"][0])},
    "selection": checkpoint_selection.Selection("", 1),
    "store_model": _store_model,
    "every": job_lib.Every(log=1, dev=3, checkpoint=2),
    "keep": 3,
  }
  return job_lib.Job(**(values | changes))


def _run(job):
  claim = run_identity.Claim("toy", job.folder, {}, {})
  loop = loop_lib.Loop(job)
  loop.run(claim, overwrite=False)
  return loop


def _sum(job):
  step, params, *_ = checkpoints.load_params(job.folder / "checkpoints")
  return step, float(params["sum"][0])


def _rows(job, key):
  lines = (job.folder / "metrics.jsonl").read_text().splitlines()
  rows = map(json.loads, lines)
  return {row["step"]: row[key] for row in rows if key in row}


def test_a_job_from_its_first_step_to_its_last(tmp_path):
  """1 + 2 + ... + 6 = 21; the loss of a step is the sum before it."""
  job = _job(tmp_path)
  found = _run(job).outcome()
  assert _sum(job) == (6, 21)
  assert _rows(job, "loss") == {1: 0, 2: 1, 3: 3, 4: 6, 5: 10, 6: 15}
  assert _rows(job, "dev_sum") == {0: 0, 3: 6, 6: 21}
  assert found["cores"] == jax.device_count()
  assert found["selected"]["steps"] == [6]
  assert set(found["checkpoints"]) == {"2", "4", "6"}
  # Done: called again, it does no step, and evaluates nothing.
  _run(_job(tmp_path, dev=None, rounds=(job_lib.Round(0, lambda: None),)))
  assert _sum(job) == (6, 21)


def test_metrics_of_a_step_are_handled_behind_the_next_dispatch(
  tmp_path, monkeypatch
):
  """But at once where the step is followed by a checkpoint or a dev row."""
  order = []
  job = _job(tmp_path, every=job_lib.Every(log=1, dev=0, checkpoint=4))
  loop = loop_lib.Loop(job)
  step, numbers = loop.step, itertools.count(1)
  save, log = loop_lib.Loop._save, metrics.MetricsLog.write
  monkeypatch.setattr(
    loop_lib.Loop,
    "_save",
    lambda run, number: (order.append(f"save {number}"), save(run, number)),
  )
  monkeypatch.setattr(
    metrics.MetricsLog,
    "write",
    lambda file, row: (order.append(f"row {row['step']}"), log(file, row)),
  )

  def dispatched(*arguments):
    order.append(f"step {next(numbers)}")
    return step(*arguments)

  loop.step = dispatched
  loop.run(run_identity.Claim("toy", tmp_path, {}, {}), overwrite=False)
  assert order == [
    "row 0",  # the dev row of the start
    "step 1",
    *("step 2", "row 1", "step 3", "row 2", "step 4", "row 3", "row 4"),
    "save 4",
    *("step 5", "step 6", "row 5", "row 6", "row 6", "save 6"),
  ]


def _rounds(seen, restarts=False):
  """A second round from step 3 on, whose values count twice."""
  return (
    job_lib.Round(0, _Batches),
    job_lib.Round(
      3,
      lambda: seen.append("source") or _Batches(2.0),
      lambda params: seen.append(float(params["sum"][0])),
      restarts,
    ),
  )


def test_what_comes_before_a_round(tmp_path, monkeypatch):
  """1 + 2 + 3, then 8 + 10 + 12; once, with the sum of the step before."""
  seen = []
  job = _job(tmp_path, rounds=_rounds(seen))
  _run(job)
  assert seen == [6, "source"]
  assert _sum(job) == (6, 36)

  # Killed before the round: its parameters are on disk.
  seen.clear()
  job = _job(tmp_path / "killed", rounds=_rounds(seen), keep=9)

  def dies(params):
    raise RuntimeError("power cut")

  cut = (job.rounds[0], job_lib.Round(3, job.rounds[1].source, dies))
  with pytest.raises(RuntimeError, match="power cut"):
    _run(_job(job.folder, rounds=cut, keep=9))
  assert _sum(job) == (3, 6)
  _run(job)
  assert seen == [6, "source"]
  assert _sum(job) == (6, 36)

  # Resumed within the round: it is not begun again.
  seen.clear()
  job = _job(tmp_path / "within", rounds=_rounds(seen), keep=9)
  with monkeypatch.context() as patch:
    power_cuts.dies_after(5, patch)
    with pytest.raises(RuntimeError, match="power cut"):
      _run(job)
  _run(job)
  assert seen == [6, "source", "source"]
  assert _sum(job) == (6, 36)


def test_a_round_that_restarts(tmp_path, monkeypatch):
  """Mined with 1 + 2 + 3; then from 0: 8 + 10 + 12, and steps go on.

  Killed before the round, or within it, the end is the same.
  """
  seen = []
  job = _job(tmp_path, rounds=_rounds(seen, restarts=True))
  _run(job)
  assert seen == [6, "source"]
  assert _sum(job) == (6, 30)
  assert _rows(job, "loss") == {1: 0, 2: 1, 3: 3, 4: 0, 5: 8, 6: 18}
  for step, twice in ((3, [6, "source"]), (5, [6, "source", "source"])):
    seen.clear()
    job = _job(tmp_path / str(step), rounds=_rounds(seen, restarts=True))
    with monkeypatch.context() as patch:
      power_cuts.dies_after(step, patch)
      with pytest.raises(RuntimeError, match="power cut"):
        _run(job)
    _run(job)
    assert seen == twice
    assert _sum(job) == (6, 30)


def test_a_loss_that_is_not_finite_ends_it(tmp_path):
  """At the step whose metrics show it; nothing of it is saved."""

  class Bad(_Batches):
    def __getitem__(self, step):
      batch = super().__getitem__(step)
      return batch | {"value": batch["value"] * (np.nan if step == 2 else 1)}

  job = _job(tmp_path, rounds=(job_lib.Round(0, Bad),), dev=None)
  with pytest.raises(
    FloatingPointError, match=r"step 3: gradient.*nan.*step 2"
  ):
    _run(job)
  assert _sum(job) == (2, 3)
  assert _rows(job, "loss") == {1: 0, 2: 1}


def test_another_shape_in_mid_run_is_named(tmp_path, caplog):
  """Step 4 of six is of another width, and that alone is said."""

  class Wider(_Batches):
    def __getitem__(self, step):
      batch = super().__getitem__(step)
      if step == 3:
        batch["value"] = np.repeat(batch["value"], 2)
      return batch

  job = _job(tmp_path, rounds=(job_lib.Round(0, Wider),), dev=None)
  with caplog.at_level("INFO"):
    _run(job)
  said = [record.getMessage() for record in caplog.records]
  new = [line for line in said if "had a new batch shape" in line]
  assert len(new) == 1
  # Compiled in the first run of the tests, in later ones loaded.
  assert new[0].startswith("toy: step 4 had a new batch shape and was ")
  assert "toy: 6 steps of 1 questions" in said
  compiling = [line for line in said if "compiling the step" in line]
  assert len(compiling) == 1
  assert compiling[0].startswith("toy: compiling the step for 8 devices (")


def test_a_signal_ends_it_behind_a_whole_step(tmp_path):
  """It comes while step 5 is evaluated: 5 is saved, its dev row is not."""
  before = {number: signal.getsignal(number) for number in signals.SIGNALS}

  def dev(params):
    if params["sum"][0] == 15:
      os.kill(os.getpid(), signal.SIGTERM)
    return {"dev_sum": float(params["sum"][0])}

  job = _job(tmp_path, dev=dev, every=job_lib.Every(log=1, dev=5, checkpoint=0))
  try:
    signals.listen()
    with pytest.raises(signals.Interrupted, match="SIGTERM"):
      _run(job)
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
  assert _sum(job) == (5, 15)
  assert _rows(job, "dev_sum") == {0: 0}
  _run(_job(tmp_path, every=job.every))
  assert _rows(job, "dev_sum") == {0: 0, 5: 15, 6: 21}


def test_others_go_on_from_where_the_first_does(tmp_path, monkeypatch):
  """They look for nothing themselves: a shared disk may show them less."""
  done, job = _job(tmp_path / "first"), _job(tmp_path / "other")
  _run(done)
  told = {"step": 4, "best": [2, 1.5], "lacks_dev_row": False}
  monkeypatch.setattr(multiprocess, "is_first", lambda: False)
  monkeypatch.setattr(multiprocess, "first_alone", lambda function: told)
  loop = loop_lib.Loop(job)
  with pytest.raises(errors.InputError, match="process 0 resumes from it"):
    loop.restore()
  shutil.copytree(done.folder / "checkpoints", job.folder / "checkpoints")
  loop.restore()  # the newest is 6, and there is no metrics.jsonl
  assert (loop.first, loop.last_good, loop.choice.best_step) == (4, "step 4", 2)
  assert (int(loop.state.step), float(loop.state.params["sum"][0])) == (4, 10)
  assert job.selection.best_step == 0  # of the loop, not of the job
  loop.close()


def test_all_shapes_compile_before_the_first_step(tmp_path, caplog):
  """A step in the middle then finds its program."""
  job = _job(tmp_path, dev=None, rounds=(job_lib.Round(0, _OfTwoShapes),))
  with caplog.at_level("INFO", logger="absl"):
    _run(job)
  assert "compiling the step for 8 devices and 2 batch shapes" in caplog.text
  assert "had a new batch shape" not in caplog.text
  assert _sum(job) == (6, 21)


def test_all_have_compiled_before_one_begins_a_step(monkeypatch):
  """Compile, meet, step; the step finds the program, and compiles no other."""
  order = []
  compilations = compilations_lib.Compilations()
  monkeypatch.setattr(
    multiprocess,
    "barrier",
    lambda: order.append(("met", compilations.programs)),
  )
  state = train_step.TrainState(
    *(devices_lib.replicate(np.full(3, value)) for value in (0.0, 1.0, 2.0))
  )
  run = object.__new__(loop_lib.Loop)
  run.state, run.compiled_for = state, set()
  run.step = devices_lib.map_train_step(
    lambda state, batch: (state, jax.lax.psum(batch.sum(), devices_lib.AXIS)),
    state_axes=train_step.TrainState(None, None, None),
  )
  before = compilations.programs
  for width in (2, 2, 3):  # the third batch has another shape
    shares = np.ones((jax.device_count(), width), np.float32)
    run._compile_for(shares)
    run.state, total = run.step(run.state, shares)
    order.append(("stepped", compilations.programs))
    assert float(total) == jax.device_count() * width
  compilations.close()
  kinds = [kind for kind, _ in order]
  assert kinds == ["met", "stepped", "stepped", "met", "stepped"]
  counts = [count - before for _, count in order]
  assert counts == [1, 1, 1, 2, 2]
