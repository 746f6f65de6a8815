"""Makes the source of training batches of the retriever from a config.

Input: the workdir's data and mined negatives.  Output: a `batches.BatchSource`,
from which the benchmarks read; `round_sources` makes those of training of it.
"""

import dataclasses

import jax
import ml_collections
from absl import logging

from dpr_jax.core import config as config_lib
from dpr_jax.core import setting_rules
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import (
  batches,
  candidates,
  datasets,
  mined_negatives,
  negative_mixture,
  negative_rounds,
  negative_sampling,
  other_positives,
  prepare,
  question_tokens,
  records,
  run_texts,
  same_passages,
  source_plans,
  token_store,
)
from dpr_jax.models import retriever_model
from dpr_jax.training import answer_masks, retriever_inputs, teacher_scores


def make_source(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  model: retriever_model.Towers,
  round_number: int = 0,
  *,
  store: bool = True,
) -> batches.BatchSource:
  """The source of padded batches.

  Args:
    config: configuration of the experiment.
    workdir: workdir with data and mined negatives.
    model: towers of the run, for their tokenizer.
    round_number: round whose negatives and weights of sources are used; from 1
      on, the negatives that `retrieval.negative_refresh` mined with the model.
    store: True = `with_tokens`; False = texts are tokenized for every batch.

  Raises:
    InputError: a bad setting, or negatives are missing or of other data.
  """
  train_config = config.train
  check(train_config, config.evaluate.match)
  if train_config.rounds > 1 and not round_number:
    logging.info(
      "train: %d rounds; the first one uses BM25 negatives instead of those of"
      " the model and of the round before",
      train_config.rounds,
    )
  tables = _Tables(
    prepare.open_questions(workdir, "train"), prepare.open_passages(workdir)
  )
  sizes = prepare.source_sizes(workdir)
  plan = source_plans.make(
    config.seed, train_config, list(sizes.values()), round_number
  )
  source_plans.log(plan, list(sizes))
  rounds = negative_rounds.Rounds.of(config, list(sizes.values()))
  tokenizer = dataclasses.replace(
    model.tokenizer,
    passage_length=train_config.passage_length
    or model.tokenizer.passage_length,
  )
  source = batches.BatchSource(
    plan=plan,
    steps=rounds.steps,
    questions=tables.questions,
    sampler=_sampler(train_config, workdir, tables, rounds, round_number),
    tokenizer=tokenizer,
    tokens=None,
    cores=jax.local_device_count(),
    process=jax.process_index(),
    processes=jax.process_count(),
  )
  source = dataclasses.replace(
    source, positive_columns=other_positives.columns(source.sampler)
  )
  batches.check_negatives(source)
  if train_config.mask_answers:
    source = dataclasses.replace(source, answer_rows=_answer_rows(source))
  if setting_rules.is_taught(train_config):
    path = retriever_inputs.teacher_path(train_config, workdir)
    source = dataclasses.replace(
      source,
      teacher_scores=teacher_scores.load(
        path, tables.questions, tables.passages, source.sampler
      ),
    )
    teacher_scores.check(source, round_number)
  if store:  # last: it may take an hour, and comes after all checks
    source = with_tokens(source, workdir, model)
  return source


def check(train: ml_collections.ConfigDict, match: str) -> None:
  """Raises `InputError` for a bad setting of the batches; reads no data.

  Args:
    train: section `train` of the config.
    match: rule for finding answers, `evaluate.match`.
  """
  config_lib.at_least("train.batch_size", train.batch_size, 1)
  setting_rules.divides(train.batch_size, jax.device_count())
  retriever_inputs.mixture(train, 0)
  setting_rules.answer_masks(train.mask_answers, match)


@dataclasses.dataclass(frozen=True)
class _Tables:
  """The data of a workdir: training questions and corpus."""

  questions: datasets.QuestionTable
  passages: datasets.PassageTable


def with_tokens(
  source: batches.BatchSource,
  workdir: workdir_lib.Workdir,
  model: retriever_model.Towers,
) -> batches.BatchSource:
  """Adds the token stores of the workdir, which are made if there are none.

  With several processes all of them must call it at the same time: each makes a
  share of the stores.

  Args:
    source: from `make_source`.
    workdir: workdir of the source's data.
    model: towers of the run, for the length of passages in embedding.
  """
  tokenizer, passages = source.tokenizer, source.sampler.passages
  processes = {"process": source.process, "processes": source.processes}
  # The longer of training's and embedding's, so that one store serves both.
  longer = max(model.tokenizer, tokenizer, key=lambda each: each.passage_length)
  corpus = token_store.make(workdir, passages, longer, **processes)
  questions = question_tokens.make(
    workdir,
    source.questions,
    passages,
    tokenizer,
    question_tokens.Depth.of(source.sampler),
    **processes,
  )
  (empty,) = tokenizer.passage_ids([records.Passage("", "", "")])
  tokens = run_texts.RunTexts(
    dataclasses.replace(corpus, limit=tokenizer.passage_length),
    questions,
    tuple(empty),
  )
  return dataclasses.replace(source, tokens=tokens)


def _sampler(
  train: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  tables: _Tables,
  rounds: negative_rounds.Rounds,
  round_number: int,
) -> negative_sampling.Sampler:
  """The sampler that chooses the passages of a round's batches."""
  mixture = retriever_inputs.mixture(train, round_number)
  mined = {}
  for kind in mixture.kinds:
    if kind in ("given", "random"):
      continue
    number, ranker = round_number, kind
    if kind == "previous":  # what the round before had, in round 0 of BM25
      number, ranker = round_number - 1, rounds.kinds[0]
      ranker = ranker if number else "bm25"
    if number and ranker in negative_mixture.MINED_IN_ROUNDS:
      ids = rounds.read(workdir, number, ranker)
    else:
      path = retriever_inputs.mined_path(train, workdir, ranker)
      ids = mined_negatives.read(
        path, len(tables.questions), mined_negatives.command(ranker)
      )
    mined[kind] = candidates.Mined(ids, mined_negatives.command(ranker))
  from_top = train.hard_negatives_from_top
  drawn = train.positives == "drawn"
  copies = same_passages.open_copies(workdir)
  return negative_sampling.Sampler(
    passages=tables.passages,
    candidates=candidates.candidates(
      tables.questions,
      tables.passages,
      copies,
      mixture,
      mined,
      from_top=from_top,
      drawn=drawn,
    ),
    mixture=mixture,
    from_top=from_top,
    seed=rounds.seed,
    copies=copies,
    drawn=drawn,
  )


def _answer_rows(source: batches.BatchSource) -> answer_masks.AnswerRows:
  """Finds the passages of the batches that contain a question's answer."""
  sampler = source.sampler
  size = len(sampler.passages)
  unknown = sum(
    not 0 <= candidate.positive < size for candidate in sampler.candidates
  )
  if unknown:
    logging.warning(
      "train: the gold passages of %d questions are not in the corpus: they are"
      " not searched for answers and stay negatives of all other questions",
      unknown,
    )
  return answer_masks.AnswerRows.build(
    source.questions, sampler.passages, sampler.possible_rows()
  )
