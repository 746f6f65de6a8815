"""Training of the reader, on the loop of the retriever's training.

In come retrieval results or a file in SQuAD's format, and a pretrained
checkpoint; out come `reader/checkpoints/<step>`, `reader/metrics.jsonl` and a
manifest.  Dev rows hold exact match and F1 of the answers that the reader of
that moment gives.
"""

import dataclasses

import jax
import ml_collections

from dpr_jax.core import config as config_lib
from dpr_jax.core import devices as devices_lib
from dpr_jax.core import errors, multiprocess, setting_rules
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import batches, reader_batches, reader_examples
from dpr_jax.models import reader_model
from dpr_jax.training import (
  checkpoint_selection,
  metrics,
  optimizer,
  optimizer_sharding,
  reader_data,
  reader_step,
  run_identity,
  train_retriever,
  train_step,
)

DEV_METRICS = ("dev_em", "dev_f1")


def train_reader(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  *,
  overwrite: bool = False,
) -> None:
  """Stage `train-reader`: trains, or goes on from the last checkpoint.

  Raises:
    InputError: a bad setting, nothing to learn from, or the folder holds
      another run.
    FloatingPointError: the loss, a gradient or a parameter is not finite.
    Interrupted: SIGTERM or SIGINT; the state is saved.
  """
  choice = _choice(config)
  check(config)
  if not overwrite:
    multiprocess.first_alone(lambda: check_before(config, workdir))
  reader_data.retrieve(config, workdir)
  claim = dataclasses.replace(
    bare_claim(config, workdir), inputs=reader_data.inputs(config, workdir)
  )
  if multiprocess.first_alone(lambda: claim.is_current(overwrite)):
    return
  if not overwrite:
    multiprocess.first_alone(claim.check)
  with multiprocess.in_turn():
    run = _ReaderRun(config, workdir, choice)
  run.do(claim, overwrite)
  if multiprocess.is_first():
    claim.finish(
      {
        "steps": run.steps,
        "questions_seen": run.steps * run.plan.batch_size,
        **run.data.counts,
      },
      cores=jax.device_count(),
      seconds=round(run.timer.total(), 1),
      **run.saved.remembered(),
      ranks=run.ranks,
    )


def _choice(
  config: ml_collections.ConfigDict,
) -> checkpoint_selection.Selection:
  """Which checkpoint will be used.

  Raises:
    InputError: by a figure that the dev rows will not have.
  """
  reader = config.reader
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


class _ReaderRun(train_retriever.Run):
  """One call of the stage: from the last checkpoint to the last step."""

  def __init__(self, config, workdir, choice: checkpoint_selection.Selection):
    self.config, self.workdir, self.choice = config, workdir, choice
    reader = config.reader
    self.every = train_retriever.Every(
      reader.log_every, reader.dev_every, reader.checkpoint_every
    )
    self.reader = reader_model.start(config)
    self.data = reader_data.examples(config, workdir, self.reader.tokenizer)
    self.source = make_source(config, self.data)
    self.plan, self.steps = self.source.plan, self.source.steps
    self.starts = [0]
    self.ranks = self.reader.ranks or self.source.passages > 1
    transformation, schedule = make_optimizer(config, self.steps)
    self.profiler = metrics.Profiler(
      workdir.reader / "profile",
      reader.profile_steps,
      self.steps,
      "reader.profile_steps",
    )
    step = reader_step.make_reader_step(
      self.reader.structure,
      transformation,
      schedule,
      seed=config.seed,
      questions=self.plan.batch_size,
      passages=self.source.passages,
    )
    self.built = train_step.Built(
      step,
      transformation,
      schedule,
      optimizer_sharding.Sharing(),
      scanned=False,
    )
    self.step = self.built.mapped()
    self.dev = reader_data.DevQuestions.make(
      config, workdir, self.reader, self.ranks
    )
    self.claim: run_identity.Claim | None = None
    self.folder, self.keep = workdir.reader, reader.keep_checkpoints
    self.pretrained = self.reader.params
    self.passages_per_question = self.source.passages

  def _store_model(self) -> None:
    reader_model.store(self.reader, self.config, self.folder / "model")


def make_source(
  config: ml_collections.ConfigDict, data: reader_examples.Examples
) -> reader_batches.ReaderBatches:
  """The run's batches.

  Raises:
    InputError: a bad setting.
  """
  check(config)
  reader = config.reader
  plan = batches.Plan(config.seed, len(data.examples), reader.batch_size)
  return reader_batches.ReaderBatches(
    plan,
    reader.max_steps or plan.steps(reader.epochs),
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


def check(config: ml_collections.ConfigDict) -> None:
  """`InputError` where a setting of the batches is bad; reads no data."""
  reader = config.reader
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


def make_optimizer(config: ml_collections.ConfigDict, steps: int):
  """AdamW and learning rate of `config.reader`, as the retriever's."""
  reader = config.reader
  warmup = config_lib.at_least("reader.warmup_steps", reader.warmup_steps, 0)
  setting_rules.below_steps("reader.warmup_steps", warmup, steps)
  schedule = optimizer.learning_rate_schedule(
    reader.learning_rate, warmup, steps
  )
  transformation = optimizer.adamw(
    schedule, weight_decay=reader.weight_decay, clip_norm=reader.clip_norm
  )
  return transformation, schedule
