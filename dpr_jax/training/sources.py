"""The run's batches, as the config asks for them.

In come the workdir's data and mined negatives, out comes a
`batches.BatchSource`, from which training (and the benchmarks) read.
"""

import dataclasses

import jax
import ml_collections

from dpr_jax import configuration, errors
from dpr_jax import workdir as workdir_lib
from dpr_jax.data import batches, prepare
from dpr_jax.models import towers
from dpr_jax.retrieval import mining


def make_source(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  model: towers.Towers,
) -> batches.BatchSource:
  """The run's batches: a function of (seed, step, process)."""
  train_config = config.train
  configuration.at_least("train.batch_size", train_config.batch_size, 1)
  configuration.at_least("train.hard_negatives", train_config.hard_negatives, 0)
  cores = jax.device_count()
  if train_config.batch_size % cores:
    raise errors.InputError(
      f"config.train.batch_size={train_config.batch_size}: must be a multiple"
      f" of the {cores} cores"
    )
  questions = prepare.open_questions(workdir, "train")
  passages = prepare.open_passages(workdir)
  mined = None
  if train_config.negatives == "bm25" and train_config.hard_negatives:
    mined = mining.read_negatives(
      workdir.negatives / mining.FILES["train"], len(questions)
    )
  plan = batches.Plan(config.seed, len(questions), train_config.batch_size)
  return batches.BatchSource(
    plan=plan,
    steps=train_config.max_steps or plan.steps(train_config.epochs),
    questions=questions,
    passages=passages,
    candidates=_candidates(questions, passages, mined),
    tokenizer=dataclasses.replace(
      model.tokenizer,
      passage_length=train_config.passage_length
      or model.tokenizer.passage_length,
    ),
    negatives=train_config.hard_negatives,
    from_top=train_config.hard_negatives_from_top,
    kind=train_config.negatives,
    process=jax.process_index(),
    processes=jax.process_count(),
  )


def _candidates(
  questions, passages, mined: list[list[str]] | None
) -> list[batches.Candidate]:
  """Corpus rows of every question's gold passage and hard negatives."""
  gold, hard = [], []
  for _, block in questions.blocks(4096):
    gold += [
      question.positives[0].id if question.positives else ""
      for question in block
    ]
  rows = passages.rows_of(gold)
  for ids in mined or [[]] * len(gold):
    hard.append(passages.rows_of(ids))
  return [
    batches.Candidate(int(row), negatives)
    for row, negatives in zip(rows, hard, strict=True)
  ]
