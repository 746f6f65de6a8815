"""FAISS on the host's CPUs: passage vectors become an index to search.

In come the vectors of `embeddings/`, block by block, out comes
`index/<factory>/index.faiss` with its manifest, and from it the rows with the
largest inner product.  Row i of the index is passage i.

FAISS files carry no checksum and are parsed by C++ code that trusts them: the
sha256 of the manifest is compared first, and FAISS is told that no array in
the file can be larger than the file.
"""

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import faiss
import ml_collections
import numpy as np
from absl import logging

from dpr_jax import errors
from dpr_jax import workdir as workdir_lib
from dpr_jax.retrieval import vectors as vectors_lib

FILE = "index.faiss"
METRIC = "inner_product"
_BLOCK = 16_384  # vectors handed to FAISS at once
_TRAINING_SAMPLE = 262_144  # vectors that a quantiser is trained on, at most
_TIES = 16  # equal scores at the end of a list that are put in order
_LOOP_LIMIT = 100_000_000  # inverted lists, levels and the like in one file
_FOLDER_NAME = re.compile(r"[\w(),+\-\[\]=]+")


@runtime_checkable
class Vectors(Protocol):
  """What an index needs of `vectors.Vectors`."""

  manifest: dict[str, Any]
  dim: int

  def __len__(self) -> int: ...

  def blocks(self, rows: int) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, float32 [rows, dim]), in order."""
    ...


def index(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  *,
  model: str = "dense",
  overwrite: bool = False,
) -> None:
  """Writes `index/<factory>` from the vectors of `model`.

  Args:
    config: reads `index.factory`, a string for FAISS's index factory.
    workdir: holds `embeddings/passages` (or `-start`, for "dense-start").
    model: which towers' vectors, "dense" or "dense-start".
    overwrite: also where the index is current.

  Raises:
    InputError: no vectors, or a factory string that does not fit them.
  """
  factory = check_factory(config.index.factory)
  source = workdir.embeddings(model)
  embeddings = workdir_lib.read_manifest(source, "embed")
  stage = workdir_lib.Stage(
    name="index",
    folder=workdir.index(factory, model),
    config={"index": {"factory": factory}},
    inputs={
      "embeddings": workdir_lib.manifest_fingerprint(source, "embed"),
      **workdir_lib.dataset_inputs(workdir, "passages"),
    },
  )
  if stage.is_current(overwrite):
    return
  check_origin(embeddings, stage.inputs["passages"], source)
  vectors = vectors_lib.open_vectors(source)
  built = build_index(vectors, factory)
  with workdir_lib.replace_folder(stage.folder) as temporary:
    faiss.write_index(built, str(temporary / FILE))
    stage.finish(
      {"vectors": built.ntotal},
      folder=temporary,
      files={FILE: workdir_lib.fingerprint_file(temporary / FILE)},
      factory=factory,
      metric=METRIC,
      count=built.ntotal,
      dim=built.d,
      model=vectors.manifest["model"],
    )
  logging.info(
    "index: %s over %d vectors of %d", factory, built.ntotal, built.d
  )


def check_factory(factory: str) -> str:
  """Returns `factory`; `InputError` where it cannot name a folder."""
  if not _FOLDER_NAME.fullmatch(factory):
    raise errors.InputError(
      f"config.index.factory={factory!r}: must be a FAISS factory string, as"
      " Flat, HNSW32 or IVF1024,Flat"
    )
  return factory


def check_origin(
  embeddings: dict[str, Any], passages: str, source: pathlib.Path
) -> None:
  """`InputError` where vectors are not of the workdir's passages."""
  if embeddings.get("inputs", {}).get("passages") != passages:
    raise errors.InputError(
      f"{source}: these vectors are not of the passages in this workdir's"
      " data; run `dpr-jax embed` again"
    )


def build_index(vectors: Vectors, factory: str) -> faiss.Index:
  """A FAISS index over all vectors, for the inner product.

  Indexes that learn (IVF, PQ, ...) are trained on evenly spaced rows.

  Args:
    vectors: read in blocks; only the index itself is held in memory.
    factory: a string for FAISS's index factory.

  Raises:
    InputError: no vectors, not finite ones, or a factory string that FAISS
      does not know or that does not fit the vectors' number or width.
  """
  count, dim = len(vectors), vectors.dim
  if not count or not dim:
    raise errors.InputError(
      f"index: {count} vectors of width {dim}; run `dpr-jax embed` first"
    )
  try:
    built = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    if not built.is_trained:
      built.train(_sample(vectors, _TRAINING_SAMPLE))
    for first_row, block in _finite_blocks(vectors):
      if first_row != built.ntotal:
        raise ValueError(f"block at row {first_row} after {built.ntotal} rows")
      built.add(block)
  except RuntimeError as error:  # what faiss raises for everything
    raise errors.InputError(
      f"config.index.factory={factory!r} for {count} vectors of width {dim}:"
      f" {_reason(error)}"
    ) from error
  if built.ntotal != count:
    raise ValueError(f"{built.ntotal} vectors in the index of {count}")
  return built


def _finite_blocks(vectors: Vectors) -> Iterator[tuple[int, np.ndarray]]:
  for first_row, block in vectors.blocks(_BLOCK):
    block = np.ascontiguousarray(block, np.float32)
    finite = np.isfinite(block).all(axis=1)
    if not finite.all():
      row = first_row + int(np.argmin(finite))
      raise errors.InputError(
        f"index: the vector of passage row {row} is not finite (NaN or"
        " infinite): the model is broken; train and embed again"
      )
    yield first_row, block


def _sample(vectors: Vectors, size: int) -> np.ndarray:
  """At most `size` evenly spaced rows: the same for the same vectors."""
  count = len(vectors)
  rows = np.linspace(0, count - 1, min(size, count)).round().astype(np.int64)
  parts = []
  for first_row, block in _finite_blocks(vectors):
    start, stop = np.searchsorted(rows, [first_row, first_row + len(block)])
    parts.append(block[rows[start:stop] - first_row])
  return np.concatenate(parts)


def _reason(error: RuntimeError) -> str:
  """FAISS's message without the C++ function and source line before it."""
  return re.sub(r"^Error in .*? at \S+:\d+: ", "", str(error)).strip()


def load_index(folder: str | os.PathLike) -> tuple[faiss.Index, dict[str, Any]]:
  """The index in `folder` and its manifest, after all checks.

  Raises:
    InputError: there is none, its bytes are not those written, or it does not
      hold what the manifest says.
  """
  folder = pathlib.Path(folder)
  manifest = workdir_lib.read_manifest(folder, "index")
  if FILE not in manifest.get("files", {}):
    raise errors.InputError(
      f"{folder / workdir_lib.MANIFEST} does not list {FILE}: run `dpr-jax"
      " index --overwrite`"
    )
  workdir_lib.check_files(folder, manifest)  # before FAISS sees a byte of it
  path = folder / FILE
  try:
    with _deserialization_limits(path.stat().st_size):
      loaded = faiss.read_index(str(path))
  except RuntimeError as error:
    raise errors.InputError(
      f"{path} is not a FAISS index: {_reason(error)}; run `dpr-jax index"
      " --overwrite`"
    ) from error
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
  return loaded, manifest


@contextlib.contextmanager
def _deserialization_limits(size: int) -> Iterator[None]:
  """No array of a file is larger than the file; the limits are global."""
  old_bytes = faiss.get_deserialization_vector_byte_limit()
  old_loops = faiss.get_deserialization_loop_limit()
  faiss.set_deserialization_vector_byte_limit(size)
  faiss.set_deserialization_loop_limit(_LOOP_LIMIT)
  try:
    yield
  finally:
    faiss.set_deserialization_vector_byte_limit(old_bytes)
    faiss.set_deserialization_loop_limit(old_loops)


def search_index(
  loaded: faiss.Index, questions: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
  """The rows with the largest inner products.

  Equal scores stand in the order of their rows, also where the list is cut
  off (FAISS leaves it open there: a few more hits are asked for and sorted).
  Only where more than 16 other passages have the very score of the last hit,
  which of them are in the list is FAISS's own choice.

  Args:
    loaded: from `build_index` or `load_index`.
    questions: float32 [questions, dim].
    k: hits wanted; columns are min(k, vectors in the index).

  Returns:
    int64 rows and float32 scores, both [questions, columns], best first; row
    -1 with score 0 after the last hit, where an approximate index found fewer.
  """
  questions = np.ascontiguousarray(questions, np.float32)
  scores, rows = loaded.search(questions, min(k + _TIES, loaded.ntotal))
  return _in_order(rows, scores, min(k, loaded.ntotal))


def search_vectors(
  vectors: Vectors, questions: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
  """As `search_index` of a Flat index, without one: a block at a time.

  Memory is that of the questions, their hits and one block, however many
  vectors there are.

  Args:
    vectors: read once, in blocks.
    questions: float32 [questions, dim].
    k: hits wanted; columns are min(k, vectors).

  Returns:
    As of `search_index`.

  Raises:
    InputError: a vector is not finite.
  """
  questions = np.ascontiguousarray(questions, np.float32)
  wanted = min(k + _TIES, len(vectors))
  best = faiss.ResultHeap(len(questions), wanted, keep_max=True)
  for first_row, block in _finite_blocks(vectors):
    scores, rows = faiss.knn(
      questions,
      block,
      min(wanted, len(block)),
      metric=faiss.METRIC_INNER_PRODUCT,
    )
    best.add_result(scores, rows + first_row)
  best.finalize()
  return _in_order(best.I, best.D, min(k, len(vectors)))


def _in_order(
  rows: np.ndarray, scores: np.ndarray, columns: int
) -> tuple[np.ndarray, np.ndarray]:
  """The first columns by score, then by row; those without a hit last."""
  scores = np.where(rows < 0, -np.inf, scores).astype(np.float32)
  order = np.lexsort((rows, -scores), axis=-1)[:, :columns]
  rows = np.take_along_axis(rows, order, axis=-1)
  scores = np.take_along_axis(scores, order, axis=-1)
  return rows, np.where(rows < 0, np.float32(0), scores)
