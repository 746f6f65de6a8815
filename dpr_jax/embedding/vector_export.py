"""Writes vectors in the formats of other libraries (`vector_formats`).

Input: the vectors of a workdir, shard by shard.  Output: a folder with one or
two files per shard, and a record of their sha256.
"""

import io
import pathlib
from typing import Any

import numpy as np
from absl import logging

from dpr_jax.core import errors, progress, sharded_output
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.embedding import pickle_writer, vector_parquet, vector_shards
from dpr_jax.embedding.vector_formats import FORMATS, IDS_SUFFIX, WIKI
from dpr_jax.models import model_files


def export(
  source: vector_shards.Vectors,
  form: str,
  folder: pathlib.Path,
  passages: Any = None,
) -> list[pathlib.Path]:
  """Writes vectors, one or two files per shard.

  Args:
    source: the vectors; one shard at a time is in memory.
    form: one of `FORMATS`.
    folder: output folder; an earlier export in it is replaced.
    passages: PassageTable of the corpus; only "parquet" needs it.

  Returns:
    The paths of the files.

  Raises:
    InputError: an unknown format, or the folder contains something else.
  """
  if form not in FORMATS:
    raise errors.InputError(
      f"--format={form}: must be one of {', '.join(FORMATS)}"
    )
  files: dict[str, str] = {}
  with (
    workdir_lib.replace_folder(folder, "export") as temporary,
    progress.Progress(len(source), f"export {form}", "passages") as bar,
  ):
    for number, shard in enumerate(source.manifest["shards"]):
      first = shard["first_row"]
      rows = range(first, first + shard["rows"])
      for name in _write_shard(temporary, number, form, source, rows, passages):
        files[name] = workdir_lib.fingerprint_file(temporary / name)
      bar.update(len(rows))
    workdir_lib.write_record(
      temporary / model_files.FILE,
      {"kind": "embeddings", "format": form, "files": files},
    )
  logging.info("export: %d files in %s", len(files), folder)
  return [folder / name for name in files]


def _write_shard(
  folder: pathlib.Path,
  number: int,
  form: str,
  source: vector_shards.Vectors,
  rows: range,
  passages: Any,
) -> tuple[str, ...]:
  """Writes some rows in a format; returns the names of the files."""
  if form == "parquet":
    name = f"passages-{number:05d}{vector_parquet.SUFFIX}"
    vector_parquet.write(folder / name, source, rows, passages)
    return (name,)
  ids, vectors = source.ids(rows), source.take(rows)
  if form == "npy":
    names = f"vectors-{number:05d}.npy", f"ids-{number:05d}{IDS_SUFFIX}"
    sharded_output.write_array(folder / names[0], vectors)
    data = "".join(f"{i}\n" for i in ids).encode()
    (folder / names[1]).write_bytes(data)
    return names
  name = f"passages_{number}.pkl"
  with open(folder / name, "wb") as file:
    _write_pickle(file, form, ids, vectors)
  return (name,)


def _write_pickle(
  file: io.BufferedIOBase, form: str, ids: list[str], vectors: np.ndarray
) -> None:
  if form == "dpr":
    prefixed = [i if i.startswith(WIKI) else WIKI + i for i in ids]
    pickle_writer.write_pairs(file, prefixed, vectors)
  else:
    pickle_writer.write_pair(file, ids, vectors, ids_first=form == "contriever")
