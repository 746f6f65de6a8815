"""Mines hard negatives with the model itself, between two rounds of training.

When a round (`data.negative_rounds`) begins, the corpus is embedded with the
current parameters and searched for the training questions; their hits without
an answer are the round's negatives.  The embeddings are removed afterwards.  A
call that was interrupted resumes after the last complete shard.
"""

import dataclasses
import functools
import pathlib
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
  records,
  same_passages,
)
from dpr_jax.embedding import embed, vector_shards
from dpr_jax.index import faiss_stage
from dpr_jax.inference import encoder as encoder_lib
from dpr_jax.models import retriever_model, stacked_layers
from dpr_jax.retrieval import (
  false_negatives,
  mine,
  negative_filters,
  negative_sources,
)


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
    asked = [
      records.Question(question.question)
      for _, block in prepare.open_questions(workdir, "train").blocks(4096)
      for question in block
    ]
    encoded = encoder.encode_questions([each.question for each in asked])
    space = negative_sources.Space(
      lambda _: encoded,  # the same questions for every kind
      functools.partial(faiss_stage.search_vectors, vectors),
      vectors,
    )
    counts, files, measured = {}, {}, {}
    for kind in rounds.kinds:
      path = stage.folder / negative_rounds.FILES[kind]
      of_kind, measured[kind] = _mine(
        config, workdir, kind, space, asked, path, f"{label} mine"
      )
      prefix = "" if kind == "model" else f"{kind}_"
      counts |= {f"{prefix}{key}": count for key, count in of_kind.items()}
      files[path.name] = workdir_lib.fingerprint_file(path)
    stage.finish(counts, files=files, **{workdir_lib.FALSE_NEGATIVES: measured})
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


def _mine(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  kind: str,
  space: negative_sources.Space,
  asked: list[records.Question],
  path: pathlib.Path,
  label: str,
) -> tuple[dict[str, int], dict[str, Any]]:
  """Writes the negatives of one kind; all questions are searched at once.

  Args:
    config: reads `mine` and `evaluate.match`.
    workdir: workdir of the run.
    kind: "model", or "passage" for the neighbours of the gold passages.
    space: towers and passage vectors of the round.
    asked: texts of all training questions.
    path: path of the file.
    label: begin of the log lines.

  Returns:
    The counts of `mined_negatives.write`, and what was measured of false
    negatives.
  """
  questions = prepare.open_questions(workdir, "train")
  passages = prepare.open_passages(workdir)
  logging.info(
    "train: searching %d passages for %s, to mine negatives",
    len(passages),
    f"{len(questions)} questions"
    if kind == "model"
    else f"the gold passages of {len(questions)} questions",
  )
  positives = mine.Positives(
    questions, passages, same_passages.open_copies(workdir)
  )
  source = negative_sources.OF_SPACE[kind](space)
  # The vectors are read once, not once per batch of questions.
  hits = source(asked, list(map(positives.rows, asked)), int(config.mine.depth))
  filters = negative_filters.Filters.of(config)
  measured = false_negatives.Measured.of(filters, len(questions))
  mined = mine.mine_negatives(
    lambda first, batch, _: hits.part(first, first + len(batch)),
    passages,
    questions,
    positives,
    filters=filters,
    matcher=answer_matching.AnswerMatcher(match=config.evaluate.match),
    measured=measured,
    ranker=kind,
  )
  counts = mined_negatives.write(
    path, mined, len(questions), label, filters.keep
  )
  measured.log(label)
  return counts, measured.plain()
