"""`dpr-jax bench train`: compares retriever training with another library.

Both sides use the same checkpoint, the same batches of real questions with
positives and hard negatives, and the same pooling, temperature, optimizer and
learning rates, in float32.  The time includes everything from texts to new
parameters, also tokenizing (on our side also reading the texts from the
workdir; training reads tokens).  Our side packs texts unless
`train.packing=False`, in rows that hold the measured batches.  Before the
measurement both sides compute the loss of the same batch without dropout, and
the benchmark fails if the losses differ.
"""

import copy
from typing import Any

import jax
import ml_collections
import numpy as np
import rich.table
from absl import logging

from dpr_jax.benchmarking import harness, training_texts
from dpr_jax.benchmarking import sentence_transformers_peer as peer_lib
from dpr_jax.benchmarking import trainer as trainer_lib
from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.evaluation import tables
from dpr_jax.models import checkpoint_sources, retriever_model
from dpr_jax.models import flops as flops_lib
from dpr_jax.training import compilations as compilations_lib

OURS = "dpr-jax"
PEERS = (peer_lib.NAME, peer_lib.CACHED)
REPEATS = 5
TOLERANCE = 1e-4


def bench(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  *,
  against: str | None = None,
  separate: bool = False,
  repeats: int = 0,
  json_file: str | None = None,
  peak_size: int = harness.PEAK_SIZE,
) -> dict[str, Any]:
  """Measures all sides, prints the table, returns (and writes) the report.

  Args:
    config: the experiment; trained in float32 with one shared tower.
    workdir: workdir after `prepare` and `mine`; nothing is written to it.
    against: peer, one of `PEERS`; None = measure only dpr-jax.
    separate: whether to train two towers on our side; a peer always has one.
    repeats: number of measured rounds, each with another batch; 0 = `REPEATS`.
    json_file: file for the report; None = none.
    peak_size: see `harness.matrix_peak`.

  Raises:
    InputError: the workdir lacks a stage, or the peer is not installed.
    RuntimeError: the losses of the two sides differ.
  """
  if against not in (None, *PEERS):
    raise errors.InputError(
      f"--against={against}: must be one of {', '.join(PEERS)}"
    )
  config = _comparable(config, separate)
  peer = _make_peer(config, against) if against else None
  ours = trainer_lib.Trainer(config, workdir, repeats or REPEATS)
  rounds = ours.rounds
  report = _header(config, rounds, separate, peak_size)
  compilations, compiled = compilations_lib.Compilations(), []

  def step(number: int) -> float:
    loss = ours.step(rounds[number])
    compiled.append(compilations.programs)
    return loss

  contenders = [harness.Contender(OURS, step)]
  works = {OURS: ours.work}
  bert_config = ours.model.encoder.config
  if peer is not None:
    report["settings"]["towers"][peer.name] = 1
    report["settings"]["peer_threads"] = peer.threads
    report["checks"] = compare_losses(config, workdir, ours, peer, rounds[0])
    contenders.append(
      harness.Contender(
        peer.name,
        lambda n: peer.step(
          rounds[n].questions, rounds[n].columns, ours.learning_rate
        ),
      )
    )
    works[peer.name] = lambda r: flops_lib.training_work(
      bert_config, peer.masks(r.questions, r.columns)
    )
  # Before the measurement, so that it includes no compilation.
  warmups = ours.first_of_each_shape()
  try:
    outcome = harness.contest(contenders, rounds=len(rounds), warmups=warmups)
  finally:
    compilations.close()
  # Above 0, the time of a measured round includes compilation.
  report["compiled_in_rounds"] = compiled[-1] - compiled[len(warmups) - 1]
  report["contenders"] = {}
  for name, seconds in outcome.seconds.items():
    found = figures(
      seconds,
      [works[name](each) for each in rounds],
      config.train.batch_size,
      report["matrix_peak_gflops"],
    )
    report["contenders"][name] = found | {"losses": outcome.results[name]}
  if peer is not None:
    report["speedup"] = harness.speedup(
      outcome.seconds[OURS], outcome.seconds[peer.name]
    )
  if json_file:
    workdir_lib.write_json(json_file, report)
  print_report(report)
  return report


def _header(
  config: ml_collections.ConfigDict,
  rounds: list[training_texts.Round],
  separate: bool,
  peak_size: int,
) -> dict[str, Any]:
  """The part of the report that is known before the measurement."""
  return {
    "bench": "train",
    "machine": harness.machine(),
    "versions": harness.versions(),
    "matrix_peak_gflops": harness.matrix_peak(peak_size),
    "settings": {
      "cores": jax.device_count(),
      "questions": config.train.batch_size,
      "steps": [each.step for each in rounds],
      "towers": {OURS: 2 if separate else 1},
      "config": config_lib.plain(config),
    },
  }


def _comparable(
  config: ml_collections.ConfigDict, separate: bool
) -> ml_collections.ConfigDict:
  """The config without features that other libraries lack."""
  config = copy.deepcopy(config)
  config.model.shared_towers = not separate
  config.model.compute_dtype = "float32"
  config.train.mask_answers = False
  config.train.dpr_compat_workers = 0
  config.train.dpr_compat_schedule = False
  return config


def _make_peer(config: ml_collections.ConfigDict, name: str) -> peer_lib.Peer:
  model, train = retriever_model.resolved(config).model, config.train
  if model.checkpoint == "random":
    raise errors.InputError(
      'config.model.checkpoint="random" cannot be loaded by another library:'
      ' use "starter" or a folder'
    )
  return peer_lib.Peer(
    peer_lib.Settings(
      folder=checkpoint_sources.checkpoint_folder(model.checkpoint),
      pooling=model.pooling,
      normalize=model.normalize,
      temperature=model.temperature,
      question_length=model.question_length,
      passage_length=train.passage_length or model.passage_length,
      dropout=model.dropout,
      b1=train.adam_b1,
      b2=train.adam_b2,
      epsilon=train.adam_epsilon,
      weight_decay=train.weight_decay,
      clip_norm=train.clip_norm,
      seed=config.seed,
    ),
    name,
  )


def compare_losses(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  ours: trainer_lib.Trainer,
  peer: peer_lib.Peer,
  round_: training_texts.Round,
) -> dict[str, float]:
  """Compares the first loss of both sides, without dropout.

  Copies of a positive are not masked here, because other libraries do not mask
  them.

  Raises:
    RuntimeError: the relative difference is above `TOLERANCE`.
  """
  if config.model.dropout != 0:
    config = copy.deepcopy(config)
    config.model.dropout = 0.0
    ours = trainer_lib.Trainer(config, workdir, 1)
    peer.set_dropout(0.0)
  loss = ours.step(round_, mask_copies=False)
  theirs = peer.step(round_.questions, round_.columns, ours.learning_rate)
  peer.restore_dropout()
  difference = abs(loss - theirs) / max(abs(theirs), 1e-30)
  logging.info("first loss: %s %.6f, %s %.6f", OURS, loss, peer.name, theirs)
  if not difference <= TOLERANCE:
    raise RuntimeError(
      f"the two sides do not compute the same: the loss of batch {round_.step}"
      f" is {loss} in {OURS} and {theirs} in {peer.name}"
    )
  return {
    "first_loss": loss,
    "peer_first_loss": theirs,
    "relative_difference": difference,
  }


def figures(
  seconds: list[float],
  works: list[flops_lib.Work],
  questions: int,
  peak: float,
) -> dict[str, Any]:
  """The reported figures of a contender.

  Args:
    seconds: seconds of each round.
    works: tokens and FLOPs of each round.
    questions: number of questions per batch.
    peak: peak GFLOP/s of the machine.
  """
  total = sum(works, flops_lib.Work())
  rates = {
    name: float(
      np.median(
        [
          getattr(each, attribute) / second / harness.GIGA
          for each, second in zip(works, seconds, strict=True)
        ]
      )
    )
    for name, attribute in (("useful", "flops"), ("padded", "padded_flops"))
  }
  asked = questions * len(works)
  return {
    "seconds": seconds,
    "step_seconds": harness.spread(seconds),
    "questions_per_second": harness.spread([questions / s for s in seconds]),
    "tokens_per_question": total.tokens / asked,
    "padded_tokens_per_question": total.padded_tokens / asked,
    "padding_share": total.padding,
    "gflops": rates,
    "share_of_peak": {name: rate / peak for name, rate in rates.items()},
  }


def print_report(report: dict[str, Any]) -> None:
  """Prints the report as a table."""
  settings, model = report["settings"], report["settings"]["config"]["model"]
  table = rich.table.Table(
    title=f"Training, {settings['questions']} questions per step, checkpoint"
    f" {model['checkpoint']}, {len(settings['steps'])} rounds",
    title_justify="left",
  )
  table.add_column("", no_wrap=True)
  for name in (
    "questions/s (quartiles)",
    "s/step",
    "tokens/question",
    "with padding",
    "GFLOP/s useful",
    "with padding",
  ):
    table.add_column(name, justify="right", no_wrap=True)
  for name, found in report["contenders"].items():
    speed, rates = found["questions_per_second"], found["gflops"]
    shares = found["share_of_peak"]
    table.add_row(
      name,
      f"{speed['median']:.2f} ({speed['quartile1']:.2f} to"
      f" {speed['quartile3']:.2f})",
      f"{found['step_seconds']['median']:.2f}",
      f"{found['tokens_per_question']:.0f}",
      f"{found['padded_tokens_per_question']:.0f}"
      f" ({100 * found['padding_share']:.0f} % padding)",
      *(
        f"{rates[kind]:.1f} ({100 * shares[kind]:.0f} % of peak)"
        for kind in ("useful", "padded")
      ),
    )
  tables.print_table(table)
  towers_ = ", ".join(
    f"{n}: {count}" for n, count in settings["towers"].items()
  )
  print(f"Towers in training: {towers_}. GFLOP/s count every layer in full.")
  if "speedup" in report:
    (theirs,) = {*report["contenders"]} - {OURS}
    print(harness.speedup_line(OURS, theirs, report["speedup"]) + ".")
  if report["compiled_in_rounds"]:
    print("Some measured rounds of dpr-jax include compilation.")
  print(harness.machine_line(report))
