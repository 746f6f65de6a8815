"""Reads the vectors of a corpus from the shards that `embed` wrote.

Shards are memory-mapped; index, rounds, search and export read blocks of
limited size or single rows, always as float32, whatever the stored dtype.  The
sha256 of a shard is checked before it is used.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections
import ml_dtypes
import numpy as np
from jaxtyping import Float, Int

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors, sharded_output
from dpr_jax.core import workdir as workdir_lib

STAGE = "embed"
COMMAND = "dpr-jax embed"
DTYPES = ("float32", "float16", "bfloat16")
PATTERNS = ("vectors-*.npy", "ids-*.npy", "digests-*.npy")
IMPORTED = "imported "  # begins the "model" of imported vectors


def settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Settings that determine the shards' files, checked, for a Stage."""
  rows = config_lib.at_least(
    "embed.rows_per_shard", config.embed.rows_per_shard, 1
  )
  dtype = config_lib.one_of("embed.dtype", config.embed.dtype, DTYPES)
  return {"rows_per_shard": rows, "dtype": dtype}


def is_imported(manifest: Mapping[str, Any]) -> bool:
  """Whether a manifest of vectors, or of their index, is of imported ones."""
  return str(manifest.get("model")).startswith(IMPORTED)


def command_of(manifest: Mapping[str, Any]) -> str:
  """The command that makes the vectors of a manifest, for messages."""
  return "dpr-jax import" if is_imported(manifest) else COMMAND


def names(number: int) -> tuple[str, str]:
  """Names of a shard's files: vectors and ids."""
  return f"vectors-{number:05d}.npy", f"ids-{number:05d}.npy"


def entry(
  number: int, first_row: int, rows: int, sha256: Mapping[str, str]
) -> dict[str, Any]:
  """A shard as a manifest lists it.

  Args:
    number: number of the shard.
    first_row: row of its first vector.
    rows: number of its vectors.
    sha256: sha256 of the files, by name.
  """
  file, ids = names(number)
  return {
    "file": file,
    "ids": ids,
    "first_row": first_row,
    "rows": rows,
    "sha256": sha256[file],
  }


def digests_name(number: int) -> str:
  """Name of the file of a shard's digests, see `vector_reuse.py`."""
  return f"digests-{number:05d}.npy"


def digests_of(manifest: Mapping[str, Any]) -> list[str]:
  """Names of the files of all digests, in order; [] if one is missing."""
  names = [digests_name(n) for n in range(len(manifest["shards"]))]
  return names if all(name in manifest["files"] for name in names) else []


def storage(dtype: str) -> np.dtype:
  """NumPy's dtype of `dtype`, one of `DTYPES`."""
  return np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def as_stored(vectors: np.ndarray) -> np.ndarray:
  """The array to write: `.npy` has no bfloat16, which is stored as uint16."""
  return vectors.view(np.uint16) if vectors.dtype.kind == "V" else vectors


@dataclasses.dataclass(frozen=True)
class Vectors:
  """The vectors of a corpus; row i is the vector of passage i.

  Attributes:
    folder: `embeddings/passages`.
    manifest: manifest of the folder.
  """

  folder: pathlib.Path
  manifest: dict[str, Any]

  def __len__(self) -> int:
    return self.manifest["count"]

  @property
  def dim(self) -> int:
    """Width of a vector."""
    return self.manifest["dim"]

  @functools.cached_property
  def _shards(self) -> list[np.ndarray]:
    return [self._open(shard) for shard in self.manifest["shards"]]

  @functools.cached_property
  def _first_rows(self) -> np.ndarray:
    return np.array([shard["first_row"] for shard in self.manifest["shards"]])

  def _open(self, shard: dict[str, Any]) -> np.ndarray:
    path = self.folder / shard["file"]
    vectors = np.load(path, mmap_mode="r")
    if vectors.shape != (shard["rows"], self.dim):
      raise errors.InputError(
        f"{path} has an array of {vectors.shape}, the manifest says"
        f" {(shard['rows'], self.dim)}: run `dpr-jax embed --overwrite`"
      )
    dtype = self.manifest["dtype"]
    return vectors.view(storage(dtype)) if dtype == "bfloat16" else vectors

  def blocks(
    self, rows: int
  ) -> Iterator[tuple[int, Float[np.ndarray, "rows dim"]]]:
    """Yields (first row, at most `rows` vectors as float32), in order."""
    for start, vectors in zip(self._first_rows, self._shards, strict=True):
      for first in range(0, len(vectors), rows):
        block = np.asarray(vectors[first : first + rows]).astype(np.float32)
        yield int(start) + first, block

  def take(
    self, rows: Sequence[int] | Int[np.ndarray, " rows"]
  ) -> Float[np.ndarray, "rows dim"]:
    """Float32 vectors of any rows, in that order; rows may repeat.

    Raises:
      IndexError: there is no such row.
    """
    wanted = np.asarray(rows, np.int64)
    vectors = np.empty((len(wanted), self.dim), np.float32)
    for shard, places, some in self._by_shard(wanted):
      vectors[places] = self._shards[shard][some]
    return vectors

  def check(self, command: str, rows: range | None = None) -> None:
    """Compares files with their sha256.

    Args:
      command: command that makes the files, for messages.
      rows: contiguous rows whose files are checked; None = all files.

    Raises:
      InputError: a file is damaged or missing.
    """
    names = {
      shard[kind]
      for shard in self.manifest["shards"]
      for kind in ("file", "ids")
      if rows is None
      or max(rows.start, shard["first_row"])
      < min(rows.stop, shard["first_row"] + shard["rows"])
    }
    files = self.manifest["files"]
    if command == COMMAND:
      command = command_of(self.manifest)
    sharded_output.check_whole(
      self.folder, [(name, files[name]) for name in sorted(names)], command
    )

  def ids(self, rows: Sequence[int] | np.ndarray) -> list[str]:
    """Passage ids of any rows, in that order; errors as in `take`."""
    wanted = np.asarray(rows, np.int64)
    names = [""] * len(wanted)
    for shard, places, some in self._by_shard(wanted):
      file = self.manifest["shards"][shard]["ids"]
      ids = np.load(self.folder / file, mmap_mode="r")
      for place, identifier in zip(places, ids[some].tolist(), strict=True):
        names[place] = identifier.decode("utf-8")
    return names

  def _by_shard(
    self, rows: np.ndarray
  ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yields (shard, places in `rows`, rows within the shard)."""
    wrong = (rows < 0) | (rows >= len(self))
    if wrong.any():
      raise IndexError(
        f"row {rows[wrong][0]} of {self.folder}: it has rows 0 to"
        f" {len(self) - 1}"
      )
    shards = np.searchsorted(self._first_rows, rows, side="right") - 1
    for shard in np.unique(shards):
      places = np.flatnonzero(shards == shard)
      yield int(shard), places, rows[places] - self._first_rows[shard]


def open_vectors(
  folder: pathlib.Path, *, command: str = COMMAND, check: bool = True
) -> Vectors:
  """Opens `embeddings/…` after comparing every file with its sha256.

  Args:
    folder: folder of the vectors.
    command: command that makes the files, for messages.
    check: compare the files; False = the caller does.

  Raises:
    InputError: there are no vectors, a file is damaged or missing, or the
      manifest contradicts itself.
  """
  vectors = Vectors(folder, read_manifest(folder))
  if check:
    vectors.check(command)
  return vectors


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
  """The manifest of `embeddings/…`, validated.

  Raises:
    InputError: there is no manifest, or its shards are not all rows in order.
  """
  manifest = workdir_lib.read_manifest(folder, STAGE)
  if wrong := _nonsense(manifest):
    raise errors.InputError(
      f"{folder / workdir_lib.MANIFEST} is damaged: {wrong}; run `{COMMAND}"
      " --overwrite`"
    )
  return manifest


def _nonsense(manifest: dict[str, Any]) -> str:
  """Names a contradiction in a manifest of vectors; "" = none."""
  if manifest.get("dtype") not in DTYPES:
    return f"dtype is {manifest.get('dtype')!r}"
  for key in ("count", "dim"):
    if not _is_count(manifest.get(key)):
      return f"{key} is {manifest.get(key)!r}"
  row, files = 0, manifest["files"]
  for number, shard in enumerate(manifest.get("shards") or []):
    if not isinstance(shard, dict) or not _is_count(shard.get("rows")):
      return f"shard {number} is {shard!r}"[:200]
    if shard.get("first_row") != row:
      return f"shard {number} begins at row {shard.get('first_row')}, not {row}"
    for kind in ("file", "ids"):
      if shard.get(kind) not in files:
        return f"shard {number}: its {kind} {shard.get(kind)!r} is not listed"
    if shard.get("sha256", files[shard["file"]]) != files[shard["file"]]:
      return f"shard {number}: {shard['file']} has two different sha256"
    row += shard["rows"]
  if row != manifest["count"]:
    return f"its shards have {row} rows, count is {manifest['count']}"
  return ""


def _is_count(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and value > 0
