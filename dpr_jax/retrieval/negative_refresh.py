"""Rounds of training: between two of them the model mines its own negatives.

A run with `config.train.rounds` > 1 is cut into equal parts.  Where a later one
begins, the corpus is embedded with the parameters of that step, the training
questions search it, and `training/rounds/<number>/negatives.jsonl.gz` holds
what they find and is no answer.  The embeddings are removed afterwards.  A call
that was interrupted goes on after the last whole shard.
"""

import bisect
import dataclasses
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import answer_matching, batches, prepare
from dpr_jax.embedding import embed, vector_shards
from dpr_jax.index import faiss_stage
from dpr_jax.inference import encoder as encoder_lib
from dpr_jax.models import retriever_model, stacked_layers
from dpr_jax.retrieval import mine

FILE = "negatives.jsonl.gz"
_COMMAND = "dpr-jax train --overwrite"


def run_steps(config: ml_collections.ConfigDict, questions: int) -> int:
  """Steps of the whole run over so many training questions."""
  plan = batches.Plan(config.seed, questions, config.train.batch_size)
  return config.train.max_steps or plan.steps(config.train.epochs)


def boundaries(steps: int, rounds: int) -> list[int]:
  """How many steps have been done when each round begins; the first is 0.

  Raises:
    InputError: fewer than one round, or more than steps.
  """
  config_lib.at_least("train.rounds", rounds, 1)
  if rounds > steps:
    raise errors.InputError(
      f"config.train.rounds={rounds}: the run has only {steps} steps; set"
      f" config.train.rounds={steps} at most, or train for longer"
    )
  return [number * steps // rounds for number in range(rounds)]


def round_of(step: int, starts: Sequence[int]) -> int:
  """The round that the step after `step` done ones belongs to.

  Args:
    step: steps done.
    starts: from `boundaries`.
  """
  return bisect.bisect_right(starts, step) - 1


def folder_of(workdir: workdir_lib.Workdir, number: int) -> pathlib.Path:
  """`training/rounds/<number>`."""
  return workdir.training / "rounds" / str(number)


def refresh(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  model: retriever_model.Towers,
  params: Any,
  number: int,
) -> None:
  """Mines the negatives of a round, unless they are there already.

  To be called when round `number` begins, and only then: who resumes within a
  round has other parameters, and uses what is there (`read`).  What another
  model left there, of another run or step, is replaced.  With a checkpoint of
  that step on disk, a run that is killed in here goes on in here.

  Args:
    config: the experiment; `mine` and `embed` apply as to the stages.
    workdir: its folder.
    model: the run's towers, for their structure.
    params: the parameters at the first step of the round, replicated.
    number: of the round, 1 or more.

  Raises:
    InputError: there is no such round, or a setting is bad.
  """
  questions = prepare.open_questions(workdir, "train")
  passages = prepare.open_passages(workdir)
  stage = _stage(config, workdir, number, len(questions))
  step = stage.config["step"]
  model = dataclasses.replace(
    model,
    params=stacked_layers.unstack(jax.tree.map(np.asarray, params)),
    step=step,
  )
  stage = dataclasses.replace(
    stage, inputs={**stage.inputs, "model": model.fingerprint}
  )
  shards = workdir_lib.Stage(
    "train",
    stage.folder / "embeddings",
    embed.settings(config),
    {key: stage.inputs[key] for key in ("passages", "model")},
  )
  label = f"round {number}"
  if _is_done(stage):
    logging.info("train: the negatives of %s are there already", label)
  else:
    logging.info("train: %s begins after step %d, mines first", label, step)
    stage.manifest.unlink(missing_ok=True)
    encoder = embed.make_encoder(config, model, params)
    embed.embed_corpus(
      lambda: encoder,
      passages,
      workdir,
      shards,
      label=f"{label} embed",
      shapes=config.embed.shapes,
      replace=True,
      process=0,  # of several processes the first mines for all
      processes=1,
    )
    vectors = vector_shards.Vectors(
      shards.folder, workdir_lib.read_record(shards.manifest)
    )
    rows = _search(config, encoder, vectors, questions)
    keep = int(config.mine.keep)
    mined = mine.mine_negatives(
      lambda first, batch: rows[first : first + len(batch)],
      passages,
      questions,
      keep=keep,
      matcher=answer_matching.AnswerMatcher(match=config.evaluate.match),
    )
    path = stage.folder / FILE
    counts = mine.write_negatives(
      path, mined, len(questions), f"{label} mine", keep
    )
    stage.finish(counts, files={FILE: workdir_lib.fingerprint_file(path)})
  shutil.rmtree(shards.folder, ignore_errors=True)


def read(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  number: int,
  questions: int,
) -> list[list[str]]:
  """A round's negatives: passage ids per training question, best first.

  Raises:
    InputError: there are none, or they are of other data, of another step or
      mined with other settings.
  """
  stage = _stage(config, workdir, number, questions)
  if not stage.manifest.exists():
    raise errors.InputError(
      f"{stage.manifest} is missing: the negatives of round {number} are gone,"
      f" and the model that mined them; run `{_COMMAND}`"
    )
  try:
    found = workdir_lib.read_record(stage.manifest)
  except errors.InputError as error:
    raise errors.InputError(f"{error}; run `{_COMMAND}`") from error
  wrong = [
    name
    for name, value in stage.inputs.items()
    if found.get("inputs", {}).get(name) != value
  ]
  if found.get("config_hash") != stage.config_hash:
    wrong.append("step or settings")
  if wrong:
    raise errors.InputError(
      f"{stage.folder} holds negatives of another run (other"
      f" {', '.join(wrong)}); run `{_COMMAND}`"
    )
  return mine.read_negatives(stage.folder / FILE, questions, _COMMAND)


def _stage(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  number: int,
  questions: int,
) -> workdir_lib.Stage:
  """What the negatives of a round depend on, besides the model."""
  starts = boundaries(run_steps(config, questions), config.train.rounds)
  if not 0 < number < len(starts):
    raise errors.InputError(
      f"config.train.rounds={len(starts)}: there is no round {number} to mine"
    )
  settings = {"seed": config.seed, "round": number, "step": starts[number]}
  return workdir_lib.Stage(
    "train",
    folder_of(workdir, number),
    mine.mine_settings(config) | settings,
    workdir_lib.dataset_inputs(workdir, "passages", "train"),
  )


def _is_done(stage: workdir_lib.Stage) -> bool:
  """True where all files are there, whole, and of this very job."""
  if not stage.manifest.exists():
    return False
  try:
    found = workdir_lib.read_record(stage.manifest)
  except errors.InputError as error:
    logging.warning("%s; made again", error)
    return False
  if found.get("config_hash") != stage.config_hash or (
    found.get("inputs") != stage.inputs
  ):
    logging.info("train: %s is of another model: again", stage.folder)
    return False
  try:
    workdir_lib.check_files(stage.folder, found)
  except errors.InputError as error:
    logging.warning("%s; made again", str(error).partition(";")[0])
    return False
  return True


def _search(
  config: ml_collections.ConfigDict,
  encoder: encoder_lib.Encoder,
  vectors: vector_shards.Vectors,
  questions,
) -> np.ndarray:
  """Rows of the best passages [questions, depth], best first."""
  texts = [
    question.question
    for _, block in questions.blocks(4096)
    for question in block
  ]
  rows, _ = faiss_stage.search_vectors(
    vectors, encoder.encode_questions(texts), int(config.mine.depth)
  )
  return rows
