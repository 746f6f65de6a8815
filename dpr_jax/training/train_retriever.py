"""Training of the retriever, top to bottom.

In come `data/train`, the mined negatives and a pretrained checkpoint; out come
`training/checkpoints/<step>` and `training/metrics.jsonl`.  The step is one
function for one core, mapped over all cores; while the cores work on step N the
host reads the metrics of step N-1 and Grain prepares the batches to come.
"""

import shutil
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging
from jaxtyping import Array

from dpr_jax import configuration, errors, parallel
from dpr_jax import workdir as workdir_lib
from dpr_jax.data import batches
from dpr_jax.models import checkpoints, towers
from dpr_jax.training import metrics, sources, train_step, validation

STAGE = "train"


def train(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  *,
  overwrite: bool = False,
) -> None:
  """Stage `train`: trains the towers, or goes on from the last checkpoint."""
  stage = _stage(config, workdir)
  if stage.is_current(overwrite):
    return
  _claim(stage, overwrite)
  model = towers.start(config)
  source = sources.make_source(config, workdir, model)
  steps, train_config = source.steps, config.train
  built = train_step.build(config, model, steps)
  mapped = parallel.map_train_step(built.step)
  saved = checkpoints.Checkpoints(
    workdir.training / "checkpoints", train_config.keep_checkpoints
  )
  first, params, opt_state = saved.restore_latest(
    model.params, built.transformation.init(model.params)
  )
  state = parallel.replicate(
    train_step.TrainState(
      step=np.int32(first), params=params, optimizer=opt_state
    )
  )
  dev = (
    validation.DevPool.make(config, workdir, model)
    if _has_dev(config)
    else None
  )
  log = metrics.MetricsLog(workdir.training / "metrics.jsonl", first, steps)
  loader = batches.in_background(source, first)
  if first:
    logging.info("train: goes on after step %d of %d", first, steps)
  else:
    logging.info(
      "train: %d steps of %d questions", steps, source.plan.batch_size
    )
  if dev is not None and first == 0:
    log.write({"step": 0, **dev.evaluate(state.params)})

  pending, last_good = None, f"step {first}" if first else "none"
  timer = metrics.Timer(source.plan.batch_size)
  try:
    for step in range(first + 1, steps + 1):
      batch = timer.wait_for(loader)
      state, reported = mapped(state, parallel.split_over_cores(batch))
      if pending is not None:
        _log_step(log, *pending, train_config.log_every, last_good)
      pending = (step, reported, timer)
      saves = _is_due(step, train_config.checkpoint_every, steps)
      evaluates = dev is not None and _is_due(
        step, train_config.dev_every, steps
      )
      if saves or evaluates:
        _log_step(log, *pending, train_config.log_every, last_good)
        pending = None
      if saves:
        saved.save(step, state.params, state.optimizer)
        last_good = f"step {step}"
      if evaluates:
        with timer.paused():
          log.write({"step": step, **dev.evaluate(state.params)})
  finally:
    saved.finish()
    log.close()
  stage.finish(
    {
      "steps": steps,
      "questions": source.plan.questions,
      "questions_seen": steps * source.plan.batch_size,
    },
    cores=jax.device_count(),
    seconds=round(timer.total(), 1),
  )


def _is_due(step: int, every: int, last: int) -> bool:
  """At every so many steps (0 = never), and at the last one."""
  return step == last or (every > 0 and step % every == 0)


def _stage(config, workdir: workdir_lib.Workdir) -> workdir_lib.Stage:
  inputs = workdir_lib.dataset_inputs(workdir, "passages", "train", "dev")
  if config.train.negatives == "bm25" or _has_dev(config):
    inputs["negatives"] = workdir_lib.manifest_fingerprint(
      workdir.negatives, "mine"
    )
  return workdir_lib.Stage(
    STAGE,
    workdir.training,
    configuration.sections(config, "model", "train") | {"seed": config.seed},
    inputs,
  )


def _claim(stage: workdir_lib.Stage, overwrite: bool) -> None:
  """Starts the folder anew, or makes sure that it is this very run's.

  Raises:
    InputError: it holds a run with other settings or other data.
  """
  claim = stage.folder / "started.json"
  identity = {"config": stage.config, "inputs": dict(stage.inputs)}
  if overwrite:
    shutil.rmtree(stage.folder, ignore_errors=True)
  elif claim.exists():
    old = workdir_lib.read_json(claim)
    if old != identity:
      changed = _differences(old, identity)
      raise errors.InputError(
        f"{stage.folder} holds a training with other settings"
        f" ({', '.join(changed)}): give another --workdir, or --overwrite to"
        " train anew"
      )
  workdir_lib.write_json(claim, identity)


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
  if isinstance(old, dict) and isinstance(new, dict):
    return [
      difference
      for key in sorted({*old, *new})
      for difference in _differences(
        old.get(key), new.get(key), f"{path}.{key}" if path else key
      )
    ]
  return [] if old == new else [f"{path} was {old!r}, is {new!r}"[:160]]


def _log_step(
  log: metrics.MetricsLog,
  step: int,
  reported: dict[str, Array],
  timer: metrics.Timer,
  every: int,
  last_good: str,
) -> None:
  """Fetches one step's metrics (waits for it), checks and writes them."""
  row = {key: float(value) for key, value in reported.items()}
  row |= timer.lap()
  metrics.check_finite(step, row, last_good)
  if step % max(every, 1) == 0 or step == 1:
    log.write({"step": step, **row})
  log.advance(row)


def _has_dev(config: ml_collections.ConfigDict) -> bool:
  return config.train.dev_questions > 0
