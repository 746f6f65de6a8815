"""The training loop, whatever it trains: a `job.Job` says what it needs.

Read it top to bottom: `Loop.run` restores the newest whole checkpoint, `_train`
takes every step that is left.  While the devices compute step N the host
handles the metrics of step N-1, and Grain prepares the batches to come.

Of several processes all run the same loop, each on its share of every batch;
the first alone writes, evaluates and calls what comes before a round, and the
others are told what it finds.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from jaxtyping import Array

from dpr_jax.core import devices as devices_lib
from dpr_jax.core import errors, multiprocess, signals
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import batches
from dpr_jax.models import checkpoints
from dpr_jax.training import job as job_lib
from dpr_jax.training import metrics, run_identity


class Loop:
  """One call of a training: from the last checkpoint to the last step."""

  def __init__(self, job: job_lib.Job):
    """Reads and writes nothing yet."""
    self.job = job
    self.step = job.built.mapped()
    self.choice = dataclasses.replace(job.selection)
    self.profiler = metrics.Profiler(job.folder / "profile", job.profile_steps)
    self.claim: run_identity.Claim | None = None
    self.pending: tuple[int, dict[str, Array]] | None = None
    self.compiled_for: set[str] = set()
    self.stop: int | None = None  # the signal that asked for an end

  def run(self, claim: run_identity.Claim, overwrite: bool) -> None:
    """The whole call; the caller writes the manifest.

    Args:
      claim: on the run's folder.
      overwrite: what is there is removed.

    Raises:
      InputError: there is no checkpoint that all processes can resume from.
      FloatingPointError: the loss, a gradient or a parameter is not finite.
      Interrupted: SIGTERM or SIGINT; the state is saved.
    """
    multiprocess.first_alone(lambda: claim.open(overwrite))
    self.claim = claim
    self.restore()
    if multiprocess.is_first():  # no manifest while it is not finished
      with workdir_lib.writing(claim.manifest):
        claim.manifest.unlink(missing_ok=True)
    try:
      with signals.deferred() as asked:
        self._train(asked)
      self.saved.wait()
    finally:
      self.close()

  def outcome(self) -> dict[str, Any]:
    """What the manifest says of a run that is done, read by the first alone."""
    return {
      "cores": jax.device_count(),
      "seconds": round(self.timer.total(), 1),
      **self.saved.remembered(),
    }

  def restore(self) -> None:
    """Resumes from the last checkpoint that is whole, or begins.

    The first process finds it, tidies up and tells the others which it is: a
    disk that is shared over a network may show them less, or show it later.

    Raises:
      InputError: this process does not see what the first resumes from.
    """
    job, built = self.job, self.job.built
    fresh = built.init(job.params)
    self.saved = checkpoints.Checkpoints(
      job.folder / "checkpoints", job.keep, writes=multiprocess.is_first()
    )
    self.log = metrics.MetricsLog(job.folder / "metrics.jsonl", job.name)
    if multiprocess.is_first():
      restored = self.saved.restore_latest(*fresh)
      self.log.open(restored[0], job.steps)
      self.choice.recall(self.log.read(), self.saved.steps())
    told = multiprocess.first_alone(
      lambda: {
        "step": restored[0],
        "best": [self.choice.best_step, self.choice.best_value],
        "lacks_dev_row": not self.log.has_dev_row(restored[0]),
      }
    )
    if not multiprocess.is_first():
      restored = self._restore_as_told(told["step"], fresh)
      self.choice.best_step, self.choice.best_value = told["best"]
    multiprocess.barrier()  # nothing is removed while others restore
    self.lacks_dev_row = told["lacks_dev_row"]
    self.first, params, opt_state = restored
    self.state = built.place(self.first, params, opt_state)
    self.last_saved = self.first
    if self.first and multiprocess.is_first():
      self._select(self.saved.steps())  # what was selected may be gone
    self.last_good = f"step {self.first}" if self.first else "none"
    self.watch = multiprocess.watch(job.step_timeout)
    self.timer = metrics.Timer(job.questions, job.passages)
    self.compilations = metrics.Compilations()

  def _restore_as_told(self, step: int, fresh: tuple[Any, Any]) -> tuple:
    """The checkpoint that the first process resumes from."""
    try:
      return self.saved.restore(step, *fresh)
    except errors.InputError as error:
      raise errors.InputError(
        f"{error}; process 0 goes on from it: all processes must see one"
        " workdir, as it is now (docs/tpu.md, Buckets)"
      ) from error

  def _train(self, asked: signals.Request) -> None:
    """Every step that is left, in order; raises where a signal ends it."""
    job, first = self.job, self.first
    if first:
      logging.info(
        "%s: resuming after step %d of %d", job.name, first, job.steps
      )
    else:
      logging.info(
        "%s: %d steps of %d questions", job.name, job.steps, job.questions
      )
    # At step 0, and where a run was broken off while it evaluated.
    lacks = self.lacks_dev_row and self._evaluates(first)
    if lacks and self._evaluate(first):
      self._save(first)
    ends = [*(later.start for later in job.rounds[1:]), job.steps]
    for part, end in zip(job.rounds, ends, strict=True):
      if first < end:
        self._train_round(part, max(first, part.start), end, asked)

  def _train_round(
    self, part: job_lib.Round, done: int, end: int, asked: signals.Request
  ) -> None:
    """The steps of a round after `done` ones, up to its end."""
    if done == part.start:
      self._before_round(part)
    loader = batches.in_background(part.source(), done)
    if done == self.first:
      logging.info("%s: compiling the step", self.job.name)
    for step in range(done + 1, end + 1):
      # This process's share of the batch, dealt to its devices.
      batch = self._next_batch(loader, asked)
      self.watch.begin(step)
      self.profiler.before(step)
      shares = devices_lib.split_over_cores(batch)
      # Step N is dispatched: this returns before the devices are done with it.
      with self._compilations_of(step):
        if multiprocess.count() > 1:
          self._compile_together(shares)
        self.state, reported = self.step(self.state, shares)
      self.profiler.after(step, reported)
      self.saved.look()  # has saving in the background failed?
      # The metrics of step N-1, while the devices are busy with step N.
      self._settle()
      self.pending = (step, reported)
      saves = _is_due(step, self.job.every.checkpoint, self.job.steps)
      evaluates = self._evaluates(step)
      if saves or evaluates:
        self._settle()
      # First the row, then the checkpoint: who resumes finds every row before.
      if evaluates:
        saves |= self._evaluate(step)
      if saves:
        self._save(step)
      self._end_if_asked(step, asked)

  def _before_round(self, part: job_lib.Round) -> None:
    """What a round needs, made with the parameters of the step before it.

    They are on disk first: a call that is killed meanwhile resumes here.
    """
    if part.before is None:
      return
    self._settle()
    if part.start > self.first:
      self._save(part.start)
      self.saved.wait()
    with self._apart():
      params = devices_lib.local(self.state.params)
      multiprocess.first_alone(lambda: part.before(params))

  def _next_batch(self, loader: Iterator, asked: signals.Request) -> dict:
    """The next batch; of several processes, with the signal that each got."""
    batch = self.timer.wait_for(loader)
    if multiprocess.count() > 1:
      batch["asked"] = np.full(devices_lib.cores(), asked.number or 0, np.int32)
    return batch

  @contextlib.contextmanager
  def _compilations_of(self, step: int) -> Iterator[None]:
    """Says so where a step is compiled in the middle of the run."""
    count, seconds = self.compilations.count, self.compilations.seconds
    yield
    # The second step compiles too, for the state as the first one leaves it.
    if self.compilations.count > count and step > self.first + 2:
      logging.warning(
        "%s: step %d had a new batch shape and was recompiled (%.1f s)",
        self.job.name,
        step,
        self.compilations.seconds - seconds,
      )

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
    """Fetches the pending step's metrics (waits for it) and writes them.

    Raises:
      FloatingPointError: the loss or the gradient is not finite.
    """
    if self.pending is None:
      return
    (step, reported), self.pending = self.pending, None
    row = {key: float(value) for key, value in reported.items()}
    self.watch.end(step)
    if multiprocess.count() > 1:  # the largest of the signals that any got
      self.stop = int(row.pop("asked")) or None
    row |= self.timer.lap() | self.compilations.figures()
    metrics.check_finite(step, row, self.last_good)
    self._begin()
    if step % max(self.job.every.log, 1) == 0 or step == 1:
      self.log.write({"step": step, **row})
    self.log.advance(row)

  def _begin(self) -> None:
    """The run's first step is done: its folder is no other run's any more."""
    if self.claim is not None and multiprocess.is_first():
      self.claim.begin()
    self.claim = None

  def _evaluates(self, step: int) -> bool:
    """True where a step gets a dev row: before the first one, when due."""
    return self.job.dev is not None and (
      step == 0 or _is_due(step, self.job.every.dev, self.job.steps)
    )

  def _evaluate(self, step: int) -> bool:
    """Writes a dev row; True where it is the best so far, by the metric."""
    try:
      with self._apart():
        params = devices_lib.local(self.state.params)
        figures = multiprocess.first_alone(lambda: self.job.dev(params))
        row = {"step": step, **figures}
    except signals.Interrupted:
      if step > self.first:
        self._save_now(step)
      raise
    self.log.write(row)
    return step > 0 and self.choice.is_best(row)

  def _end_if_asked(self, step: int, asked: signals.Request) -> None:
    """Saves and ends the run where a signal has asked for it.

    Several processes must end after the same step: they go by the signal that
    came back with the metrics of a step, the same on all.

    Raises:
      Interrupted: it has; the state is saved.
    """
    if multiprocess.count() == 1:
      self.stop = asked.number
    if self.stop is not None:
      self._settle()
      self._save_now(step)
      raise signals.Interrupted(self.stop)

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

  def _save_now(self, step: int) -> None:
    """Saves before the run ends early."""
    self._save(step)
    with self.watch.paused():
      self.saved.wait()
      multiprocess.barrier()  # none may end while the first still writes
    name, steps = self.job.name, self.job.steps
    logging.info("%s: saved after step %d of %d", name, step, steps)

  def _save(self, step: int) -> None:
    """Starts saving, unless the state is not finite."""
    built = self.job.built
    if step != self.last_saved:
      with self.timer.paused(), self.watch.paused():
        if multiprocess.is_first() or built.sharing.cores:
          params, opt_state = built.fetch(self.state)
        if multiprocess.is_first():
          metrics.check_parameters(step, params, self.last_good)
          self.job.store_model(self.job.folder / "model")
          self.saved.save(step, params, opt_state)
        multiprocess.barrier()  # a slow disk is no stuck process
      self.last_saved = step
    self._select([*self.saved.steps(), step])
    self.last_good = f"step {step}"

  def _select(self, saved: list[int]) -> None:
    """Says which of the checkpoints later stages use."""
    steps, why = self.choice.steps(saved)
    self.saved.select(steps, **why)

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
