"""Stage `train-reader`: trains the reader, with the loop of the retriever.

Input: retrieval results or a file in SQuAD's format, and a pretrained
checkpoint.  Output: `reader/checkpoints/<step>`, `reader/metrics.jsonl` and a
manifest.  Dev rows have exact match and F1 of the current reader's answers.
"""

import dataclasses
import functools
import time
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
  goodput,
  optimizer,
  optimizer_sharding,
  packed_reader_batches,
  reader_data,
  reader_step,
  row_counts,
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
  peak_flops: float | None = None,
) -> None:
  """Stage `train-reader`: trains, or resumes from the last checkpoint.

  Args:
    config: configuration of the experiment.
    workdir: workdir with data, and results for dev.
    overwrite: removes the run that the workdir has.
    retrieve: function that retrieves for the training questions, called if the
      reader learns from the workdir's results; None = they exist already.
    peak_flops: FLOPs per second of one device at best, for the metrics; None =
      not known.

  Raises:
    InputError: a bad setting, no training examples, or the folder has another
      run.
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
    loop = loop_lib.Loop(dataclasses.replace(made.job, peak_flops=peak_flops))
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
  """Input of the loop for the reader, and entries of its manifest.

  Attributes:
    job: input of the loop.
    ranks: whether the rank head is trained, now or before.
    counts: counts of the training examples.
  """

  job: job_lib.Job
  ranks: bool
  counts: Mapping[str, int]


def make_job(
  config: ml_collections.ConfigDict, workdir: workdir_lib.Workdir
) -> ReaderJob:
  """Makes the input of the loop; the training results must exist.

  Raises:
    InputError: a bad setting, or no training examples.
  """
  settings = config.reader
  reader = reader_model.start(config)
  data = reader_data.examples(
    settings, workdir, reader.tokenizer, match=config.evaluate.match
  )
  source = make_source(settings, config.seed, data)
  get_batches = batches_of(settings, source)
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
    rounds=(job_lib.Round(0, get_batches),),
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
    flops=goodput.flops_of(reader.structure.config),
  )
  return ReaderJob(job, ranks, data.counts)


def _choice(
  reader: ml_collections.ConfigDict,
) -> checkpoint_selection.Selection:
  """The rule that selects the checkpoint for later stages.

  Raises:
    InputError: the dev rows do not have the metric.
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
  """What the run depends on, without its inputs."""
  settings = config_lib.sections(config, "reader")
  settings |= {
    "checkpoint": config.model.passage_checkpoint or config.model.checkpoint,
    "match": config.evaluate.match,
    "seed": config.seed,
  }
  return run_identity.Claim(reader_model.STAGE, workdir.reader, settings, {})


def check_before(
  config: ml_collections.ConfigDict, workdir: workdir_lib.Workdir
) -> None:
  """Like `retriever_inputs.check_before`, for the reader."""
  bare_claim(config, workdir).check_before(config_lib.plain(config))


def make_source(
  reader: ml_collections.ConfigDict, seed: int, data: reader_examples.Examples
) -> reader_batches.ReaderBatches:
  """The source of padded batches, or of what `batches_of` packs.

  Args:
    reader: section `reader` of the config.
    seed: seed of the run.
    data: training examples.

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


def batches_of(
  reader: ml_collections.ConfigDict, source: reader_batches.ReaderBatches
) -> Callable[[], batches.Source]:
  """Function that makes the batches of a run, packed or padded.

  All processes call it at the same time: for packed rows it counts the tokens
  of all steps.

  Args:
    reader: section `reader` of the config.
    source: from `make_source`.

  Raises:
    InputError: the chunk size does not divide the inputs of a device.
  """
  if not reader.packing:
    return lambda: source
  packed = packed_reader_batches.PackedReaderBatches.of(
    source, reader.chunk_size
  )

  def counted() -> batches.Source:
    began = time.monotonic()
    steps = range(len(packed))
    counted = row_counts.of_all(packed, steps)
    shapes = row_counts.StepShapes.of(
      counted, packed.rows, reader.packed_widths
    )
    row_counts.log(reader_model.STAGE, counted, shapes, packed.rows, began)
    return dataclasses.replace(packed, shapes=shapes)

  return counted


def check(reader: ml_collections.ConfigDict) -> None:
  """Raises `InputError` for a bad setting of the batches; reads no data."""
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
      f" of the {cores} devices, and batch_size one of the {processes}"
      " processes"
    )


def build(
  reader: ml_collections.ConfigDict,
  seed: int,
  structure: span_reader.SpanReader,
  source: reader_batches.ReaderBatches,
) -> train_step.Built:
  """The step that training runs, for batches of this source.

  Optimizer and learning rate schedule are the same as the retriever's.

  Args:
    reader: section `reader` of the config.
    seed: seed of the dropout masks.
    structure: structure of the reader.
    source: source of batches; only its sizes are used, nothing is read.

  Raises:
    InputError: the warm-up is not shorter than the training.
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
