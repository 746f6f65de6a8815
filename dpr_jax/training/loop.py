"""The training loop of retriever and reader; a `job.Job` holds what differs.

Read it top to bottom: `Loop.run` restores the newest undamaged checkpoint, and
`_train` takes the remaining steps.  While the devices compute step N, the host
handles the metrics of step N-1, and Grain prepares the next batches.

With several processes all run the same loop, each on its share of every batch.
Only the first writes files, evaluates, and does the work before a round; it
sends what it found to the others.
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
from dpr_jax.training import compilations, goodput, metrics, run_identity
from dpr_jax.training import job as job_lib


class Loop:
  """One call of a training stage: from the last checkpoint to the last step."""

  def __init__(self, job: job_lib.Job):
    """Reads and writes nothing before `run`."""
    self.job = job
    self.step = job.built.mapped()
    self.choice = dataclasses.replace(job.selection)
    self.profiler = metrics.Profiler(job.folder / "profile", job.profile_steps)
    self.claim: run_identity.Claim | None = None
    self.pending: tuple[int, dict[str, Array]] | None = None
    self.compiled_for: set[str] = set()
    self.stop: int | None = None  # number of the signal that ends the run
    self.goodput = goodput.Goodput(job.flops, job.peak_flops)

  def run(self, claim: run_identity.Claim, overwrite: bool) -> None:
    """Trains to the last step; the caller writes the manifest.

    Args:
      claim: identity of the run, and its folder.
      overwrite: removes the run that the folder holds.

    Raises:
      InputError: no checkpoint can be read by all processes.
      FloatingPointError: the loss, a gradient or a parameter is not finite.
      Interrupted: SIGTERM or SIGINT; the state is saved.
    """
    multiprocess.first_alone(lambda: claim.open(overwrite))
    self.claim = claim
    self.restore()
    if multiprocess.is_first():  # an unfinished run has no manifest
      with workdir_lib.writing(claim.manifest):
        claim.manifest.unlink(missing_ok=True)
    try:
      with signals.deferred() as asked:
        self._train(asked)
      with self.goodput.lost_to("checkpoint"):
        self.saved.wait()
    finally:
      self.close()
    logging.info("%s", self.goodput.line(self.job.name, self.job.steps))

  def outcome(self) -> dict[str, Any]:
    """Manifest entries of a finished run; for the first process only."""
    return {
      "cores": jax.device_count(),
      "seconds": round(self.timer.total(), 1),
      "goodput": self.goodput.summary(),
      **self.saved.remembered(),
    }

  def restore(self) -> None:
    """Loads the last undamaged checkpoint, or the state of a new run.

    The first process chooses the checkpoint, removes damaged ones, and sends
    the step to the others: on a network file system they may see fewer files,
    or see them later.

    Raises:
      InputError: this process cannot read the checkpoint of the first.
    """
    job, built = self.job, self.job.built
    fresh = built.init(job.params)
    self.saved = checkpoints.Checkpoints(
      job.folder / "checkpoints", job.keep, writes=multiprocess.is_first()
    )
    self.log = metrics.MetricsLog(job.folder / "metrics.jsonl", job.name)
    if multiprocess.is_first():
      restored = self.saved.restore_latest(*fresh)
      self.goodput.resume(self.log.open(restored[0], job.steps), restored[0])
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
    multiprocess.barrier()  # no checkpoint is removed while others read it
    self.lacks_dev_row = told["lacks_dev_row"]
    self.first, params, opt_state = restored
    self.state = built.place(self.first, params, opt_state)
    self.last_saved = self.first
    if self.first and multiprocess.is_first():
      self._select(self.saved.steps())  # the selected one may be gone
    self.last_good = f"step {self.first}" if self.first else "none"
    self.watch = multiprocess.watch(job.step_timeout)
    self.timer = metrics.Timer(job.questions, job.passages)
    self.compilations = compilations.Compilations()

  def _restore_as_told(self, step: int, fresh: tuple[Any, Any]) -> tuple:
    """The checkpoint of this step, which the first process has chosen."""
    try:
      return self.saved.restore(step, *fresh)
    except errors.InputError as error:
      raise errors.InputError(
        f"{error}; process 0 resumes from it: give all processes the same"
        " --workdir, on a disk that they share (docs/tpu.md, Buckets)"
      ) from error

  def _train(self, asked: signals.Request) -> None:
    """Takes the remaining steps in order; raises if a signal ends the run."""
    job, first = self.job, self.first
    if first == job.steps:
      logging.info("%s: all %d steps are done", job.name, first)
    elif first:
      logging.info(
        "%s: resuming at step %d of %d", job.name, first + 1, job.steps
      )
    else:
      logging.info(
        "%s: %d steps of %d questions", job.name, job.steps, job.questions
      )
    # At step 0, and if a run was interrupted while it evaluated.
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
    """Steps `done` + 1 to `end`, all of one round."""
    if done == part.start:
      self._before_round(part)
    with self._apart("start" if done == self.first else "round"):
      source = part.source()  # may tokenize the corpus
    loader = batches.in_background(source, done)
    self._compile_shapes(source, range(done, end), asked)
    if done == self.first:
      self.log.start_clock(self.compilations.seconds_of_all())
      self.goodput.begin()
    for step in range(done + 1, end + 1):
      # This process's share of the batch, split over its devices.
      with self.goodput.waiting(self.pending and self.pending[1]):
        batch = self.timer.wait_for(loader)
      batch = self._with_signal(batch, asked)
      self.goodput.sent(batch)
      self.watch.begin(step)
      self.profiler.before(step)
      shares = devices_lib.split_over_cores(batch)
      # Dispatches step N: the call returns before the devices have done it.
      with self._compilations_of(step):
        if multiprocess.count() > 1:
          self._compile_for(shares)
        self.state, reported = self.step(self.state, shares)
      self.profiler.after(step, reported)
      self.saved.look()  # raises if saving in the background has failed
      # Writes the metrics of step N-1 while the devices compute step N.
      self._settle()
      self.pending = (step, reported)
      saves = _is_due(step, self.job.every.checkpoint, self.job.steps)
      evaluates = self._evaluates(step)
      if saves or evaluates:
        self._settle()
      # First the row, then the checkpoint: a resumed run has all earlier rows.
      if evaluates:
        saves |= self._evaluate(step)
      if saves:
        self._save(step)
      self._end_if_asked(step, asked)

  def _before_round(self, part: job_lib.Round) -> None:
    """Prepares a round (mines its negatives) with the current parameters.

    They are saved first, so that a call that is killed here resumes here.  A
    round that restarts continues from the parameters of a new run; the number
    of steps goes on.
    """
    if part.before is None:
      return
    self._settle()
    if part.start > self.first:
      self._save(part.start)
      self.saved.wait()
    with self._apart("round"):
      params = devices_lib.local(self.state.params)
      multiprocess.first_alone(lambda: part.before(params))
    if part.restarts:
      logging.info(
        "%s: the next round starts from the pretrained checkpoint",
        self.job.name,
      )
      built = self.job.built
      self.state = built.place(part.start, *built.init(self.job.params))

  def _compile_shapes(
    self, source: batches.Source, steps: range, asked: signals.Request
  ) -> None:
    """Compiles the step for all batch shapes of some steps.

    Of a source that does not know them, each is compiled at its first step.
    """
    known = isinstance(source, batches.ShapedSource)
    firsts = source.first_of_each_shape(steps) if known else []
    if steps.start == self.first:
      compilations.announce(self.job.name, len(firsts))
    with self._apart("compile"):
      for step in firsts:
        batch = self._with_signal(source[step], asked)
        self._compile_for(devices_lib.split_over_cores(batch))

  def _with_signal(self, batch: dict, asked: signals.Request) -> dict:
    """The batch; with several processes, it carries a received signal.

    The step returns the largest signal number over all processes, so that all
    of them end after the same step.
    """
    if multiprocess.count() == 1:
      return batch
    number = np.full(devices_lib.cores(), asked.number or 0, np.int32)
    return {**batch, "asked": number}

  @contextlib.contextmanager
  def _compilations_of(self, step: int) -> Iterator[None]:
    """Warns if a step in the middle of the run is compiled."""
    # The second step compiles too: the first returns a state of another layout.
    expected = step <= self.first + 2
    with (
      self.compilations.reported(self.job.name, step, expected),
      self.goodput.compiling(self.compilations.building),
    ):
      yield

  def _compile_for(self, shares: Any) -> None:
    """Returns when all processes have compiled the step for this batch shape.

    One process may compile for a minute while another has the program in its
    cache.  Without this barrier the faster one would wait inside a collective,
    which fails after half a minute.
    """
    shapes = str(jax.tree.map(lambda x: (x.shape, str(x.dtype)), shares))
    if shapes not in self.compiled_for:
      # The calls that follow reuse this program.
      self.step.lower(self.state, shares).compile()
      multiprocess.barrier()
      self.compiled_for.add(shapes)

  def _settle(self) -> None:
    """Waits for the pending step, then checks and writes its metrics.

    Raises:
      FloatingPointError: the loss or the gradient is not finite.
    """
    if self.pending is None:
      return
    (step, reported), self.pending = self.pending, None
    row = {key: float(value) for key, value in reported.items()}
    self.watch.end(step)
    if multiprocess.count() > 1:  # the largest signal number of any process
      self.stop = int(row.pop("asked")) or None
    row |= self.timer.lap() | self.compilations.figures()
    row |= self.goodput.columns(
      self.job.questions / row["questions_per_second"]
    )
    metrics.check_finite(step, row, self.last_good)
    self._begin()
    if step % max(self.job.every.log, 1) == 0 or step == 1:
      self.log.write({"step": step, **row})
    self.log.advance(row)

  def _begin(self) -> None:
    """Records, after the first step, that the folder belongs to this run."""
    if self.claim is not None and multiprocess.is_first():
      self.claim.begin()
    self.claim = None

  def _evaluates(self, step: int) -> bool:
    """True if there is a dev row after `step`: after 0, and when due."""
    return self.job.dev is not None and (
      step == 0 or _is_due(step, self.job.every.dev, self.job.steps)
    )

  def _evaluate(self, step: int) -> bool:
    """Writes a dev row; True if it is the best so far by `best_metric`."""
    logging.info("%s: evaluating on dev after step %d", self.job.name, step)
    try:
      with self._apart("evaluation"):
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
    """Saves and ends the run if a signal was received.

    Several processes must end after the same step: they use the signal number
    in the metrics of a step, which is the same in all of them.

    Raises:
      Interrupted: a signal was received; the state is saved.
    """
    if multiprocess.count() == 1:
      self.stop = asked.number
    if self.stop is not None:
      self._settle()
      self._save_now(step)
      raise signals.Interrupted(self.stop)

  @contextlib.contextmanager
  def _apart(self, cause: str) -> Iterator[None]:
    """Context of long work between steps; its time counts for no step.

    A signal interrupts it at once, unless there are several processes: these
    finish it, because all must end after the same step.

    Args:
      cause: of `goodput.LOST`.
    """
    breakable = (
      signals.at_once()
      if multiprocess.count() == 1
      else contextlib.nullcontext()
    )
    with (
      self.timer.paused(),
      self.watch.paused(),
      self.goodput.lost_to(cause),
      breakable,
    ):
      yield

  def _save_now(self, step: int) -> None:
    """Saves before the run ends early."""
    self._save(step)
    with self.watch.paused():
      self.saved.wait()
      multiprocess.barrier()  # nobody exits while the first still writes
    name, steps = self.job.name, self.job.steps
    logging.info("%s: saved after step %d of %d", name, step, steps)

  def _save(self, step: int) -> None:
    """Starts saving in the background; raises if the state is not finite."""
    built = self.job.built
    if step != self.last_saved:
      with (
        self.timer.paused(),
        self.watch.paused(),
        self.goodput.lost_to("checkpoint"),
      ):
        if multiprocess.is_first() or built.sharing.cores:
          params, opt_state = built.fetch(self.state)
        if multiprocess.is_first():
          metrics.check_parameters(step, params, self.last_good)
          self.job.store_model(self.job.folder / "model")
          self.saved.save(step, params, opt_state)
        multiprocess.barrier()  # waiting for a slow disk is not a stuck step
      self.last_saved = step
    self._select([*self.saved.steps(), step])
    self.last_good = f"step {step}"

  def _select(self, saved: list[int]) -> None:
    """Records which checkpoints later stages use."""
    steps, why = self.choice.steps(saved)
    self.saved.select(steps, **why)

  def close(self) -> None:
    """Ends all background work; what was begun is on disk afterwards."""
    self.watch.close()
    self.profiler.close()
    self.compilations.close()
    self.saved.close()
    self.log.close()


def _is_due(step: int, every: int, last: int) -> bool:
  """True every `every` steps (0 = never), and at step `last`."""
  return step == last or (every > 0 and step % every == 0)
