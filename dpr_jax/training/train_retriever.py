"""Training of the retriever, top to bottom.

In come `data/train`, the mined negatives and a pretrained checkpoint; out come
`training/checkpoints/<step>` and `training/metrics.jsonl`.  The step is one
function for one core, mapped over all cores; while the cores work on step N the
host reads the metrics of step N-1 and Grain prepares the batches to come.
"""

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging
from jaxtyping import Array

from dpr_jax import configuration, errors, interrupts, parallel, processes
from dpr_jax import workdir as workdir_lib
from dpr_jax.data import batches
from dpr_jax.models import checkpoints, stored_towers, towers
from dpr_jax.training import (
  metrics,
  rounds,
  selection,
  sources,
  train_step,
  validation,
)

STAGE = "train"


def train(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  *,
  overwrite: bool = False,
) -> None:
  """Stage `train`: trains the towers, or goes on from the last checkpoint.

  Raises:
    InputError: a bad setting, or the workdir holds another run.
    FloatingPointError: the loss, a gradient or a parameter is not finite.
    Interrupted: SIGTERM or SIGINT; the state is saved.
  """
  stage = _stage(config, workdir)
  if processes.first_alone(lambda: stage.is_current(overwrite)):
    return
  choice = selection.Selection.of(config)
  processes.first_alone(lambda: claim(stage, overwrite))
  with processes.in_turn():
    run = Run(config, workdir, choice)
  run.resume()
  try:
    with interrupts.deferred() as asked:
      run.go(asked)
  finally:
    run.close()
  if processes.is_first():
    stage.finish(
      {
        "steps": run.steps,
        "questions": run.plan.questions,
        "questions_seen": run.steps * run.plan.batch_size,
      },
      cores=jax.device_count(),
      seconds=round(run.timer.total(), 1),
      selected=run.saved.selected(),
    )


@dataclasses.dataclass(frozen=True)
class Every:
  """How often something is due, in steps; 0 = at the end alone."""

  log: int
  dev: int
  checkpoint: int


class Run:
  """One call of the stage: from the last checkpoint to the last step.

  Of several processes each reads its share of every batch; the first alone
  writes, evaluates and mines, and what it finds is told to the others.
  """

  def __init__(self, config, workdir, choice: selection.Selection):
    self.config, self.workdir, self.choice = config, workdir, choice
    train_config = config.train
    self.every = Every(
      train_config.log_every,
      train_config.dev_every,
      train_config.checkpoint_every,
    )
    self.model = towers.start(config)
    self.source = sources.make_source(config, workdir, self.model)
    self.plan, self.steps = self.source.plan, self.source.steps
    self.starts = rounds.boundaries(self.steps, config.train.rounds)
    self.built = train_step.build(config, self.model, self.steps)
    self.profiler = metrics.Profiler(
      workdir.training / "profile", config.train.profile_steps, self.steps
    )
    self.step = self.built.mapped()
    self.dev = (
      validation.DevPool.make(config, workdir, self.model)
      if _has_dev(config)
      else None
    )
    choice.check(self.dev is not None)
    self.folder, self.keep = workdir.training, train_config.keep_checkpoints
    self.pretrained = self.model.params
    self.passages_per_question = self.source.sampler.per_question

  def resume(self) -> None:
    """Goes on from the last checkpoint that is whole, or begins.

    The first process finds it, tidies up and tells the others which it is: a
    disk that is shared over a network may show them less, or show it later.

    Raises:
      InputError: this process does not see what the first goes on from.
    """
    fresh = self.built.init(self.pretrained)
    if processes.is_first():
      self._open(writes=True)
      restored = self.saved.restore_latest(*fresh)
      self.log.open(restored[0], self.steps)
      rows = self.log.read()
      self.choice.recall(rows, self.saved.steps())
    told = processes.first_alone(
      lambda: {
        "step": restored[0],
        "best": [self.choice.best_step, self.choice.best_value],
        "lacks_dev_row": not any(
          row["step"] == restored[0] and any(k.startswith("dev_") for k in row)
          for row in rows
        ),
      }
    )
    if not processes.is_first():
      self._open(writes=False)
      try:
        restored = self.saved.restore(told["step"], *fresh)
      except errors.InputError as error:
        raise errors.InputError(
          f"{error}; process 0 goes on from it: all processes must see one"
          " workdir, as it is now (docs/tpu.md, Buckets)"
        ) from error
      self.choice.best_step, self.choice.best_value = told["best"]
    processes.barrier()  # nothing is removed while others restore
    self.lacks_dev_row = told["lacks_dev_row"]
    self.first, params, opt_state = restored
    self.state = self.built.place(self.first, params, opt_state)
    self.last_saved = self.first
    self.last_good = f"step {self.first}" if self.first else "none"
    self.watch = processes.watch(self.config.train.step_timeout)
    size = self.plan.batch_size
    self.timer = metrics.Timer(size, size * self.passages_per_question)
    self.compilations = metrics.Compilations()
    self.pending: tuple[int, dict[str, Array]] | None = None
    self.compiled = 0
    self.stop: int | None = None  # the signal that asked for an end

  def _open(self, writes: bool) -> None:
    self.saved = checkpoints.Checkpoints(
      self.folder / "checkpoints", self.keep, writes=writes
    )
    self.log = metrics.MetricsLog(self.folder / "metrics.jsonl")

  def go(self, asked: interrupts.Request) -> None:
    """Trains to the last step, or until a signal asks for an end."""
    if self.first:
      logging.info("train: goes on after step %d of %d", self.first, self.steps)
    else:
      logging.info(
        "train: %d steps of %d questions", self.steps, self.plan.batch_size
      )
    # At step 0, and where a run was broken off while it evaluated.
    lacks = self.lacks_dev_row and self._evaluates(self.first)
    if lacks and self._evaluate(self.first):
      self._save(self.first)
    done = self.first
    while done < self.steps:
      number = rounds.round_of(done, self.starts)
      self._begin_round(number, done)
      loader = batches.in_background(self.source, done)
      end = [*self.starts, self.steps][number + 1]
      for step in range(done + 1, end + 1):
        self._take(step, loader, asked)
        if self.stop is not None:
          self._settle()
          self._save_now(step)
          raise interrupts.Interrupted(self.stop)
      done = end

  def _begin_round(self, number: int, done: int) -> None:
    """The batches of a round; where it begins the model mines for it."""
    if number == 0:
      return
    if done == self.starts[number]:
      self._settle()
      if done > self.first:
        self._save(done)
        self.saved.wait()
      with self._apart():
        params = parallel.local(self.state.params)
        processes.first_alone(
          lambda: rounds.refresh(
            self.config, self.workdir, self.model, params, number
          )
        )
      self.compiled = self.compilations.count
    self.source = sources.make_source(
      self.config, self.workdir, self.model, number
    )

  @contextlib.contextmanager
  def _apart(self) -> Iterator[None]:
    """Long work between steps, whose time is no step's.

    A signal breaks it off; of several processes all must end after the same
    step, and so they finish it.
    """
    breakable = (
      interrupts.at_once()
      if processes.count() == 1
      else contextlib.nullcontext()
    )
    with self.timer.paused(), self.watch.paused(), breakable:
      yield

  def _take(self, step: int, loader, asked: interrupts.Request) -> None:
    """One step, and what is due after it."""
    batch = self.timer.wait_for(loader)
    if processes.count() > 1:
      batch["asked"] = np.full(parallel.cores(), asked.number or 0, np.int32)
    self.watch.begin(step)
    self.profiler.before(step)
    self.state, reported = self.step(
      self.state, parallel.split_over_cores(batch)
    )
    self.profiler.after(step, reported)
    self.saved.record_finished()
    self._settle()  # the step before: the cores are busy with this one
    self.pending = (step, reported)
    saves = _is_due(step, self.every.checkpoint, self.steps)
    evaluates = self._evaluates(step)
    if saves or evaluates:
      self._settle()
    # First the row, then the checkpoint: who resumes finds every row before.
    if evaluates:
      saves |= self._evaluate(step)
    if saves:
      self._save(step)
    if processes.count() == 1:
      self.stop = asked.number

  def _settle(self) -> None:
    """Fetches the pending step's metrics (waits for it) and writes them."""
    if self.pending is None:
      return
    (step, reported), self.pending = self.pending, None
    row = {key: float(value) for key, value in reported.items()}
    self.watch.end(step)
    if processes.count() > 1:
      self.stop = int(row.pop("asked")) or None
    row |= self.timer.lap() | self.compilations.figures()
    metrics.check_finite(step, row, self.last_good)
    if step > self.first + 2 and self.compilations.count > self.compiled:
      logging.warning("train: step %d was compiled anew", step)
    self.compiled = self.compilations.count
    if step % max(self.every.log, 1) == 0 or step == 1:
      self.log.write({"step": step, **row})
    self.log.advance(row)

  def _evaluates(self, step: int) -> bool:
    """True where a step gets a dev row: before the first one, when due."""
    return self.dev is not None and (
      step == 0 or _is_due(step, self.every.dev, self.steps)
    )

  def _evaluate(self, step: int) -> bool:
    """Writes a dev row; True where it is the best so far, by the metric."""
    try:
      with self._apart():
        params = parallel.local(self.state.params)
        figures = processes.first_alone(lambda: self.dev.evaluate(params))
        row = {"step": step, **figures}
    except interrupts.Interrupted:
      if step > self.first:
        self._save_now(step)
      raise
    self.log.write(row)
    self.compiled = self.compilations.count
    return step > 0 and self.choice.is_best(row)

  def _save_now(self, step: int) -> None:
    """Saves before the run ends early."""
    self._save(step)
    with self.watch.paused():
      self.saved.wait()
      processes.barrier()  # none may end while the first still writes
    logging.info("train: saved after step %d of %d", step, self.steps)

  def _save(self, step: int) -> None:
    """Starts saving, unless the state is not finite."""
    if step != self.last_saved:
      with self.timer.paused(), self.watch.paused():
        if processes.is_first() or self.built.sharing.cores:
          params, opt_state = self.built.fetch(self.state)
        if processes.is_first():
          metrics.check_parameters(step, params, self.last_good)
          self._store_model()
          self.saved.save(step, params, opt_state)
        processes.barrier()  # a slow disk is no stuck process
      self.last_saved = step
    steps, why = self.choice.steps([*self.saved.steps(), step])
    self.saved.select(steps, **why)
    self.last_good = f"step {step}"

  def _store_model(self) -> None:
    """Beside the checkpoints, what is needed to use them."""
    stored_towers.store(self.model, self.config, self.folder / "model")

  def close(self) -> None:
    """Whatever happened: what was begun is on disk."""
    self.watch.close()
    self.profiler.close()
    self.compilations.close()
    self.saved.finish()
    self.log.close()


def _is_due(step: int, every: int, last: int) -> bool:
  """At every so many steps (0 = never), and at the last one."""
  return step == last or (every > 0 and step % every == 0)


def _stage(config, workdir: workdir_lib.Workdir) -> workdir_lib.Stage:
  inputs = workdir_lib.dataset_inputs(workdir, "passages", "train", "dev")
  inputs |= sources.inputs(config, workdir)
  settings = configuration.sections(config, "model", "train")
  if config.train.dev_topk_passages:
    settings |= configuration.sections(config, "evaluate")
  return workdir_lib.Stage(
    STAGE, workdir.training, settings | {"seed": config.seed}, inputs
  )


def claim(stage: workdir_lib.Stage, overwrite: bool) -> None:
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


def _has_dev(config: ml_collections.ConfigDict) -> bool:
  return config.train.dev_questions > 0
