"""Vectors in the formats of other libraries, out and in.

  dpr        a pickle per shard: list of (id, float32 [dim]); ids may begin
             with "wiki:"
  tevatron   a pickle per shard: (float32 [rows, dim], list of ids)
  contriever a pickle per shard: (list of ids, float32 [rows, dim])
  npy        vectors-*.npy (float32) and ids-*.txt, an id a line

Pickles can run any code.  They are read with an unpickler that knows how to
make NumPy arrays, lists, tuples, strings and numbers, and nothing else.
"""

import io
import pathlib
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from dpr_jax import errors, parts, progress
from dpr_jax import workdir as workdir_lib
from dpr_jax.retrieval import vectors as vectors_lib

FORMATS = ("dpr", "tevatron", "contriever", "npy")
WIKI = "wiki:"
_IDS_SUFFIX = ".txt"
# What NumPy's own pickles name, in both of its versions; all of it harmless.
_ALLOWED = {
  (module, name)
  for package in ("numpy.core", "numpy._core")
  for module, name in (
    (f"{package}.multiarray", "_reconstruct"),
    (f"{package}.multiarray", "scalar"),
    (f"{package}.numeric", "_frombuffer"),
  )
} | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}


class _Unpickler(pickle.Unpickler):
  """Builds NumPy arrays; refuses every other name."""

  def find_class(self, module: str, name: str) -> Any:
    """The function or class that a pickle asks for."""
    if (module, name) not in _ALLOWED:
      raise pickle.UnpicklingError(
        f"it asks for {module}.{name}, which no file of vectors needs"
      )
    return super().find_class(module, name)


def export(
  source: vectors_lib.Vectors, form: str, folder: pathlib.Path
) -> list[pathlib.Path]:
  """Writes vectors, a file or two per shard of ours.

  Args:
    source: what is written; a shard at a time is in memory.
    form: one of `FORMATS`.
    folder: where to.

  Returns:
    The files.
  """
  if form not in FORMATS:
    raise errors.InputError(
      f"--format={form}: must be one of {', '.join(FORMATS)}"
    )
  folder.mkdir(parents=True, exist_ok=True)
  written = []
  with progress.Progress(len(source), f"export {form}", "passages") as bar:
    for number, shard in enumerate(source.manifest["shards"]):
      rows = np.arange(shard["first_row"], shard["first_row"] + shard["rows"])
      ids, vectors = source.ids(rows), source.take(rows)
      if form == "npy":
        path = folder / f"vectors-{number:05d}.npy"
        parts.write_array(path, vectors)
        names = folder / f"ids-{number:05d}{_IDS_SUFFIX}"
        _write(names, "".join(f"{i}\n" for i in ids).encode())
        written += [path, names]
      else:
        path = folder / f"passages_{number}.pkl"
        _write(path, pickle.dumps(_pickled(form, ids, vectors), protocol=4))
        written.append(path)
      bar.update(len(rows))
  logging.info("export: %d files in %s", len(written), folder)
  return written


def _pickled(form: str, ids: list[str], vectors: np.ndarray) -> Any:
  if form == "dpr":
    prefixed = [i if i.startswith(WIKI) else WIKI + i for i in ids]
    return list(zip(prefixed, vectors, strict=True))
  return (vectors, ids) if form == "tevatron" else (ids, vectors)


def _write(path: pathlib.Path, data: bytes) -> None:
  try:
    with workdir_lib.replace_file(path) as temporary:
      temporary.write_bytes(data)
  except OSError as error:
    raise errors.InputError(f"cannot write {path}: {error.strerror}") from error


def import_(source: pathlib.Path, folder: pathlib.Path) -> int:
  """Reads vectors of any of the formats into shards of ours.

  What a file is, is seen by what it holds.  The prefix "wiki:" of ids is taken
  off.

  Args:
    source: a file, or a folder of files, which are taken in order of the
      numbers in their names.
    folder: gets shards and manifest, as `embed` leaves them.

  Returns:
    How many vectors there are.

  Raises:
    InputError: a file is none of the formats, asks for code, or does not fit
      the others.
  """
  workdir_lib.refuse_inside("--from", source, folder)
  files = _files(source)
  stage = workdir_lib.Stage(
    vectors_lib.STAGE,
    folder,
    {"rows_per_shard": 0, "dtype": "float32"},
    {path.name: workdir_lib.fingerprint_file(path) for path in files},
  )
  shards = parts.Parts(stage, len(files), vectors_lib.PATTERNS)
  if shards.begin():
    return workdir_lib.read_record(stage.manifest)["count"]
  listed, count, dim = [], 0, None
  for number, path in enumerate(files):
    ids, vectors = read(path)
    if dim is not None and vectors.shape[1] != dim:
      raise errors.InputError(
        f"{path}: vectors of width {vectors.shape[1]}, those before have {dim}"
      )
    dim = vectors.shape[1]
    names = vectors_lib.names(number)
    arrays = (vectors, np.array([i.encode() for i in ids]))
    written = {
      name: parts.write_array(folder / name, array)
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
  records = shards.collect()
  shards.close(
    records or [],
    {"passages": count},
    model=f"imported {workdir_lib.fingerprint(stage.inputs)}",
    dim=dim,
    dtype="float32",
    count=count,
    shards=listed,
  )
  logging.info("import: %d vectors of width %d in %s", count, dim, folder)
  return count


def _files(source: pathlib.Path) -> list[pathlib.Path]:
  """The files of vectors, in order."""
  if source.is_dir():
    found = [
      path
      for path in source.iterdir()
      if path.is_file() and path.suffix in (".npy", ".pkl", ".pickle", "")
    ]
    found.sort(key=lambda path: _numbers(path.name))
  else:
    found = [source]
  if not found:
    raise errors.InputError(f"{source} holds no .pkl and no .npy")
  return found


def _numbers(name: str) -> list[Any]:
  """For sorting: `passages_10` comes after `passages_9`."""
  text = "".join(c if c.isdigit() else " " for c in name)
  return [*map(int, text.split()), name]


def read(path: pathlib.Path) -> tuple[list[str], np.ndarray]:
  """Ids and float32 vectors of one file.

  Raises:
    InputError: it is none of the formats, or asks for code.
  """
  if path.suffix == ".npy":
    try:
      vectors = np.load(path, allow_pickle=False)
      names = path.with_name(path.stem.replace("vectors", "ids") + _IDS_SUFFIX)
      ids = names.read_text(encoding="utf-8").split("\n")[:-1]
    except (OSError, ValueError) as error:
      raise errors.InputError(f"cannot read {path}: {error}") from error
  else:
    try:
      found = _Unpickler(io.BytesIO(path.read_bytes())).load()
    except OSError as error:
      raise errors.InputError(
        f"cannot read {path}: {error.strerror}"
      ) from error
    except Exception as error:  # a damaged pickle can raise anything
      raise errors.InputError(f"{path} is refused: {error}") from error
    ids, vectors = _of_pickle(path, found)
  vectors = np.asarray(vectors)
  if vectors.ndim != 2 or vectors.dtype.kind != "f" or len(vectors) != len(ids):
    raise errors.InputError(
      f"{path}: {len(ids)} ids with an array {vectors.dtype}{vectors.shape}:"
      " expected floats, [ids, dim]"
    )
  return (
    [_identifier(path, i).removeprefix(WIKI) for i in ids],
    vectors.astype(np.float32),
  )


def _of_pickle(path: pathlib.Path, found: Any) -> tuple[Sequence, np.ndarray]:
  if isinstance(found, list) and found:
    if all(isinstance(e, tuple | list) and len(e) == 2 for e in found):
      widths = {np.shape(vector) for _, vector in found}
      if len(widths) == 1:
        return [i for i, _ in found], np.stack([v for _, v in found])
  if isinstance(found, tuple | list) and len(found) == 2:
    first, second = found
    if isinstance(second, np.ndarray) and second.ndim == 2:
      return list(first), second  # Contriever
    if isinstance(first, np.ndarray) and first.ndim == 2:
      return list(second), first  # Tevatron
  raise errors.InputError(
    f"{path} holds neither a list of (id, vector) nor a pair of ids and an"
    " array of vectors"
  )


def _identifier(path: pathlib.Path, value: Any) -> str:
  if isinstance(value, bytes):
    return value.decode("utf-8")
  if isinstance(value, str | int | np.integer | np.str_):
    return str(value)
  raise errors.InputError(f"{path}: {value!r} is no passage id")
