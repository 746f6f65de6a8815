"""Writes an index as one file, or as several shards.

Input: vectors and settings.  Output: `index/<factory>/index.faiss` with its
manifest, or the folders `trained` and `shard-…` and a manifest that lists them.
All shards use the same trained quantiser, so that hits and scores are the same
as of one index, except with graphs.
"""

import dataclasses
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import faiss
import numpy as np
from absl import logging

from dpr_jax.core import multiprocess
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.index import faiss_files, faiss_search
from dpr_jax.index.faiss_build import (
  METRIC,
  Settings,
  Vectors,
  build_index,
)
from dpr_jax.index.faiss_files import FILE


def write_part(
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
    "search": dict(faiss_search.DEFAULTS),
    "count": count,
    "dim": vectors.dim,
    "model": vectors.manifest["model"],
    "model_settings": vectors.manifest.get("model_settings"),
  }


def write_shards(
  stage: workdir_lib.Stage,
  settings: Settings,
  vectors: Vectors,
  shards: int,
  only: int | None,
  overwrite: bool = False,
) -> bool:
  """Builds the missing shards; True when the index is complete.

  All processes call it: process 0 trains the quantiser and writes the manifest,
  each process builds the shards that it will search.
  """
  wanted = multiprocess.first_alone(
    lambda: _begin_shards(stage, settings, vectors, shards, only, overwrite)
  )
  learnt, parts = division(stage, len(vectors), shards)
  me, processes = multiprocess.number(), multiprocess.count()
  for number in wanted:
    if processes == 1 or number % processes == me:
      trained, _ = faiss_files.load_file(learnt.folder, mmap=False)
      rows = range(*parts[number].config["rows"])
      write_part(parts[number], settings, vectors, rows, trained)
  multiprocess.barrier()
  return multiprocess.first_alone(
    lambda: _finish_shards(stage, settings, vectors, learnt, parts)
  )


def _finish_shards(
  stage: workdir_lib.Stage,
  settings: Settings,
  vectors: Vectors,
  learnt: workdir_lib.Stage,
  parts: Sequence[workdir_lib.Stage],
) -> bool:
  """Writes the manifest of all shards; False if some are missing."""
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
        "first_row": manifest["first_row"],
        "rows": manifest["count"],
        "sha256": manifest["files"][FILE],
      }
      for part, manifest in zip(parts, manifests, strict=True)
    ],
  )
  return True


def _begin_shards(
  stage: workdir_lib.Stage,
  settings: Settings,
  vectors: Vectors,
  shards: int,
  only: int | None,
  overwrite: bool,
) -> list[int]:
  """Prepares `index/<factory>` and writes the trained, empty index.

  An index of one file in the folder is removed.

  Returns:
    Indexes of the shards to build.
  """
  workdir_lib.check_ours(stage.folder, stage.name, whole=False)
  stage.begin([])
  with workdir_lib.writing(stage.folder):
    (stage.folder / FILE).unlink(missing_ok=True)
  learnt = dataclasses.replace(stage, folder=stage.folder / "trained")
  if not learnt.is_current(overwrite and only is None):
    write_part(learnt, settings, vectors, range(0))
  _, parts = division(stage, len(vectors), shards)
  return [
    number
    for number, part in enumerate(parts)
    if only in (None, number) and not part.is_current(overwrite)
  ]


def _remove_others(folder: pathlib.Path, ours: set[pathlib.Path]) -> None:
  """Removes shards of another division; files of others are kept."""
  for path in sorted(folder.glob("shard-*-of-*")):
    if path not in ours:
      workdir_lib.remove_folder(path, "index")


def division(
  stage: workdir_lib.Stage, count: int, shards: int
) -> tuple[workdir_lib.Stage, list[workdir_lib.Stage]]:
  """The stages of the trained, empty index (already written) and the shards."""
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
