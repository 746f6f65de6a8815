"""Opening index files: checked before FAISS sees a byte of them.

FAISS files carry no checksum and are parsed by C++ code that trusts them: the
sha256 of the manifest is compared first, and FAISS is told that no array in
the file can be larger than the file, or the tables of the manifest's factory.
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
_LOOP_LIMIT = 100_000_000  # inverted lists, levels and the like in one file


def load_index(
  folder: str | os.PathLike,
  *,
  mmap: bool = True,
  process: int = 0,
  processes: int = 1,
) -> tuple[faiss_search.Index, dict[str, Any]]:
  """The index in `folder` and its manifest, after all checks.

  Args:
    folder: `index/<factory>`.
    mmap: leaves vectors in the file, where FAISS can; the system reads the
      pages that are needed and shares them between processes.
    process: number of this process, from 0.
    processes: how many share the shards of the index; each has every such
      one, and the index returned holds those of this process alone.

  Raises:
    InputError: there is none, its bytes are not those written, or it does not
      hold what the manifest says.
  """
  folder = pathlib.Path(folder)
  manifest = workdir_lib.read_manifest(folder, "index")
  if "shards" not in manifest:
    return load_file(folder, mmap=mmap)
  _check_shards(folder, manifest)
  parts = []
  shards = manifest["shards"][process::processes]
  for shard in shards:
    part, found = load_file(folder / shard["folder"], mmap=mmap)
    if (there := found["files"][FILE]) != shard["sha256"]:
      raise errors.InputError(
        f"{folder / shard['folder']} is part {workdir_lib.short(there)}, the"
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
  """`InputError` where the parts of an index are not all rows in order."""
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
  """The one index in a folder; errors as of `load_index`."""
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
  # The table that is skipped is for L2 distances, and larger than the file.
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
  found = {
    "count": loaded.ntotal,
    "dim": loaded.d,
    "metric": METRIC
    if loaded.metric_type == faiss.METRIC_INNER_PRODUCT
    else str(loaded.metric_type),
  }
  for key, value in found.items():
    if manifest.get(key) != value:
      raise errors.InputError(
        f"{path}: {key} is {value}, the manifest says {manifest.get(key)}: run"
        " `dpr-jax index --overwrite`"
      )


def _tables(manifest: dict[str, Any]) -> int:
  """Bytes of what FAISS would compute for IVF with PQ, and not find stored.

  It looks whether there is room for them, also where it is told not to make
  them, and they can be larger than an index of few vectors.
  """
  if not isinstance(manifest.get("parameters"), dict):
    return 0
  settings = faiss_build.Settings(**manifest["parameters"])
  empty = faiss_build.make_index(manifest["dim"], settings)
  return max(
    4 * (layer.nlist * layer.pq.M * layer.pq.ksub + 1)  # there must be more
    if isinstance(layer, faiss.IndexIVF) and hasattr(layer, "pq")
    else 0
    for layer in faiss_build.layers(empty)
  )


@contextlib.contextmanager
def _deserialization_limits(size: int) -> Iterator[None]:
  """No array of a file is larger than this; the limits are global."""
  old_bytes = faiss.get_deserialization_vector_byte_limit()
  old_loops = faiss.get_deserialization_loop_limit()
  faiss.set_deserialization_vector_byte_limit(size)
  faiss.set_deserialization_loop_limit(_LOOP_LIMIT)
  try:
    yield
  finally:
    faiss.set_deserialization_vector_byte_limit(old_bytes)
    faiss.set_deserialization_loop_limit(old_loops)
