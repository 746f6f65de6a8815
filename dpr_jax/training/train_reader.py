"""The stage `train-reader`: the reader, trained by the retriever's loop.

In come retrieval results or a file in SQuAD's format, and a pretrained
checkpoint; out come `reader/checkpoints/<step>`, `reader/metrics.jsonl` and a
manifest.  Dev rows hold exact match and F1 of the answers that the reader of
that moment gives.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import ml_collections

from dpr_jax.core import config as config_lib
from dpr_jax.core import devices as devices_lib
from dpr_jax.core import errors, multiprocess, setting_rules
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import batches, reader_batches, reader_examples
from dpr_jax.models import reader_model, span_reader
from dpr_jax.training import (
  checkpoint_selection,
  optimizer,
  optimizer_sharding,
  reader_data,
  reader_step,
  run_identity,
  train_step,
)
from dpr_jax.training import job as job_lib
from dpr_jax.training import loop as loop_lib

DEV_METRICS = ("dev_em", "dev_f1")

# `retrieval.retrieve.retrieve`: (config, workdir, name=, methods=, split=) ->
# `results/<name>.<method>.json`.  All processes call it.
Retrieve = Callable[..., None]


def train_reader(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  *,
  overwrite: bool = False,
  retrieve: Retrieve | None = None,
) -> None:
  """Stage `train-reader`: trains, or resumes from the last checkpoint.

  Args:
    config: the experiment.
    workdir: with data, and results for dev.
    overwrite: the run that is there is removed.
    retrieve: retrieves for the training questions, where the reader learns from
      results and they are not there or not current; None = they are there.

  Raises:
    InputError: a bad setting, nothing to learn from, or the folder holds
      another run.
    FloatingPointError: the loss, a gradient or a parameter is not finite.
    Interrupted: SIGTERM or SIGINT; the state is saved.
  """
  reader = config.reader
  _choice(reader)
  check(reader)
  if not overwrite:
    multiprocess.first_alone(lambda: check_before(config, workdir))
  setting_rules.reader_source(reader.train)
  if retrieve is not None and reader.train == reader_data.RESULTS:
    retrieve(
      config, workdir, name="train", methods=[reader.method], split="train"
    )
  claim = dataclasses.replace(
    bare_claim(config, workdir), inputs=reader_data.inputs(reader, workdir)
  )
  if multiprocess.first_alone(lambda: claim.is_current(overwrite)):
    return
  if not overwrite:
    multiprocess.first_alone(claim.check)
  with multiprocess.in_turn():
    made = make_job(config, workdir)
    loop = loop_lib.Loop(made.job)
  loop.run(claim, overwrite)
  if multiprocess.is_first():
    claim.finish(
      {
        "steps": made.job.steps,
        "questions_seen": made.job.steps * made.job.questions,
        **made.counts,
      },
      **loop.outcome(),
      ranks=made.ranks,
    )


@dataclasses.dataclass(frozen=True)
class ReaderJob:
  """The reader's training as the loop does it, and what its manifest says.

  Attributes:
    job: for the loop.
    ranks: the rank head is trained, or was.
    counts: of the examples.
  """

  job: job_lib.Job
  ranks: bool
  counts: Mapping[str, int]


def make_job(
  config: ml_collections.ConfigDict, workdir: workdir_lib.Workdir
) -> ReaderJob:
  """Puts together the job of a workdir whose training results are there.

  Raises:
    InputError: a bad setting, or nothing to learn from.
  """
  settings = config.reader
  reader = reader_model.start(config)
  data = reader_data.examples(
    settings, workdir, reader.tokenizer, match=config.evaluate.match
  )
  source = make_source(settings, config.seed, data)
  ranks = reader.ranks or source.passages > 1
  built = build(settings, config.seed, reader.structure, source)
  setting_rules.profile_steps(
    "reader.profile_steps", settings.profile_steps, source.steps
  )
  dev = reader_data.DevQuestions.make(
    settings, config.read, workdir, reader, ranks
  )
  job = job_lib.Job(
    name=reader_model.STAGE,
    folder=workdir.reader,
    steps=source.steps,
    rounds=(job_lib.Round(0, lambda: source),),
    questions=settings.batch_size,
    passages=settings.batch_size * source.passages,
    built=built,
    params=reader.params,
    dev=dev.evaluate if dev else None,
    selection=_choice(settings),
    store_model=functools.partial(reader_model.store, reader, config),
    every=job_lib.Every.of(settings),
    keep=settings.keep_checkpoints,
    profile_steps=tuple(settings.profile_steps),
    step_timeout=config.train.step_timeout,
  )
  return ReaderJob(job, ranks, data.counts)


def _choice(
  reader: ml_collections.ConfigDict,
) -> checkpoint_selection.Selection:
  """Which checkpoint will be used.

  Raises:
    InputError: by a figure that the dev rows will not have.
  """
  metric = reader.best_metric
  if metric:
    config_lib.one_of("reader.best_metric", metric, DEV_METRICS)
  return checkpoint_selection.Selection(
    metric if reader.dev_questions > 0 else "", 1
  )


def bare_claim(
  config: ml_collections.ConfigDict, workdir: workdir_lib.Workdir
) -> run_identity.Claim:
  """What the run depends on, but for its inputs."""
  settings = config_lib.sections(config, "reader")
  settings |= {
    "checkpoint": config.model.checkpoint,
    "match": config.evaluate.match,
    "seed": config.seed,
  }
  return run_identity.Claim(reader_model.STAGE, workdir.reader, settings, {})


def check_before(
  config: ml_collections.ConfigDict, workdir: workdir_lib.Workdir
) -> None:
  """As `retriever_inputs.check_before`."""
  bare_claim(config, workdir).check_before(config_lib.plain(config))


def make_source(
  reader: ml_collections.ConfigDict, seed: int, data: reader_examples.Examples
) -> reader_batches.ReaderBatches:
  """The run's batches.

  Args:
    reader: the config's section.
    seed: of the run.
    data: what the reader learns from.

  Raises:
    InputError: a bad setting.
  """
  check(reader)
  plan = batches.Plan(seed, len(data.examples), reader.batch_size)
  return reader_batches.ReaderBatches(
    plan,
    plan.steps(reader.epochs, reader.max_steps),
    data,
    passages=reader.passages,
    spans=reader.spans,
    groups=reader.length_groups,
    length_step=reader.length_step,
    sort_batches=reader.sort_batches,
    cores=devices_lib.cores(),
    process=jax.process_index(),
    processes=jax.process_count(),
  )


def check(reader: ml_collections.ConfigDict) -> None:
  """`InputError` where a setting of the batches is bad; reads no data."""
  for name in (
    "batch_size",
    "passages",
    "spans",
    "length_groups",
    "sort_batches",
  ):
    config_lib.at_least(f"reader.{name}", reader[name], 1)
  config_lib.at_least("reader.length_step", reader.length_step, 0)
  config_lib.at_least("reader.max_steps", reader.max_steps, 0)
  cores, processes = jax.device_count(), jax.process_count()
  inputs = reader.batch_size * reader.passages
  if inputs % cores or reader.batch_size % processes:
    raise errors.InputError(
      f"config.reader.batch_size={reader.batch_size} questions of"
      f" config.reader.passages={reader.passages}: must together be a multiple"
      f" of the {cores} cores, and batch_size one of the {processes} processes"
    )


def build(
  reader: ml_collections.ConfigDict,
  seed: int,
  structure: span_reader.SpanReader,
  source: reader_batches.ReaderBatches,
) -> train_step.Built:
  """The very step that training runs, for batches of this source.

  AdamW and learning rate are the retriever's.

  Args:
    reader: the config's section.
    seed: of the dropout masks.
    structure: of the reader.
    source: its sizes and number of steps; nothing is read.

  Raises:
    InputError: the warm-up is no shorter than the training.
  """
  steps = source.steps
  warmup = config_lib.at_least("reader.warmup_steps", reader.warmup_steps, 0)
  setting_rules.below_steps("reader.warmup_steps", warmup, steps)
  schedule = optimizer.learning_rate_schedule(
    reader.learning_rate, warmup, steps
  )
  transformation = optimizer.adamw(
    schedule, weight_decay=reader.weight_decay, clip_norm=reader.clip_norm
  )
  step = reader_step.make_reader_step(
    structure,
    transformation,
    schedule,
    seed=seed,
    questions=source.plan.batch_size,
    passages=source.passages,
  )
  return train_step.Built(
    step, transformation, schedule, optimizer_sharding.Sharing(), scanned=False
  )
