"""Mines hard negatives with the model itself, between two rounds of training.

When a round (`data.negative_rounds`) begins, the corpus is embedded with the
current parameters and searched for the training questions; their hits without
an answer are the round's negatives.  The embeddings are removed afterwards.  A
call that was interrupted resumes after the last complete shard.
"""

import dataclasses
import shutil
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import (
  answer_matching,
  mined_negatives,
  negative_rounds,
  prepare,
  same_passages,
)
from dpr_jax.embedding import embed, vector_shards
from dpr_jax.index import faiss_stage
from dpr_jax.inference import encoder as encoder_lib
from dpr_jax.models import retriever_model, stacked_layers
from dpr_jax.retrieval import mine


def refresh(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  model: retriever_model.Towers,
  params: Any,
  number: int,
) -> None:
  """Mines the negatives of a round, unless they exist already.

  Call it only when round `number` begins: a run that resumes within a round has
  other parameters, and uses the existing negatives (`Rounds.read`).  Those of
  another model, from another run or step, are replaced.  With a checkpoint of
  that step on disk, a run that is killed here resumes here.

  Args:
    config: configuration; `mine` and `embed` have the meaning of the stages.
    workdir: workdir of the run.
    model: towers of the run, for their structure.
    params: replicated parameters at the first step of the round.
    number: number of the round, 1 or more.

  Raises:
    InputError: there is no such round, or a setting is bad.
  """
  questions = prepare.open_questions(workdir, "train")
  passages = prepare.open_passages(workdir)
  sizes = list(prepare.source_sizes(workdir).values())
  rounds = negative_rounds.Rounds.of(config, sizes)
  stage = rounds.stage(workdir, number)
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
    logging.info("train: the negatives of %s exist already", label)
  else:
    logging.info(
      "train: %s: embedding %d passages with the model of step %d, to mine"
      " negatives",
      label,
      len(passages),
      step,
    )
    stage.manifest.unlink(missing_ok=True)
    encoder = encoder_lib.sized(model, config.embed, params)
    embed.embed_corpus(
      lambda: encoder,
      passages,
      workdir,
      shards,
      label=f"{label} embed",
      shapes=config.embed.shapes,
      replace=True,
      process=0,  # with several processes, the first mines for all
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
      mine.Positives(questions, passages, same_passages.open_copies(workdir)),
      keep=keep,
      matcher=answer_matching.AnswerMatcher(match=config.evaluate.match),
    )
    path = stage.folder / negative_rounds.FILE
    counts = mined_negatives.write(
      path, mined, len(questions), f"{label} mine", keep
    )
    stage.finish(counts, files={path.name: workdir_lib.fingerprint_file(path)})
  shutil.rmtree(shards.folder, ignore_errors=True)


def _is_done(stage: workdir_lib.Stage) -> bool:
  """True if all files exist, are intact, and belong to this round and model."""
  if not stage.manifest.exists():
    return False
  try:
    manifest = workdir_lib.read_record(stage.manifest)
  except errors.InputError as error:
    logging.warning("%s; mining again", error)
    return False
  if manifest.get("config_hash") != stage.config_hash or (
    manifest.get("inputs") != stage.inputs
  ):
    logging.info(
      "train: mining again, because %s was made by another model", stage.folder
    )
    return False
  try:
    workdir_lib.check_files(stage.folder, manifest)
  except errors.InputError as error:
    logging.warning("%s; mining again", str(error).partition(";")[0])
    return False
  return True


def _search(
  config: ml_collections.ConfigDict,
  encoder: encoder_lib.Encoder,
  vectors: vector_shards.Vectors,
  questions,
) -> np.ndarray:
  """Rows of the best passages for all questions [questions, depth]."""
  logging.info(
    "train: searching %d passages for %d questions, to mine negatives",
    len(vectors),
    len(questions),
  )
  texts = [
    question.question
    for _, block in questions.blocks(4096)
    for question in block
  ]
  rows, _ = faiss_stage.search_vectors(
    vectors, encoder.encode_questions(texts), int(config.mine.depth)
  )
  return rows
