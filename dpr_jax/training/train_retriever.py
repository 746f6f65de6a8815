"""Training of the retriever, top to bottom.

In come `data/train`, the mined negatives and a pretrained checkpoint; out come
`training/checkpoints/<step>` and `training/metrics.jsonl`.  The step is one
function for one core, mapped over all cores; while the cores work on step N the
host reads the metrics of step N-1 and Grain prepares the batches to come.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging
from jaxtyping import Array

from dpr_jax.core import devices as devices_lib
from dpr_jax.core import errors, multiprocess, signals
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import batches, prepare
from dpr_jax.models import checkpoints, retriever_model, stored_towers
from dpr_jax.retrieval import negative_refresh
from dpr_jax.training import (
  checkpoint_selection,
  metrics,
  retriever_batches,
  retriever_inputs,
  run_identity,
  train_step,
  validation,
)


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
  choice = checkpoint_selection.Selection.of(config)
  claim = retriever_inputs.claim(config, workdir)
  if multiprocess.first_alone(lambda: claim.is_current(overwrite)):
    return
  if not overwrite:
    multiprocess.first_alone(claim.check)
  with multiprocess.in_turn():
    run = Run(config, workdir, choice)
  run.do(claim, overwrite)
  if multiprocess.is_first():
    claim.finish(
      {
        "steps": run.steps,
        "questions": run.plan.questions,
        "questions_seen": run.steps * run.plan.batch_size,
      },
      cores=jax.device_count(),
      seconds=round(run.timer.total(), 1),
      **run.saved.remembered(),
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

  def __init__(self, config, workdir, choice: checkpoint_selection.Selection):
    self.config, self.workdir, self.choice = config, workdir, choice
    train_config = config.train
    self.every = Every(
      train_config.log_every,
      train_config.dev_every,
      train_config.checkpoint_every,
    )
    # All that may be refused comes before the corpus is tokenized.
    retriever_batches.check(config)
    questions = len(prepare.open_questions(workdir, "train"))
    self.steps = negative_refresh.run_steps(config, questions)
    self.starts = negative_refresh.boundaries(self.steps, config.train.rounds)
    self.profiler = metrics.Profiler(
      workdir.training / "profile", config.train.profile_steps, self.steps
    )
    self.model = retriever_model.start(config)
    self.built = train_step.build(config, self.model, self.steps)
    self.step = self.built.mapped()
    self.dev = (
      validation.DevPool.make(config, workdir, self.model)
      if _has_dev(config)
      else None
    )
    choice.check(self.dev is not None)
    self.source = retriever_batches.make_source(config, workdir, self.model)
    self.plan = self.source.plan
    self.claim: run_identity.Claim | None = None
    self.folder, self.keep = workdir.training, train_config.keep_checkpoints
    self.pretrained = self.model.params
    self.passages_per_question = self.source.sampler.per_question

  def do(self, claim: run_identity.Claim, overwrite: bool) -> None:
    """The whole call; the caller writes the manifest.

    Args:
      claim: on the run's folder.
      overwrite: what is there is removed.
    """
    multiprocess.first_alone(lambda: claim.open(overwrite))
    self.claim = claim
    self.resume()
    if multiprocess.is_first():  # until it is finished, it is not
      with workdir_lib.writing(claim.manifest):
        claim.manifest.unlink(missing_ok=True)
    try:
      with signals.deferred() as asked:
        self.go(asked)
      self.saved.wait()
    finally:
      self.close()

  def resume(self) -> None:
    """Goes on from the last checkpoint that is whole, or begins.

    The first process finds it, tidies up and tells the others which it is: a
    disk that is shared over a network may show them less, or show it later.

    Raises:
      InputError: this process does not see what the first goes on from.
    """
    fresh = self.built.init(self.pretrained)
    if multiprocess.is_first():
      self._open(writes=True)
      restored = self.saved.restore_latest(*fresh)
      self.log.open(restored[0], self.steps)
      rows = self.log.read()
      self.choice.recall(rows, self.saved.steps())
    told = multiprocess.first_alone(
      lambda: {
        "step": restored[0],
        "best": [self.choice.best_step, self.choice.best_value],
        "lacks_dev_row": not any(
          row["step"] == restored[0] and any(k.startswith("dev_") for k in row)
          for row in rows
        ),
      }
    )
    if not multiprocess.is_first():
      self._open(writes=False)
      try:
        restored = self.saved.restore(told["step"], *fresh)
      except errors.InputError as error:
        raise errors.InputError(
          f"{error}; process 0 goes on from it: all processes must see one"
          " workdir, as it is now (docs/tpu.md, Buckets)"
        ) from error
      self.choice.best_step, self.choice.best_value = told["best"]
    multiprocess.barrier()  # nothing is removed while others restore
    self.lacks_dev_row = told["lacks_dev_row"]
    self.first, params, opt_state = restored
    self.state = self.built.place(self.first, params, opt_state)
    self.last_saved = self.first
    if self.first and multiprocess.is_first():
      self._select(self.saved.steps())  # what was selected may be gone
    self.last_good = f"step {self.first}" if self.first else "none"
    self.watch = multiprocess.watch(self.config.train.step_timeout)
    size = self.plan.batch_size
    self.timer = metrics.Timer(size, size * self.passages_per_question)
    self.compilations = metrics.Compilations()
    self.pending: tuple[int, dict[str, Array]] | None = None
    self.compiled = 0
    self.compiled_for: set[str] = set()
    self.stop: int | None = None  # the signal that asked for an end

  def _open(self, writes: bool) -> None:
    self.saved = checkpoints.Checkpoints(
      self.folder / "checkpoints", self.keep, writes=writes
    )
    self.log = metrics.MetricsLog(self.folder / "metrics.jsonl")

  def go(self, asked: signals.Request) -> None:
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
      number = negative_refresh.round_of(done, self.starts)
      self._begin_round(number, done)
      loader = batches.in_background(self.source, done)
      end = [*self.starts, self.steps][number + 1]
      for step in range(done + 1, end + 1):
        self._take(step, loader, asked)
        if self.stop is not None:
          self._settle()
          self._save_now(step)
          raise signals.Interrupted(self.stop)
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
        params = devices_lib.local(self.state.params)
        multiprocess.first_alone(
          lambda: negative_refresh.refresh(
            self.config, self.workdir, self.model, params, number
          )
        )
      self.compiled = self.compilations.count
    self.source = retriever_batches.make_source(
      self.config, self.workdir, self.model, number
    )

  @contextlib.contextmanager
  def _apart(self) -> Iterator[None]:
    """Long work between steps, whose time is no step's.

    A signal breaks it off; of several processes all must end after the same
    step, and so they finish it.
    """
    breakable = (
      signals.at_once()
      if multiprocess.count() == 1
      else contextlib.nullcontext()
    )
    with self.timer.paused(), self.watch.paused(), breakable:
      yield

  def _take(self, step: int, loader, asked: signals.Request) -> None:
    """One step, and what is due after it."""
    batch = self.timer.wait_for(loader)
    if multiprocess.count() > 1:
      batch["asked"] = np.full(devices_lib.cores(), asked.number or 0, np.int32)
    self.watch.begin(step)
    self.profiler.before(step)
    shares = devices_lib.split_over_cores(batch)
    if multiprocess.count() > 1:
      self._compile_together(shares)
    self.state, reported = self.step(self.state, shares)
    self.profiler.after(step, reported)
    self.saved.look()
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
    if multiprocess.count() == 1:
      self.stop = asked.number

  def _compile_together(self, shares: Any) -> None:
    """Returns when all processes have the program for batches of this shape.

    One may compile for a minute what another has in its cache, and who is in a
    collective first waits for the others for half a minute at most.
    """
    shapes = str(jax.tree.map(lambda x: (x.shape, str(x.dtype)), shares))
    if shapes not in self.compiled_for:
      # The call that follows finds this very program.
      self.step.lower(self.state, shares).compile()
      multiprocess.barrier()
      self.compiled_for.add(shapes)

  def _settle(self) -> None:
    """Fetches the pending step's metrics (waits for it) and writes them."""
    if self.pending is None:
      return
    (step, reported), self.pending = self.pending, None
    row = {key: float(value) for key, value in reported.items()}
    self.watch.end(step)
    if multiprocess.count() > 1:
      self.stop = int(row.pop("asked")) or None
    row |= self.timer.lap() | self.compilations.figures()
    metrics.check_finite(step, row, self.last_good)
    if step > self.first + 2 and self.compilations.count > self.compiled:
      logging.warning("train: step %d was compiled anew", step)
    self.compiled = self.compilations.count
    self._begin()
    if step % max(self.every.log, 1) == 0 or step == 1:
      self.log.write({"step": step, **row})
    self.log.advance(row)

  def _begin(self) -> None:
    """The run's first step is done: its folder is no other run's any more."""
    if self.claim is not None and multiprocess.is_first():
      self.claim.begin()
    self.claim = None

  def _evaluates(self, step: int) -> bool:
    """True where a step gets a dev row: before the first one, when due."""
    return self.dev is not None and (
      step == 0 or _is_due(step, self.every.dev, self.steps)
    )

  def _evaluate(self, step: int) -> bool:
    """Writes a dev row; True where it is the best so far, by the metric."""
    try:
      with self._apart():
        params = devices_lib.local(self.state.params)
        figures = multiprocess.first_alone(lambda: self.dev.evaluate(params))
        row = {"step": step, **figures}
    except signals.Interrupted:
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
      multiprocess.barrier()  # none may end while the first still writes
    logging.info("train: saved after step %d of %d", step, self.steps)

  def _save(self, step: int) -> None:
    """Starts saving, unless the state is not finite."""
    if step != self.last_saved:
      with self.timer.paused(), self.watch.paused():
        if multiprocess.is_first() or self.built.sharing.cores:
          params, opt_state = self.built.fetch(self.state)
        if multiprocess.is_first():
          metrics.check_parameters(step, params, self.last_good)
          self._store_model()
          self.saved.save(step, params, opt_state)
        multiprocess.barrier()  # a slow disk is no stuck process
      self.last_saved = step
    self._select([*self.saved.steps(), step])
    self.last_good = f"step {step}"

  def _select(self, saved: list[int]) -> None:
    """Says which of the checkpoints later stages use."""
    steps, why = self.choice.steps(saved)
    self.saved.select(steps, **why)

  def _store_model(self) -> None:
    """Beside the checkpoints, what is needed to use them."""
    stored_towers.store(self.model, self.config, self.folder / "model")

  def close(self) -> None:
    """Whatever happened: what was begun is on disk."""
    self.watch.close()
    self.profiler.close()
    self.compilations.close()
    self.saved.close()
    self.log.close()


def _is_due(step: int, every: int, last: int) -> bool:
  """At every so many steps (0 = never), and at the last one."""
  return step == last or (every > 0 and step % every == 0)


def _has_dev(config: ml_collections.ConfigDict) -> bool:
  return config.train.dev_questions > 0
