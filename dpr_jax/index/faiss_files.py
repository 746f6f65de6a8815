"""Opens index files, after checking them.

FAISS files have no checksum, and the C++ code that parses them trusts their
content.  So the sha256 in the manifest is compared first, and FAISS refuses
arrays that are larger than the file, or than the tables of the manifest's
factory.
"""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import faiss
from absl import logging

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.index import faiss_build, faiss_search
from dpr_jax.index.faiss_build import METRIC

FILE = "index.faiss"
_LOOP_LIMIT = 100_000_000  # maximum inverted lists, levels etc. in one file


def load_index(
  folder: str | os.PathLike,
  *,
  mmap: bool = True,
  process: int = 0,
  processes: int = 1,
) -> tuple[faiss_search.Index, dict[str, Any]]:
  """Loads the index in `folder` and its manifest, after all checks.

  Args:
    folder: `index/<factory>`.
    mmap: memory-map the vectors, if FAISS supports it: the system reads the
      pages that are needed and shares them between processes.
    process: index of this process.
    processes: number of processes that share the shards; the index returned has
      the shards `process`, `process` + `processes`, ... only.

  Raises:
    InputError: there is no index, or a file does not match the manifest.
  """
  folder = pathlib.Path(folder)
  manifest = workdir_lib.read_manifest(folder, "index")
  if "shards" not in manifest:
    return load_file(folder, mmap=mmap)
  _check_shards(folder, manifest)
  parts = []
  shards = manifest["shards"][process::processes]
  for shard in shards:
    part, part_manifest = load_file(folder / shard["folder"], mmap=mmap)
    if (there := part_manifest["files"][FILE]) != shard["sha256"]:
      raise errors.InputError(
        f"{folder / shard['folder']} has part {workdir_lib.short(there)}, the"
        f" manifest of {folder} names {workdir_lib.short(shard['sha256'])}: run"
        " `dpr-jax index --overwrite`"
      )
    parts.append(part)
  whole = faiss_search.ShardedIndex(
    parts, [shard["first_row"] for shard in shards], manifest["dim"]
  )
  rows = sum(shard["rows"] for shard in shards)
  _check_what_it_is(folder, whole, {**manifest, "count": rows})
  return whole, manifest


def _check_shards(folder: pathlib.Path, manifest: dict[str, Any]) -> None:
  """`InputError` if the shards of an index are not all rows in order."""
  row = 0
  for number, shard in enumerate(manifest["shards"]):
    try:
      wrong = shard["first_row"] != row
      row += shard["rows"]
      _ = shard["folder"], shard["sha256"]
    except (KeyError, TypeError):
      wrong = True
    if wrong:
      raise errors.InputError(
        f"{folder / workdir_lib.MANIFEST} is damaged: part {number} is"
        f" {shard!r}, and rows before it end at {row}; run `dpr-jax index"
        " --overwrite`"
      )
  if row != manifest["count"]:
    raise errors.InputError(
      f"{folder / workdir_lib.MANIFEST} is damaged: its parts have {row} rows,"
      f" count is {manifest['count']}; run `dpr-jax index --overwrite`"
    )


def load_file(
  folder: pathlib.Path, *, mmap: bool
) -> tuple[faiss.Index, dict[str, Any]]:
  """Loads an index of one file; errors as in `load_index`."""
  manifest = workdir_lib.read_manifest(folder, "index")
  if FILE not in manifest.get("files", {}):
    raise errors.InputError(
      f"{folder / workdir_lib.MANIFEST} does not list {FILE}: run `dpr-jax"
      " index --overwrite`"
    )
  path = folder / FILE
  if path.is_file():
    size = path.stat().st_size
    logging.info("loading the index %s (%.1f MB)", path, size / 1e6)
  workdir_lib.check_files(folder, manifest)  # before FAISS sees a byte of it
  # The skipped table is for L2 distances, and can be larger than the file.
  flags = faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE
  try:
    with _deserialization_limits(max(path.stat().st_size, _tables(manifest))):
      loaded = faiss.read_index(
        str(path), flags | (faiss.IO_FLAG_MMAP_IFC if mmap else 0)
      )
  except RuntimeError as error:
    raise errors.InputError(
      f"{path} is not a FAISS index: {faiss_build.reason(error)}; run"
      " `dpr-jax index --overwrite`"
    ) from error
  _check_what_it_is(path, loaded, manifest)
  return loaded, manifest


def _check_what_it_is(
  path: pathlib.Path,
  loaded: faiss_search.Index,
  manifest: dict[str, Any],
) -> None:
  values = {
    "count": loaded.ntotal,
    "dim": loaded.d,
    "metric": METRIC
    if loaded.metric_type == faiss.METRIC_INNER_PRODUCT
    else str(loaded.metric_type),
  }
  for key, value in values.items():
    if manifest.get(key) != value:
      raise errors.InputError(
        f"{path}: {key} is {value}, the manifest says {manifest.get(key)}: run"
        " `dpr-jax index --overwrite`"
      )


def _tables(manifest: dict[str, Any]) -> int:
  """Bytes of the tables that FAISS may compute for IVF with PQ when loading.

  It compares them with the byte limit even if they are skipped, and they can be
  larger than an index of few vectors.
  """
  if not isinstance(manifest.get("parameters"), dict):
    return 0
  settings = faiss_build.Settings(**manifest["parameters"])
  empty = faiss_build.make_index(manifest["dim"], settings)
  return max(
    4 * (layer.nlist * layer.pq.M * layer.pq.ksub + 1)  # the limit is exclusive
    if isinstance(layer, faiss.IndexIVF) and hasattr(layer, "pq")
    else 0
    for layer in faiss_build.layers(empty)
  )


@contextlib.contextmanager
def _deserialization_limits(size: int) -> Iterator[None]:
  """Limits the bytes of arrays that FAISS loads; the limit is global."""
  old_bytes = faiss.get_deserialization_vector_byte_limit()
  old_loops = faiss.get_deserialization_loop_limit()
  faiss.set_deserialization_vector_byte_limit(size)
  faiss.set_deserialization_loop_limit(_LOOP_LIMIT)
  try:
    yield
  finally:
    faiss.set_deserialization_vector_byte_limit(old_bytes)
    faiss.set_deserialization_loop_limit(old_loops)
