"""The stage `index`: builds a FAISS index of the passage vectors, on the CPU.

Input: the vectors of `embeddings/`, block by block.  Output:
`index/<factory>/index.faiss` and a manifest with its settings, its inputs, and
its recall against exact search on dev questions.  Row i of the index is passage
i.  With `index.shards` there are several such files, each of a range of rows in
its own folder, and each of several processes builds those that it will search.
"""

import functools
import pathlib
from typing import Any

import ml_collections
import numpy as np
from absl import logging

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors, multiprocess
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.embedding import vector_encoder, vector_shards
from dpr_jax.index import (
  all_processes,
  faiss_search,
  faiss_shards,
  faiss_size,
  faiss_tune,
)
from dpr_jax.index.faiss_build import (
  Settings,
  Vectors,
  build_index,
  check_factory,
)
from dpr_jax.index.faiss_files import FILE, load_index
from dpr_jax.index.faiss_search import search_index, search_vectors
from dpr_jax.models import model_settings

__all__ = [
  "ENCODERS",
  "FILE",
  "build_index",
  "check_factory",
  "check_origin",
  "index",
  "load_index",
  "search_overrides",
  "set_parameters",
  "search_index",
  "search_vectors",
]

# By model: the towers that encode questions for its vectors.
ENCODERS = {"dense": "best", "dense-start": "start"}


def index(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  *,
  model: str = "dense",
  overwrite: bool = False,
  shard: int | None = None,
  tune: bool = False,
) -> None:
  """Writes `index/<factory>` from the vectors of `model`.

  Args:
    config: config of the experiment; section `index` is read.
    workdir: its folder, with `embeddings/passages` (or `-start`).
    model: model of the vectors, "dense" or "dense-start".
    overwrite: build even if the index is current.
    shard: build only this one of `index.shards`, from 0; None = all, or, if all
      shards are there, only the manifest that joins them.
    tune: find the fastest search at `index.recall_target` and store it.

  Raises:
    InputError: no vectors, a factory string that does not fit them, or an
      index that would not fit into memory.
  """
  settings, shards = Settings.of(config), _shards(config)
  if shard is not None and not 0 <= shard < shards:
    raise errors.InputError(
      f"--shard={shard}: must be 0 to {shards - 1} (config.index.shards is"
      f" {shards})"
    )
  build = functools.partial(
    _index, config, workdir, settings, shards, model, overwrite, shard, tune
  )
  if shards == 1:
    multiprocess.first_alone(build)
  else:
    build()


def _index(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  settings: Settings,
  shards: int,
  model: str,
  overwrite: bool,
  shard: int | None,
  tune: bool,
) -> None:
  """As `index`, with checked settings; with shards, called in all processes.

  All processes have the same workdir.
  """
  source = workdir.embeddings(model)
  embeddings = vector_shards.read_manifest(source)
  stage = _stage(config, workdir, model)
  check_origin(embeddings, stage.inputs["passages"], source)
  encoder = None
  if multiprocess.is_first():
    encoder = _encoder(workdir, model, embeddings, source)
  current = multiprocess.first_alone(
    lambda: _is_current(stage, embeddings["count"], shards, overwrite)
  )
  # The last run may have been interrupted before recall was measured.
  if (
    current
    and not tune
    and multiprocess.first_alone(
      lambda: "recall" in workdir_lib.read_manifest(stage.folder, "index")
    )
  ):
    return
  vectors = vector_shards.open_vectors(source)
  with faiss_search.threads(settings.threads):
    if not current:
      faiss_size.check_fits(config, settings, vectors, shards)
      if shards == 1:
        faiss_shards.write_part(stage, settings, vectors, range(len(vectors)))
      elif not faiss_shards.write_shards(
        stage, settings, vectors, shards, shard, overwrite
      ):
        return
    _report(config, workdir, stage, vectors, model, tune, encoder)


def _encoder(
  workdir: workdir_lib.Workdir,
  model: str,
  embeddings: dict[str, Any],
  source: pathlib.Path,
):
  """The encoder of questions for these vectors; None = there is none.

  That is the case for vectors imported without their encoder, and if the
  workdir has no model.

  Raises:
    InputError: the workdir's towers are not those that made the vectors.
  """
  from dpr_jax.inference import (
    encoder as encoder_lib,  # starts JAX: only when needed
  )

  if vector_shards.is_imported(embeddings):
    if not vector_encoder.is_stored(source):
      return None
    return vector_encoder.load(source, embeddings["dim"])
  made_by = str(embeddings.get("model"))
  trained = model == "dense" and not model_settings.is_untrained(workdir)
  if trained and not workdir.training.exists():
    return None
  encoder = encoder_lib.Encoder.load(workdir.root, which=ENCODERS[model])
  if made_by != encoder.fingerprint:
    why = model_settings.why_other(
      embeddings.get("model_settings"), encoder.settings
    )
    raise errors.InputError(
      f"{source} holds vectors of model {workdir_lib.short(made_by)}, the"
      f" {'trained ' if trained else ''}towers of this workdir are"
      f" model {workdir_lib.short(encoder.fingerprint)}{why}: run"
      " `dpr-jax embed` first, and then index again"
    )
  return encoder


def _is_current(
  stage: workdir_lib.Stage, count: int, shards: int, overwrite: bool
) -> bool:
  """True if the index and all its shards are complete and unchanged."""
  if not stage.is_current(overwrite):
    return False
  if shards == 1:
    return True
  try:
    learnt, parts = faiss_shards.division(stage, count, shards)
  except errors.InputError as error:
    logging.warning("index: running again: %s", error)
    return False
  return all(part.is_current() for part in (learnt, *parts))


def _shards(config: ml_collections.ConfigDict) -> int:
  return int(config_lib.at_least("index.shards", config.index.shards, 1))


def _stage(
  config: ml_collections.ConfigDict, workdir: workdir_lib.Workdir, model: str
) -> workdir_lib.Stage:
  """The stage of the index: its folder, settings and inputs."""
  source = workdir.embeddings(model)
  return workdir_lib.Stage(
    name="index",
    folder=workdir.index(config.index.factory, model),
    config={
      "index": {**Settings.of(config).plain(), "shards": _shards(config)}
    },
    inputs={
      "embeddings": workdir_lib.manifest_fingerprint(source, "embed"),
      **workdir_lib.dataset_inputs(workdir, "passages"),
    },
  )


def check_origin(
  embeddings: dict[str, Any], passages: str, source: pathlib.Path
) -> None:
  """`InputError` if vectors are not of the workdir's passages."""
  fingerprint = embeddings.get("inputs", {}).get("passages")
  if fingerprint != passages:
    raise errors.InputError(
      f"{source}: these vectors are of passages"
      f" {workdir_lib.short(fingerprint)}, not of the passages"
      f" {workdir_lib.short(passages)} in this workdir's data; run"
      f" `{vector_shards.command_of(embeddings)}` again"
    )


def _report(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  stage: workdir_lib.Stage,
  vectors: Vectors,
  model: str,
  tune: bool,
  encoder: Any,
) -> None:
  """Measures recall and speed, tunes if asked, and adds both to the manifest.

  All processes that built the index call it; process 0 has the encoder.
  """
  loaded, manifest = all_processes.open_index(
    workdir, config.index.factory, model, mmap=config.index.mmap
  )
  questions, why = None, ""
  if multiprocess.is_first():
    questions, why = _question_vectors(config, workdir, vectors, encoder)
  asked, why = multiprocess.first_alone(
    lambda: [0 if questions is None else len(questions), why]
  )
  if not asked:
    measured: dict[str, Any] = {"recall": {"skipped": why}}
  else:
    measured = {}
    if questions is None:  # not process 0, whose questions are broadcast
      questions = np.zeros((asked, vectors.dim), np.float32)
    chosen = set_parameters(config, loaded, manifest)
    measured_on = questions
    if tune:
      target = float(
        config_lib.at_least(
          "index.recall_target", config.index.recall_target, 0.0
        )
      )
      tuned_on, held_out = faiss_tune.halves(questions)
      chosen, tried = faiss_tune.tune(loaded, vectors, tuned_on, target)
      measured["tuning"] = {
        "target": target,
        "tried": tried,
        "questions": len(tuned_on),
        **faiss_tune.chosen_recall(chosen, tried),
        "held_out": len(held_out) > 0,
      }
      measured_on = held_out if len(held_out) else questions
    measured["search"] = chosen
    measured["recall"] = faiss_tune.measure(loaded, vectors, measured_on)
  if multiprocess.is_first():
    _log_recall(measured["recall"], measured.get("tuning"))
    workdir_lib.write_record(stage.manifest, manifest | measured)


def _log_recall(
  recall: dict[str, Any], tuning: dict[str, Any] | None = None
) -> None:
  if "skipped" in recall:
    logging.warning("index: recall is not measured: %s", recall["skipped"])
    return
  speeds = recall["questions_per_second"]
  logging.info(
    "index: recall@20 %.4f, recall@100 %.4f against exact search;"
    " %.0f questions/s with one thread, %.0f with %d",
    recall["recall@20"],
    recall["recall@100"],
    speeds["1 thread"],
    speeds["all threads"],
    recall["threads"],
  )
  if tuning:
    logging.info(
      "index --tune: recall@20 %.4f on the %d questions that were tuned on, %s",
      tuning["recall@20"],
      tuning["questions"],
      f"{recall['recall@20']:.4f} on {recall['questions']} that were held out"
      if tuning["held_out"]
      else "none were held out: there is only one question",
    )


def _question_vectors(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  vectors: Vectors,
  encoder: Any,
) -> tuple[np.ndarray | None, str]:
  """(vectors of dev questions, ""), or (None, reason)."""
  from dpr_jax.data import prepare

  wanted = int(
    config_lib.at_least(
      "index.recall_questions", config.index.recall_questions, 0
    )
  )
  if not wanted:
    return None, "config.index.recall_questions is 0"
  if not (workdir.data / "dev").exists():
    return None, f"{workdir.data} has no dev questions"
  if encoder is None:
    return None, (
      f"the vectors are of model {str(vectors.manifest['model'])[:21]}, and"
      " this workdir has no question encoder for it"
    )
  table = prepare.open_questions(workdir, "dev")
  rows = np.unique(
    np.linspace(0, len(table) - 1, min(wanted, len(table))).astype(np.int64)
  )
  texts = [question.question for question in table.take(rows)]
  encoded = np.asarray(encoder.encode_questions(texts), np.float32)
  if encoded.shape[1] != vectors.dim:
    return None, (
      f"the vectors have width {vectors.dim}, those of questions"
      f" {encoded.shape[1]}"
    )
  return encoded, ""


def set_parameters(
  config: ml_collections.ConfigDict | None,
  loaded: faiss_search.Index,
  manifest: dict[str, Any],
) -> dict[str, float | int]:
  """Sets search parameters from the config, or else from the manifest.

  Returns:
    The parameters that this index uses.
  """
  return faiss_search.set_parameters(
    loaded, {**manifest.get("search", {}), **search_overrides(config)}
  )


def search_overrides(
  config: ml_collections.ConfigDict | None,
) -> dict[str, float | int]:
  """Search parameters that the config sets; 0 there = not set."""
  if config is None:
    return {}
  values = {
    "ef_search": config.index.ef_search,
    "nprobe": config.index.nprobe,
    "refine_factor": config.index.refine_factor,
  }
  for name, value in values.items():
    config_lib.at_least(f"index.{name}", value, 0)
  return {name: value for name, value in values.items() if value}
