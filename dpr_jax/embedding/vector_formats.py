"""Reads vectors in the formats of other libraries; `vector_export` writes them.

  dpr        a pickle per shard: list of (id, float32 [dim]); ids may begin
             with "wiki:"
  tevatron   a pickle per shard: (float32 [rows, dim], list of ids)
  contriever a pickle per shard: (list of ids, float32 [rows, dim])
  npy        vectors-*.npy (float32) and ids-*.txt, one id per line
  parquet    columns id, title, text, vector, see `vector_parquet.py`

Pickles can run any code, so `vector_pickles.py` reads them: it creates only
arrays, lists, tuples, texts and numbers.
"""

import itertools
import pathlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging

from dpr_jax.core import errors, sharded_output
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.embedding import (
  vector_parquet,
  vector_pickles,
  vector_shards,
)
from dpr_jax.models import model_files

FORMATS = ("dpr", "tevatron", "contriever", "npy", "parquet")
WIKI = "wiki:"
IDS_SUFFIX = ".txt"
_ZIP_MAGIC = b"PK\x03\x04"
_PARQUET_MAGIC = b"PAR1"
_SUFFIXES = (".npy", ".pkl", ".pickle", vector_parquet.SUFFIX, "")
_LONGEST_ID = 1000  # bytes; all ids of a file take the width of the longest
_ROWS = 10_000  # rows checked at once


def import_(source: pathlib.Path, folder: pathlib.Path) -> int:
  """Reads vectors in any of the formats and writes them as our shards.

  The format is detected from a file's content.  The prefix "wiki:" of ids is
  removed.

  Args:
    source: a file, or a folder of files, which are read in the order of the
      numbers in their names.
    folder: output folder for shards and manifest, as of `embed`.

  Returns:
    The number of vectors.

  Raises:
    InputError: a file has none of the formats, would run code, or has another
      width than the files before.
  """
  files = files_of(source, folder)
  stage = workdir_lib.Stage(
    vector_shards.STAGE,
    folder,
    {"rows_per_shard": 0, "dtype": "float32"},
    {path.name: workdir_lib.fingerprint_file(path) for path in files},
  )
  shards = sharded_output.Parts(stage, len(files), vector_shards.PATTERNS)
  if shards.begin():
    return workdir_lib.read_record(stage.manifest)["count"]
  listed, count, dim = [], 0, None
  hashes = []
  for number, path in enumerate(files):
    ids, vectors = read(path)
    if dim is not None and vectors.shape[1] != dim:
      raise errors.InputError(
        f"{path}: vectors of width {vectors.shape[1]}, the files before have"
        f" {dim}: import files of one model"
      )
    dim = vectors.shape[1]
    hashes.append(np.array([hash(i) for i in ids], np.int64))
    names = vector_shards.names(number)
    arrays = (vectors, np.array([i.encode() for i in ids]))
    written = {
      name: sharded_output.write_array(folder / name, array)
      for name, array in zip(names, arrays, strict=True)
    }
    shards.finish(number, written)
    listed.append(vector_shards.entry(number, count, len(ids), written))
    count += len(ids)
  repeated = count - len(np.unique(np.concatenate(hashes)))
  if repeated:
    logging.warning(
      "import: %d of %d vectors repeat the id of another: a search may return"
      " such a passage more than once",
      repeated,
      count,
    )
  records = shards.collect()
  shards.close(
    records or [],
    {"passages": count, "repeated_ids": repeated},
    model=f"imported {workdir_lib.fingerprint(stage.inputs)}",
    dim=dim,
    dtype="float32",
    count=count,
    shards=listed,
  )
  logging.info("import: %d vectors of width %d in %s", count, dim, folder)
  return count


def _check_export(source: pathlib.Path) -> None:
  """Compares files with the record in the folder, if `export` wrote one.

  Raises:
    InputError: a file is damaged or missing.
  """
  folder = source if source.is_dir() else source.parent
  if not model_files.is_sealed(folder):
    return
  record = workdir_lib.read_record(folder / model_files.FILE)
  names = record.get("files", {})
  if source.is_dir():
    workdir_lib.check_files(folder, record | {"stage": "export"}, names)
  elif source.name in names:
    workdir_lib.check_files(folder, record | {"stage": "export"}, [source.name])


def files_of(source: pathlib.Path, folder: pathlib.Path) -> list[pathlib.Path]:
  """The files of vectors, in order; those of an export are checked.

  Args:
    source: a file, or a folder of files.
    folder: output folder, which must not contain them.

  Raises:
    InputError: there are none, or a file that `export` wrote is damaged.
  """
  workdir_lib.refuse_inside("--from", source, folder)
  _check_export(source)
  if source.is_dir():
    paths = [
      path
      for path in source.iterdir()
      if path.is_file() and path.suffix in _SUFFIXES
    ]
    paths.sort(key=lambda path: _numbers(path.name))
  else:
    paths = [source]
  if not paths:
    raise errors.InputError(
      f"{source} has no .pkl, .npy or .parquet: give the folder of the vectors"
    )
  return paths


def _numbers(name: str) -> tuple[list[int], str]:
  """Key for sorting: `passages_10` comes after `passages_9`."""
  text = "".join(c if c.isdecimal() else " " for c in name)
  return [int(number) for number in text.split()], name


def read(path: pathlib.Path) -> tuple[list[str], np.ndarray]:
  """Ids and float32 vectors of one file; errors as in `read_parts`."""
  ids, vectors = zip(*read_parts(path), strict=True)
  if len(ids) == 1:
    return ids[0], vectors[0]
  return list(itertools.chain(*ids)), np.concatenate(vectors)


def read_parts(
  path: pathlib.Path,
) -> Iterator[tuple[list[str], np.ndarray]]:
  """Yields ids and float32 vectors of one file, a part at a time.

  A part is a row group of Parquet; of other formats, the file.

  Raises:
    InputError: the file has none of the formats, would run code, is damaged, or
      a vector is not finite.
  """
  row = 0
  try:
    for ids, vectors in _raw_parts(path):
      yield _checked(path, ids, vectors, row)
      row += len(ids)
  except OSError as error:
    raise errors.InputError(
      f"cannot read {error.filename or path}: {error.strerror or error}"
    ) from error
  except vector_pickles.Refused as error:
    raise errors.InputError(f"{path} is refused: {error}") from error
  if not row:
    raise errors.InputError(f"{path} has no vectors: export them again")


def _raw_parts(path: pathlib.Path) -> Iterator[tuple[Sequence, np.ndarray]]:
  """Yields ids and vectors as they are in a file, not yet checked."""
  with open(path, "rb") as file:
    magic = file.read(len(_ZIP_MAGIC))
  if magic == _ZIP_MAGIC:
    raise errors.InputError(f"{path} is a .npz: unpack its .npy and give it")
  if path.suffix == vector_parquet.SUFFIX or magic == _PARQUET_MAGIC:
    yield from vector_parquet.read(path)
  elif path.suffix == ".npy":
    yield _read_npy(path)
  else:
    yield _of_pickle(path, vector_pickles.load(path))


def _checked(
  path: pathlib.Path, ids: Sequence, vectors: np.ndarray, first: int
) -> tuple[list[str], np.ndarray]:
  """Ids as texts and vectors as finite float32; `first`: row in the file."""
  if vectors.ndim != 2 or vectors.dtype.kind != "f" or len(vectors) != len(ids):
    raise errors.InputError(
      f"{path}: {len(ids)} ids with an array {vectors.dtype}{vectors.shape}:"
      " expected floats, [ids, dim]"
    )
  if not vectors.shape[1]:
    raise errors.InputError(f"{path}: vectors of width 0: export them again")
  names = [_identifier(path, row, name) for row, name in enumerate(ids, first)]
  with np.errstate(over="ignore"):  # values beyond float32 become infinite
    vectors = vectors.astype(np.float32, copy=False)
  _check_finite(path, names, vectors, first)
  return names, vectors


def _read_npy(path: pathlib.Path) -> tuple[list[str], np.ndarray]:
  """Ids and vectors of a .npy and its .txt; the array is memory-mapped."""
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("error")
      # Memory-mapped: a header cannot allocate more than the file's size.
      vectors = np.load(path, mmap_mode="r", allow_pickle=False)
  except OSError:
    raise
  except Exception as error:  # the header is parsed as Python
    raise errors.InputError(
      f"{path} is not a .npy of vectors, or its header is damaged:"
      f" {' '.join(str(error).split())[:200] or type(error).__name__}"
    ) from error
  names = path.with_name(path.stem.replace("vectors", "ids") + IDS_SUFFIX)
  try:
    return names.read_text(encoding="utf-8").split("\n")[:-1], vectors
  except UnicodeDecodeError as error:
    raise errors.InputError(f"{names} is not UTF-8: {error}") from error


def _check_finite(
  path: pathlib.Path, ids: Sequence[str], vectors: np.ndarray, first: int
) -> None:
  """Refuses vectors that are not finite; the message counts them."""
  finite = np.ones(len(vectors), bool)
  for start in range(0, len(vectors), _ROWS):
    some = slice(start, start + _ROWS)
    finite[some] = np.isfinite(vectors[some]).all(axis=1)
  bad = np.flatnonzero(~finite)
  if len(bad):
    raise errors.InputError(
      f"{path}: {len(bad)} of {len(vectors)} vectors are not finite (or too"
      f" large for float32), the first in row {first + bad[0]} (id"
      f" {ids[bad[0]]!r}): compute them again, or leave them out"
    )


def _of_pickle(path: pathlib.Path, found: Any) -> tuple[Sequence, np.ndarray]:
  if isinstance(found, list) and found:
    if all(isinstance(e, tuple | list) and len(e) == 2 for e in found):
      rows = [_vector(vector) for _, vector in found]
      kinds = {None if row is None else (row.shape, row.dtype) for row in rows}
      if None not in kinds and len({shape for shape, _ in kinds}) == 1:
        return [i for i, _ in found], np.stack(rows)
  if isinstance(found, tuple | list) and len(found) == 2:
    first, second = (_real(part) for part in found)
    if isinstance(second, np.ndarray) and second.ndim == 2:
      if _is_ids(first):
        return list(first), second  # Contriever
    elif isinstance(first, np.ndarray) and first.ndim == 2:
      if _is_ids(second):
        return list(second), first  # Tevatron
  raise errors.InputError(
    f"{path} has neither a list of (id, vector) nor a pair of ids and an"
    " array of vectors: see docs/reference/formats.md"
  )


def _real(value: Any) -> Any:
  """The NumPy array of a stand-in; other values unchanged."""
  return value.real if isinstance(value, vector_pickles.Array) else value


def _vector(value: Any) -> np.ndarray | None:
  """A vector, from an array or a list of floats; None for anything else."""
  value = _real(value)
  if isinstance(value, np.ndarray) and value.ndim == 1:
    return value
  if isinstance(value, list | tuple) and {type(x) for x in value} == {float}:
    return np.array(value)
  return None


def _is_ids(value: Any) -> bool:
  if isinstance(value, np.ndarray):
    return value.ndim == 1
  return isinstance(value, list | tuple)


def _identifier(path: pathlib.Path, row: int, value: Any) -> str:
  """A passage's id without its prefix; `InputError` if it cannot be stored."""
  try:
    if isinstance(value, bytes):
      value = value.decode()
    if type(value) is int or isinstance(value, str | np.integer):
      name = str(value).removeprefix(WIKI)
      if len(name.encode()) <= _LONGEST_ID and "\0" not in name:
        return name
  except ValueError:  # not UTF-8, or too many digits to print
    pass
  shown = f"a {type(value).__name__}"  # its content may be infinite
  if isinstance(value, str | bytes):
    shown = repr(value[:80])
  elif value is None or isinstance(value, float | bool):
    shown = repr(value)
  raise errors.InputError(
    f"{path}, row {row}: {shown} is not a passage id: it must be a text of at"
    f" most {_LONGEST_ID} bytes, or a number"
  )
