"""`dpr-jax bench reader`: compares reader training with transformers.

Both sides train from the same checkpoint on the same questions of a file in
SQuAD's format, with the same number of steps, batch size and learning rates,
and take turns step by step in one process.  Then the same code reads the same
dev questions with the weights of each side.  The time includes everything from
texts (on our side from token ids, which our training keeps) to new parameters.
XLA compiles in earlier steps that are not counted and whose results are
discarded.
"""

import dataclasses
from typing import Any

import jax
import ml_collections
import numpy as np
import rich.table

from dpr_jax.benchmarking import harness
from dpr_jax.benchmarking import transformers_reader_peer as peer_lib
from dpr_jax.core import devices as devices_lib
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import squad_files
from dpr_jax.evaluation import tables
from dpr_jax.models import checkpoint_sources, hf_weights, reader_model
from dpr_jax.training import (
  metrics,
  reader_data,
  train_reader,
)

OURS = "dpr-jax"


class Trainer:
  """Our side: the step of `dpr-jax train-reader`."""

  def __init__(self, config, workdir: workdir_lib.Workdir):
    """Loads checkpoint and examples."""
    self.reader = reader_model.start(config)
    self.data = reader_data.examples(
      config.reader, workdir, self.reader.tokenizer, match=config.evaluate.match
    )
    source = train_reader.make_source(config.reader, config.seed, self.data)
    self.plan = source.plan
    self.source = train_reader.batches_of(config.reader, source)()
    self._built = train_reader.build(
      config.reader, config.seed, self.reader.structure, source
    )
    self.schedule = self._built.schedule
    self._step = self._built.mapped()
    self.restart()

  def restart(self) -> None:
    """Resets parameters and optimizer to the checkpoint."""
    begin = self._built.init(self.reader.params)
    self.state = self._built.place(0, *begin)

  def shapes(self) -> dict[Any, int]:
    """The first step number of every batch shape in the training."""
    first: dict[Any, int] = {}
    for step in range(len(self.source)):
      shapes = map(np.shape, jax.tree.leaves(self.source[step]))
      first.setdefault(tuple(shapes), step)
    return first

  def step(self, number: int) -> tuple[float, float]:
    """Runs one step; returns the loss and the share of padding."""
    batch = self.source[number]
    self.state, reported = self._step(
      self.state, devices_lib.split_over_cores(batch)
    )
    return float(reported["loss"]), metrics.padding_share(batch)


def bench(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  *,
  json_file: str | None = None,
) -> dict[str, Any]:
  """Trains both sides, compares speed, exact match and F1; prints and returns.

  Args:
    config: the experiment; `config.reader` names files in SQuAD's format.
    workdir: workdir; nothing is written to it.
    json_file: file for the report; None = none.

  Raises:
    InputError: the files are not in SQuAD's format, or PyTorch is missing.
  """
  settings = config.reader
  if settings.passages != 1 or not squad_files.is_squad(settings.train):
    raise errors.InputError(
      "bench reader: needs config.reader.train in SQuAD's format and"
      " config.reader.passages=1, as configs/squad.py"
    )
  ours = Trainer(config, workdir)
  peer = peer_lib.Peer(
    peer_lib.Settings(
      folder=checkpoint_sources.checkpoint_folder(
        settings.checkpoint or config.model.checkpoint
      ),
      length=settings.length,
      overlap=settings.overlap,
      dropout=settings.dropout,
      weight_decay=settings.weight_decay,
      clip_norm=settings.clip_norm,
      seed=config.seed,
    )
  )
  rows = _peer_rows(config, ours)
  for step in ours.shapes().values():
    ours.step(step)
  ours.restart()
  plan = ours.plan

  def peer_step(number: int) -> tuple[float, float]:
    indexes, _ = plan.rows(number)
    rate = float(ours.schedule(number))
    return peer.step([rows[i] for i in indexes.tolist()], rate), 0.0

  outcome = harness.contest(
    [
      harness.Contender(OURS, ours.step),
      harness.Contender(peer_lib.NAME, peer_step),
    ],
    rounds=len(ours.source),
    warmups=(),
  )
  report = {
    "machine": harness.machine(),
    "versions": harness.versions(),
    "steps": len(ours.source),
    "batch_size": plan.batch_size,
    "cores": jax.device_count(),
    "peer_threads": peer.threads,
    "seconds": {name: sum(each) for name, each in outcome.seconds.items()},
    "speedup": harness.speedup(
      outcome.seconds[OURS], outcome.seconds[peer_lib.NAME]
    ),
    "last_loss": {name: each[-1][0] for name, each in outcome.results.items()},
    "scores": _scores(config, workdir, ours, peer),
  }
  _print(report)
  if json_file:
    workdir_lib.write_json(json_file, report)
  return report


def _peer_rows(
  config: ml_collections.ConfigDict, ours: Trainer
) -> list[peer_lib.Row]:
  """The training questions in the order of our examples."""
  rows = []
  for one in squad_files.read_squad(config.reader.train):
    if one.answers:
      start = one.starts[0]
      end = start + len(one.answers[0])
      rows.append(peer_lib.Row(one.question, one.paragraph.text, start, end))
  if len(rows) != len(ours.data.examples):
    raise errors.InputError(
      f"{config.reader.train}: dpr-jax can train on"
      f" {len(ours.data.examples)} of {len(rows)} questions with an answer, so"
      " the two sides would train on different questions: remove the others"
      " from the file"
    )
  return rows


def _scores(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  ours: Trainer,
  peer: peer_lib.Peer,
) -> dict[str, dict[str, float]]:
  """Exact match and F1 on the dev questions, read by the same code."""
  found = {}
  dev = reader_data.DevQuestions.make(
    config.reader, config.read, workdir, ours.reader, False
  )
  if dev is None:
    return found
  found[OURS] = dict(dev.evaluate(ours.state.params))
  bert_config = ours.reader.structure.config
  tensors = peer.tensors()
  heads, params = reader_model.split_heads(tensors, bert_config, peer_lib.NAME)
  params = {
    **ours.reader.params,
    **heads,
    "bert": hf_weights.params_from_tensors(params, bert_config, peer_lib.NAME),
  }
  theirs = dataclasses.replace(
    ours.reader,
    params=params,
    tokenizer=dataclasses.replace(ours.reader.tokenizer, layout="squad"),
  )
  dev = reader_data.DevQuestions.make(
    config.reader, config.read, workdir, theirs, False
  )
  found[peer_lib.NAME] = dict(dev.evaluate(devices_lib.replicate(params)))
  return found


def _print(report: dict[str, Any]) -> None:
  """Prints the report as a table."""
  table = rich.table.Table(
    title=f"Training a reader, {report['steps']} steps of"
    f" {report['batch_size']} questions",
    title_justify="left",
  )
  for name in ("", "seconds", "last loss", "dev EM", "dev F1"):
    table.add_column(name, justify="right", no_wrap=True)
  for name, seconds in report["seconds"].items():
    scores = report["scores"].get(name, {})
    table.add_row(
      name,
      f"{seconds:.1f}",
      f"{report['last_loss'][name]:.3f}",
      *(
        f"{100 * scores[key]:.1f}" if key in scores else "-"
        for key in ("dev_em", "dev_f1")
      ),
    )
  tables.print_table(table)
  print(harness.speedup_line(OURS, peer_lib.NAME, report["speedup"]) + ".")
  print(harness.machine_line(report))
