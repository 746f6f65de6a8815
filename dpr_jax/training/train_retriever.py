"""Stage `train`: trains the two towers of the retriever.

Input: `data/train`, the mined negatives and a pretrained checkpoint.  Output:
`training/checkpoints/<step>` and `training/metrics.jsonl`.  `make_job` collects
the input of `loop.Loop`; the train step is a function of one device, mapped
over all of them.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import ml_collections
import numpy as np

from dpr_jax.core import errors, multiprocess, setting_rules
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import negative_rounds, prepare
from dpr_jax.models import retriever_model, stacked_layers, stored_towers
from dpr_jax.training import (
  checkpoint_selection,
  goodput,
  guard,
  retriever_batches,
  retriever_inputs,
  round_sources,
  train_step,
  validation,
)
from dpr_jax.training import job as job_lib
from dpr_jax.training import loop as loop_lib

# `retrieval.negative_refresh.refresh`: (config, workdir, towers, replicated
# parameters, number of the round) -> what `negative_rounds.Rounds.read` reads.
Refresh = Callable[
  [ml_collections.ConfigDict, workdir_lib.Workdir, Any, Any, int], None
]


def train(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  *,
  overwrite: bool = False,
  refresh: Refresh | None = None,
  peak_flops: float | None = None,
) -> None:
  """Stage `train`: trains the towers, or resumes from the last checkpoint.

  Args:
    config: configuration of the experiment.
    workdir: workdir with data and mined negatives.
    overwrite: removes the run that the workdir has.
    refresh: function that mines the negatives of a round with the current
      parameters; needed if `config.train.rounds` > 1.
    peak_flops: FLOPs per second of one device at best, for the metrics; None =
      not known.

  Raises:
    InputError: a bad setting, rounds without `refresh`, or the workdir has
      another run.
    FloatingPointError: the loss, a gradient or a parameter is not finite.
    Interrupted: SIGTERM or SIGINT; the state is saved.
  """
  setting_rules.selection(config)
  claim = retriever_inputs.claim(config, workdir, overwrite)
  if multiprocess.first_alone(lambda: claim.is_current(overwrite)):
    return
  if not overwrite:
    multiprocess.first_alone(claim.check)
  with multiprocess.in_turn():
    job = make_job(config, workdir, refresh)
    job = dataclasses.replace(job, peak_flops=peak_flops)
    loop = loop_lib.Loop(job)
  loop.run(claim, overwrite)
  why = "config.train.dev_questions is 0"
  if config.train.dev_questions:
    why = "no dev question has its gold passage in the corpus"
  verdict = multiprocess.first_alone(
    lambda: guard.conclude(
      job.folder,
      job.params,
      unstacked(job.dev, job.built.scanned),
      config.train.blend,
      why,
    )
  )
  if multiprocess.is_first():
    claim.finish(
      {
        "steps": job.steps,
        "questions": len(prepare.open_questions(workdir, "train")),
        "questions_seen": job.steps * job.questions,
      },
      **loop.outcome(),
      verdict=verdict,
    )


def unstacked(
  dev: guard.Evaluate | None, scanned: bool
) -> guard.Evaluate | None:
  """`job.dev` for parameters as they are on disk; None = no dev questions.

  The programs of `dev` take only the parameters of the loop's state.

  Args:
    dev: function from the loop's parameters to a dev row.
    scanned: the loop's layers are stacked.
  """
  if dev is None or not scanned:
    return dev
  return lambda params: dev(stacked_layers.stack(params, np.stack))


def make_job(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  refresh: Refresh | None = None,
) -> job_lib.Job:
  """Makes the input of the loop; arguments as for `train`.

  Raises:
    InputError: a bad setting.
  """
  settings = config.train
  retriever_batches.check(settings, config.evaluate.match)
  sizes = list(prepare.source_sizes(workdir).values())
  rounds = negative_rounds.Rounds.of(config, sizes)
  if refresh is None and len(rounds.starts) > 1:
    raise errors.InputError(
      f"config.train.rounds={settings.rounds} needs a function that mines"
      " between rounds: run `dpr-jax train`, or call train with"
      " refresh=dpr_jax.retrieval.negative_refresh.refresh"
    )
  setting_rules.profile_steps(
    "train.profile_steps", settings.profile_steps, rounds.steps
  )
  model = retriever_model.start(config)
  # Each with its own schedule, of the longest one's length.
  starts = rounds.starts if settings.restart else (0,)
  built = train_step.build(config, model, rounds.steps, starts=starts)
  dev = None
  if settings.dev_questions > 0:
    dev = validation.DevPool.make(config, workdir, model)
  selection = dataclasses.replace(
    checkpoint_selection.Selection.of(config), starts=starts[1:]
  )
  selection.check(dev is not None, settings.blend)
  source = retriever_batches.make_source(config, workdir, model, store=False)
  sources = round_sources.RoundSources(
    config, workdir, model, rounds.starts, source
  )

  def round_(number: int) -> job_lib.Round:
    """A round; negatives of a later one are mined with the model before it."""
    return job_lib.Round(
      rounds.starts[number],
      lambda: sources.source(number),
      (lambda params: refresh(config, workdir, model, params, number))
      if number
      else None,
      restarts=bool(number and settings.restart),
    )

  return job_lib.Job(
    name="train",
    folder=workdir.training,
    steps=rounds.steps,
    rounds=tuple(map(round_, range(len(rounds.starts)))),
    questions=settings.batch_size,
    passages=settings.batch_size * source.sampler.per_question,
    built=built,
    params=model.params,
    dev=dev.evaluate if dev else None,
    selection=selection,
    store_model=functools.partial(stored_towers.store, model, config),
    flops=goodput.flops_of(model.encoder.config),
    every=job_lib.Every.of(settings),
    keep=settings.keep_checkpoints,
    profile_steps=tuple(settings.profile_steps),
    step_timeout=settings.step_timeout,
  )
