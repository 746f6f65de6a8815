"""Exports and imports vectors in the formats of other libraries.

  dpr        a pickle per shard: list of (id, float32 [dim]); ids may begin
             with "wiki:"
  tevatron   a pickle per shard: (float32 [rows, dim], list of ids)
  contriever a pickle per shard: (list of ids, float32 [rows, dim])
  npy        vectors-*.npy (float32) and ids-*.txt, one id per line

Pickles can run any code, so `vector_pickles.py` reads them: it creates only
arrays, lists, tuples, texts and numbers.
"""

import io
import pathlib
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from dpr_jax.core import errors, progress, sharded_output
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.embedding import pickle_writer, vector_pickles, vector_shards
from dpr_jax.models import model_files

FORMATS = ("dpr", "tevatron", "contriever", "npy")
WIKI = "wiki:"
_IDS_SUFFIX = ".txt"
_ZIP_MAGIC = b"PK\x03\x04"
_LONGEST_ID = 1000  # bytes; all ids of a file take the width of the longest
_ROWS = 10_000  # rows checked at once


def export(
  source: vector_shards.Vectors, form: str, folder: pathlib.Path
) -> list[pathlib.Path]:
  """Writes vectors, one or two files per shard.

  Args:
    source: the vectors; one shard at a time is in memory.
    form: one of `FORMATS`.
    folder: output folder; an earlier export in it is replaced.

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
      rows = np.arange(shard["first_row"], shard["first_row"] + shard["rows"])
      ids, vectors = source.ids(rows), source.take(rows)
      if form == "npy":
        name = f"vectors-{number:05d}.npy"
        files[name] = sharded_output.write_array(temporary / name, vectors)
        name = f"ids-{number:05d}{_IDS_SUFFIX}"
        data = "".join(f"{i}\n" for i in ids).encode()
        (temporary / name).write_bytes(data)
      else:
        name = f"passages_{number}.pkl"
        with open(temporary / name, "wb") as file:
          _write_pickle(file, form, ids, vectors)
      files[name] = workdir_lib.fingerprint_file(temporary / name)
      bar.update(len(rows))
    workdir_lib.write_record(
      temporary / model_files.FILE,
      {"kind": "embeddings", "format": form, "files": files},
    )
  logging.info("export: %d files in %s", len(files), folder)
  return [folder / name for name in files]


def _write_pickle(
  file: io.BufferedIOBase, form: str, ids: list[str], vectors: np.ndarray
) -> None:
  if form == "dpr":
    prefixed = [i if i.startswith(WIKI) else WIKI + i for i in ids]
    pickle_writer.write_pairs(file, prefixed, vectors)
  else:
    pickle_writer.write_pair(file, ids, vectors, ids_first=form == "contriever")


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
  workdir_lib.refuse_inside("--from", source, folder)
  _check_export(source)
  files = _files(source)
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
    listed.append(
      {
        "file": names[0],
        "ids": names[1],
        "first_row": count,
        "rows": len(ids),
        "sha256": written[names[0]],
      }
    )
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


def _files(source: pathlib.Path) -> list[pathlib.Path]:
  """The files of vectors, in order."""
  if source.is_dir():
    paths = [
      path
      for path in source.iterdir()
      if path.is_file() and path.suffix in (".npy", ".pkl", ".pickle", "")
    ]
    paths.sort(key=lambda path: _numbers(path.name))
  else:
    paths = [source]
  if not paths:
    raise errors.InputError(
      f"{source} has no .pkl and no .npy: give the folder of the vectors"
    )
  return paths


def _numbers(name: str) -> tuple[list[int], str]:
  """Key for sorting: `passages_10` comes after `passages_9`."""
  text = "".join(c if c.isdecimal() else " " for c in name)
  return [int(number) for number in text.split()], name


def read(path: pathlib.Path) -> tuple[list[str], np.ndarray]:
  """Ids and float32 vectors of one file.

  Raises:
    InputError: the file has none of the formats, would run code, is damaged, or
      a vector is not finite.
  """
  try:
    with open(path, "rb") as file:
      if file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC:
        raise errors.InputError(
          f"{path} is a .npz: unpack its .npy and give it"
        )
    if path.suffix == ".npy":
      ids, vectors = _read_npy(path)
    else:
      ids, vectors = _of_pickle(path, vector_pickles.load(path))
  except OSError as error:
    raise errors.InputError(
      f"cannot read {error.filename or path}: {error.strerror or error}"
    ) from error
  except vector_pickles.Refused as error:
    raise errors.InputError(f"{path} is refused: {error}") from error
  if vectors.ndim != 2 or vectors.dtype.kind != "f" or len(vectors) != len(ids):
    raise errors.InputError(
      f"{path}: {len(ids)} ids with an array {vectors.dtype}{vectors.shape}:"
      " expected floats, [ids, dim]"
    )
  if not vectors.shape[1]:
    raise errors.InputError(f"{path}: vectors of width 0: export them again")
  names = [_identifier(path, row, name) for row, name in enumerate(ids)]
  with np.errstate(over="ignore"):  # values beyond float32 become infinite
    vectors = vectors.astype(np.float32, copy=False)
  _check_finite(path, names, vectors)
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
  names = path.with_name(path.stem.replace("vectors", "ids") + _IDS_SUFFIX)
  try:
    return names.read_text(encoding="utf-8").split("\n")[:-1], vectors
  except UnicodeDecodeError as error:
    raise errors.InputError(f"{names} is not UTF-8: {error}") from error


def _check_finite(
  path: pathlib.Path, ids: Sequence[str], vectors: np.ndarray
) -> None:
  """Refuses vectors that are not finite; the message counts them."""
  finite = np.ones(len(vectors), bool)
  for first in range(0, len(vectors), _ROWS):
    some = slice(first, first + _ROWS)
    finite[some] = np.isfinite(vectors[some]).all(axis=1)
  bad = np.flatnonzero(~finite)
  if len(bad):
    raise errors.InputError(
      f"{path}: {len(bad)} of {len(vectors)} vectors are not finite (or too"
      f" large for float32), the first in row {bad[0]} (id"
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
