"""The run's batches, as the config asks for them.

In come the workdir's data and mined negatives, out comes a
`batches.BatchSource`, from which training (and the benchmarks) read.
"""

import dataclasses

import jax
import ml_collections
import numpy as np
from absl import logging

from dpr_jax import configuration, errors
from dpr_jax import workdir as workdir_lib
from dpr_jax.data import batches, negatives, prepare
from dpr_jax.models import towers
from dpr_jax.retrieval import mining

_SAMPLE = 2000  # questions whose texts show how long texts are


def make_source(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  model: towers.Towers,
) -> batches.BatchSource:
  """The run's batches: a function of (seed, step, process)."""
  train_config = config.train
  for name, least in (("batch_size", 1), ("hard_negatives", 0)):
    configuration.at_least(f"train.{name}", train_config[name], least)
  cores = jax.device_count()
  if train_config.batch_size % cores:
    raise errors.InputError(
      f"config.train.batch_size={train_config.batch_size}: must be a multiple"
      f" of the {cores} cores"
    )
  questions = prepare.open_questions(workdir, "train")
  passages = prepare.open_passages(workdir)
  mixture = negatives.Mixture.parse(
    train_config.negatives, train_config.hard_negatives
  )
  sampler = negatives.Sampler(
    passages=passages,
    candidates=_candidates(questions, passages, mixture, workdir),
    mixture=mixture,
    from_top=train_config.hard_negatives_from_top,
    seed=config.seed,
  )
  plan = batches.Plan(config.seed, len(questions), train_config.batch_size)
  tokenizer = dataclasses.replace(
    model.tokenizer,
    passage_length=train_config.passage_length
    or model.tokenizer.passage_length,
  )
  source = batches.BatchSource(
    plan=plan,
    steps=train_config.max_steps or plan.steps(train_config.epochs),
    questions=questions,
    sampler=sampler,
    tokenizer=tokenizer,
    cores=jax.local_device_count(),
    process=jax.process_index(),
    processes=jax.process_count(),
  )
  return _with_groups(source, train_config)


def _with_groups(
  source: batches.BatchSource, train_config: ml_collections.ConfigDict
) -> batches.BatchSource:
  """Groups by length, from the lengths of the first training texts."""
  wanted = configuration.at_least(
    "train.length_groups", train_config.length_groups, 1
  )
  if wanted > 1 and source.processes > 1:
    # A batch that does not fit its groups takes another shape, and one process
    # would not know of the other's.
    logging.warning(
      "train: length_groups=%d is for one process only: every text is padded to"
      " its limit",
      wanted,
    )
    wanted = 1
  if wanted == 1:
    return source
  rows = np.arange(min(len(source.questions), _SAMPLE))
  questions = source.questions.take(rows)
  passages, _ = source.sampler.passages_of_batch(
    questions, rows, np.zeros_like(rows)
  )
  tokenizer = source.tokenizer
  share = source.plan.batch_size // source.processes
  groups = [
    batches.length_groups(
      np.array([len(row) for row in ids]),
      rows=count,
      cores=source.cores,
      groups=wanted,
      chunk=train_config.chunk_size,
      limit=limit,
    )
    for ids, count, limit in (
      (
        tokenizer.question_ids([q.question for q in questions]),
        share,
        tokenizer.question_length,
      ),
      (
        tokenizer.passage_ids([p for p in passages if p is not None]),
        share * source.sampler.per_question,
        tokenizer.passage_length,
      ),
    )
  ]
  return dataclasses.replace(
    source, question_groups=groups[0], passage_groups=groups[1]
  )


def _candidates(
  questions, passages, mixture: negatives.Mixture, workdir: workdir_lib.Workdir
) -> list[negatives.Candidate]:
  """Corpus rows of every question's gold passage and hard negatives."""
  mined = None
  if "bm25" in mixture.kinds:
    mined = mining.read_negatives(
      workdir.negatives / mining.FILES["train"], len(questions)
    )
  found = []
  for first, block in questions.blocks(4096):
    gold = passages.rows_of(
      [
        question.positives[0].id if question.positives else ""
        for question in block
      ]
    )
    for number, (question, row) in enumerate(zip(block, gold, strict=True)):
      pools = {}
      if mined is not None:
        pools["bm25"] = passages.rows_of(mined[first + number])
      if "given" in mixture.kinds:
        given = (*question.hard_negatives, *question.negatives)
        pools["given"] = negatives.given_rows(
          passages.rows_of([passage.id for passage in given])
        )
      found.append(negatives.Candidate(int(row), pools))
  return found
