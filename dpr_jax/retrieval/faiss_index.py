"""FAISS on the host's CPUs: passage vectors become an index to search.

In come the vectors of `embeddings/`, block by block, out comes
`index/<factory>/index.faiss` with its manifest: what it is, what it was made
from, and how much of exact search it finds on real questions.  Row i of the
index is passage i.  With `index.shards` there are several such files, each of
a range of rows, in folders of their own, and several processes each build
those that they will search.
"""

import dataclasses
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import faiss
import ml_collections
import numpy as np
from absl import logging

from dpr_jax import configuration, errors
from dpr_jax import workdir as workdir_lib
from dpr_jax.retrieval import (
  faiss_index_files,
  faiss_index_plan,
  faiss_index_search,
  faiss_index_tune,
)
from dpr_jax.retrieval import vectors as vectors_lib
from dpr_jax.retrieval.faiss_index_build import (
  METRIC,
  Settings,
  Vectors,
  build_index,
  check_factory,
)
from dpr_jax.retrieval.faiss_index_files import FILE, load_index
from dpr_jax.retrieval.faiss_index_search import search_index, search_vectors

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
  "write_shards",
]

# Which towers encode the questions that a model's vectors are compared with.
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
    config: reads `index`.
    workdir: holds `embeddings/passages` (or `-start`, for "dense-start").
    model: which towers' vectors, "dense" or "dense-start".
    overwrite: also where the index is current.
    shard: builds this part of `index.shards` alone, from 0; the call without
      it, when all parts are there, makes them one index.
    tune: finds the fastest search at `index.recall_target` and stores it.

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
  source = workdir.embeddings(model)
  embeddings = vectors_lib.read_manifest(source)
  stage = _stage(config, workdir, model)
  check_origin(embeddings, stage.inputs["passages"], source)
  encoder = _encoder(workdir, model, embeddings, source)
  current = _is_current(stage, embeddings["count"], shards, overwrite)
  if current and not tune:
    # An interruption may have come between the index and its measures.
    if "recall" in workdir_lib.read_manifest(stage.folder, "index"):
      return
  vectors = vectors_lib.open_vectors(source)
  with faiss_index_search.threads(settings.threads):
    if not current:
      faiss_index_plan.check_fits(config, settings, vectors, shards)
      if shards == 1:
        _write_part(stage, settings, vectors, range(len(vectors)))
      elif not _write_shards(
        stage, settings, vectors, shards, shard, overwrite, model
      ):
        return
    _report(config, workdir, stage, vectors, model, tune, encoder)


def _encoder(
  workdir: workdir_lib.Workdir,
  model: str,
  embeddings: dict[str, Any],
  source: pathlib.Path,
):
  """What encodes questions for these vectors; None where nothing here does.

  That is so for imported ones, and where only the vectors are on this machine.

  Raises:
    InputError: the workdir's towers are not those that made the vectors.
  """
  from dpr_jax.retrieval import encoding  # starts JAX: only when needed

  made_by = str(embeddings.get("model"))
  if made_by.startswith("imported "):
    return None
  if model == "dense" and not workdir.training.exists():
    return None
  encoder = encoding.Encoder.load(workdir.root, which=ENCODERS[model])
  if made_by != encoder.fingerprint:
    raise errors.InputError(
      f"{source} holds vectors of model {workdir_lib.short(made_by)}, the"
      f" {'trained ' if model == 'dense' else ''}towers of this workdir are"
      f" model {workdir_lib.short(encoder.fingerprint)}: run `dpr-jax embed`"
      " first, and then index again"
    )
  return encoder


def _is_current(
  stage: workdir_lib.Stage, count: int, shards: int, overwrite: bool
) -> bool:
  """True where the index is done, whole and unchanged, all of its parts."""
  if not stage.is_current(overwrite):
    return False
  if shards == 1:
    return True
  try:
    learnt, parts = _parts(stage, count, shards)
  except errors.InputError as error:
    logging.warning("index: running again: %s", error)
    return False
  return all(part.is_current() for part in (learnt, *parts))


def _shards(config: ml_collections.ConfigDict) -> int:
  return int(configuration.at_least("index.shards", config.index.shards, 1))


def _stage(
  config: ml_collections.ConfigDict, workdir: workdir_lib.Workdir, model: str
) -> workdir_lib.Stage:
  """What the index depends on."""
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


def write_shards(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  model: str,
  numbers: Sequence[int],
) -> None:
  """Builds some shards, from what `index` has learnt in another process."""
  settings, stage = Settings.of(config), _stage(config, workdir, model)
  vectors = vectors_lib.open_vectors(workdir.embeddings(model))
  learnt, parts = _parts(stage, len(vectors), _shards(config))
  with faiss_index_search.threads(settings.threads):
    _write_parts(settings, vectors, learnt, parts, numbers)


def check_origin(
  embeddings: dict[str, Any], passages: str, source: pathlib.Path
) -> None:
  """`InputError` where vectors are not of the workdir's passages."""
  if embeddings.get("inputs", {}).get("passages") != passages:
    raise errors.InputError(
      f"{source}: these vectors are not of the passages in this workdir's"
      " data; run `dpr-jax embed` again"
    )


def _write_part(
  stage: workdir_lib.Stage,
  settings: Settings,
  vectors: Vectors,
  rows: range,
  trained: faiss.Index | None = None,
) -> None:
  """Builds and writes the index of some rows, with its manifest."""
  started = time.monotonic()
  built = build_index(vectors, settings, rows=rows, trained=trained)
  seconds = time.monotonic() - started
  with workdir_lib.replace_folder(stage.folder, "index") as temporary:
    faiss.write_index(built, str(temporary / FILE))
    stage.finish(
      {"vectors": built.ntotal},
      folder=temporary,
      files={FILE: workdir_lib.fingerprint_file(temporary / FILE)},
      **_description(settings, vectors, built.ntotal),
      first_row=rows.start,
      build_seconds=round(seconds, 2),
      bytes=(temporary / FILE).stat().st_size,
    )
  logging.info(
    "index: %s over %d vectors of %d in %.1f s",
    settings.factory,
    built.ntotal,
    built.d,
    seconds,
  )


def _description(
  settings: Settings, vectors: Vectors, count: int
) -> dict[str, Any]:
  return {
    "factory": settings.factory,
    "metric": METRIC,
    "parameters": settings.plain(),
    "search": dict(faiss_index_search.DEFAULTS),
    "count": count,
    "dim": vectors.dim,
    "model": vectors.manifest["model"],
  }


def _write_shards(
  stage: workdir_lib.Stage,
  settings: Settings,
  vectors: Vectors,
  shards: int,
  only: int | None,
  overwrite: bool = False,
  model: str = "dense",
) -> bool:
  """Builds the parts that are not there; True when the index is whole.

  All parts share what was learnt (`trained/`), so that vectors are compressed
  alike: the same hits and scores as of one index, except for graphs.
  """
  from dpr_jax.retrieval import spread  # imports JAX: only when needed

  _begin_shards(stage)
  learnt = dataclasses.replace(stage, folder=stage.folder / "trained")
  if not learnt.is_current(overwrite and only is None):
    _write_part(learnt, settings, vectors, range(0))
  learnt, parts = _parts(stage, len(vectors), shards)
  wanted = [
    number
    for number, part in enumerate(parts)
    if only in (None, number) and not part.is_current(overwrite)
  ]
  spread.build_shards(
    model,
    wanted,
    lambda own: _write_parts(settings, vectors, learnt, parts, own),
  )
  missing = [part.folder.name for part in parts if not part.is_current()]
  if missing:
    logging.info("index: still missing: %s", ", ".join(missing))
    return False
  _remove_others(stage.folder, {learnt.folder, *(p.folder for p in parts)})
  manifests = [
    workdir_lib.read_manifest(part.folder, "index") for part in parts
  ]
  stage.finish(
    {"vectors": len(vectors)},
    **_description(settings, vectors, len(vectors)),
    build_seconds=round(sum(each["build_seconds"] for each in manifests), 2),
    bytes=sum(each["bytes"] for each in manifests),
    shards=[
      {
        "folder": part.folder.name,
        "first_row": found["first_row"],
        "rows": found["count"],
        "sha256": found["files"][FILE],
      }
      for part, found in zip(parts, manifests, strict=True)
    ],
  )
  return True


def _begin_shards(stage: workdir_lib.Stage) -> None:
  """Claims `index/<factory>`; an index in one file there is no longer one."""
  workdir_lib.check_ours(stage.folder, stage.name, whole=False)
  stage.begin([])
  with workdir_lib.writing(stage.folder):
    (stage.folder / FILE).unlink(missing_ok=True)


def _remove_others(folder: pathlib.Path, ours: set[pathlib.Path]) -> None:
  """Removes parts of another division; what is not ours stays."""
  for path in sorted(folder.glob("shard-*-of-*")):
    if path not in ours:
      workdir_lib.remove_folder(path, "index")


def _parts(
  stage: workdir_lib.Stage, count: int, shards: int
) -> tuple[workdir_lib.Stage, list[workdir_lib.Stage]]:
  """What was learnt, which is there already, and every shard."""
  learnt = dataclasses.replace(stage, folder=stage.folder / "trained")
  files = workdir_lib.read_manifest(learnt.folder, "index")["files"]
  bounds = np.linspace(0, count, shards + 1).astype(np.int64).tolist()
  return learnt, [
    dataclasses.replace(
      stage,
      folder=stage.folder / f"shard-{number:05d}-of-{shards:05d}",
      config={**stage.config, "rows": [bounds[number], bounds[number + 1]]},
      inputs={**stage.inputs, "trained": files[FILE]},
    )
    for number in range(shards)
  ]


def _write_parts(
  settings: Settings,
  vectors: Vectors,
  learnt: workdir_lib.Stage,
  parts: Sequence[workdir_lib.Stage],
  numbers: Sequence[int],
) -> None:
  for number in numbers:
    trained, _ = faiss_index_files.load_file(learnt.folder, mmap=False)
    rows = range(*parts[number].config["rows"])
    _write_part(parts[number], settings, vectors, rows, trained)


def _report(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  stage: workdir_lib.Stage,
  vectors: Vectors,
  model: str,
  tune: bool,
  encoder: Any,
) -> None:
  """Adds to the manifest what the index finds of exact search, and how fast."""
  from dpr_jax.retrieval import spread  # imports JAX: only when needed

  loaded, manifest = spread.open_index(
    workdir, config.index.factory, model, mmap=config.index.mmap
  )
  questions, why = _question_vectors(config, workdir, vectors, encoder)
  if questions is None:
    logging.warning("index: recall is not measured: %s", why)
    found: dict[str, Any] = {"recall": {"skipped": why}}
  else:
    found = {}
    chosen = set_parameters(config, loaded, manifest)
    if tune:
      target = float(
        configuration.at_least(
          "index.recall_target", config.index.recall_target, 0.0
        )
      )
      chosen, tried = faiss_index_tune.tune(loaded, vectors, questions, target)
      found["tuning"] = {"target": target, "tried": tried}
    found["search"] = chosen
    found["recall"] = faiss_index_tune.measure(loaded, vectors, questions)
    speeds = found["recall"]["questions_per_second"]
    logging.info(
      "index: recall@20 %.4f, recall@100 %.4f against exact search;"
      " %.0f questions/s with one thread, %.0f with %d",
      found["recall"]["recall@20"],
      found["recall"]["recall@100"],
      speeds["1 thread"],
      speeds["all threads"],
      found["recall"]["threads"],
    )
  workdir_lib.write_record(stage.manifest, manifest | found)


def _question_vectors(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  vectors: Vectors,
  encoder: Any,
) -> tuple[np.ndarray | None, str]:
  """Vectors of some dev questions; None, and why, where there are none."""
  from dpr_jax.data import prepare

  wanted = int(
    configuration.at_least(
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
      " nothing in this workdir encodes questions as that does"
    )
  table = prepare.open_questions(workdir, "dev")
  rows = np.unique(
    np.linspace(0, len(table) - 1, min(wanted, len(table))).astype(np.int64)
  )
  texts = [question.question for question in table.take(rows)]
  found = np.asarray(encoder.encode_questions(texts), np.float32)
  if found.shape[1] != vectors.dim:
    return None, (
      f"the vectors have width {vectors.dim}, those of questions"
      f" {found.shape[1]}"
    )
  return found, ""


def set_parameters(
  config: ml_collections.ConfigDict | None,
  loaded: faiss_index_search.Index,
  manifest: dict[str, Any],
) -> dict[str, float | int]:
  """How carefully is searched: the config where it says, else the manifest.

  Returns:
    What holds for this index.
  """
  return faiss_index_search.set_parameters(
    loaded, {**manifest.get("search", {}), **search_overrides(config)}
  )


def search_overrides(
  config: ml_collections.ConfigDict | None,
) -> dict[str, float | int]:
  """What the config says on searching, where it does not leave it open."""
  if config is None:
    return {}
  values = {
    "ef_search": config.index.ef_search,
    "nprobe": config.index.nprobe,
    "refine_factor": config.index.refine_factor,
  }
  for name, value in values.items():
    configuration.at_least(f"index.{name}", value, 0)
  return {name: value for name, value in values.items() if value}
