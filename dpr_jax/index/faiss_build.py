"""Builds a FAISS index in memory: creates, trains and fills it.

Input: a factory string and the vectors of the corpus, block by block.  Output:
an index whose scores are inner products, whatever its type.  FAISS does not
guarantee that: some types ignore the metric, some transformations do not
preserve inner products.  These are corrected here, or refused.

Memory during a build is the finished index, the training sample (freed before
filling) and one block: arrays are allocated with their final size, because
arrays that grow are copied and end up to twice as large.
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import faiss
import ml_collections
import numpy as np
from absl import logging
from jaxtyping import Float, Int

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors, progress

METRIC = "inner_product"
BLOCK = 16_384  # vectors handed to FAISS at once
DPR = "dpr"  # name of the paper's index
PRESETS = {DPR: {"factory": "HNSW512", "ef_construction": 200}}
_FOLDER_NAME = re.compile(r"[\w(),+\-\[\]=]+")
_HNSW_PQ = re.compile(r"HNSW(\d+)[_,]PQ(\d+)(?:x(\d+))?")
_INNER = ("index", "base_index", "refine_index", "quantizer", "storage")


@runtime_checkable
class Vectors(Protocol):
  """Interface of `vector_shards.Vectors` and of a benchmark's file."""

  manifest: dict[str, Any]
  dim: int

  def __len__(self) -> int: ...

  def blocks(self, rows: int) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, float32 [rows, dim]), in order."""
    ...

  def take(self, rows: np.ndarray) -> np.ndarray:
    """Float32 vectors of some rows; other rows are not read."""
    ...


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of an index: all that it depends on, besides its vectors.

  Attributes:
    factory: string for FAISS's index factory.
    ef_construction: HNSW's search depth while building.
    train_sample: maximum number of vectors to train quantisers on.
    threads: threads while building; 0 = all.  It hardly changes the index.
  """

  factory: str
  ef_construction: int = 200
  train_sample: int = 262_144
  threads: int = 0

  @classmethod
  def of(cls, config: ml_collections.ConfigDict) -> "Settings":
    """Settings from `config.index`; `InputError` for an invalid value."""
    index = config.index
    settings = cls(
      check_factory(index.factory),
      int(
        config_lib.at_least("index.ef_construction", index.ef_construction, 1)
      ),
      int(config_lib.at_least("index.train_sample", index.train_sample, 1)),
      int(config_lib.at_least("index.threads", index.threads, 0)),
    )
    return dataclasses.replace(settings, **PRESETS.get(settings.factory, {}))

  def plain(self) -> dict[str, Any]:
    """Settings for manifests: with another value it is another index."""
    values = dataclasses.asdict(self)
    values.pop("threads")
    return values


def check_factory(factory: str) -> str:
  """Returns `factory`; `InputError` where it cannot name a folder."""
  if not _FOLDER_NAME.fullmatch(factory):
    raise errors.InputError(
      f"config.index.factory={factory!r}: must be a FAISS factory string, such"
      f" as Flat, HNSW32 or IVF1024,Flat, or {DPR!r}"
    )
  return factory


def build_index(
  vectors: Vectors,
  settings: Settings,
  *,
  rows: range | None = None,
  trained: faiss.Index | None = None,
) -> faiss.Index:
  """Builds a FAISS index over vectors, for the inner product.

  Args:
    vectors: vectors, read in blocks; only the index is kept in memory.
    settings: settings of the index.
    rows: contiguous rows of the vectors; None = all.
    trained: empty, trained index from `train_index`; None = train one.

  Raises:
    InputError: there are no vectors, one is not finite, or FAISS does not
      accept the factory string for this number or width of vectors.
  """
  rows = range(len(vectors)) if rows is None else rows
  built = train_index(vectors, settings) if trained is None else trained
  try:
    _fill(built, vectors, rows)
  except RuntimeError as error:  # FAISS raises it for all errors
    raise _refused(settings, vectors, error) from error
  if built.ntotal != len(rows):
    raise ValueError(f"{built.ntotal} vectors in the index of {len(rows)}")
  return built


def train_index(vectors: Vectors, settings: Settings) -> faiss.Index:
  """An empty index, trained on evenly spaced rows if its type needs that."""
  count, dim = len(vectors), vectors.dim
  if not count or not dim:
    raise errors.InputError(
      f"index: {count} vectors of width {dim}; run `dpr-jax embed` first"
    )
  try:
    made = make_index(dim, settings)
    if not made.is_trained:
      rows = sample(vectors, settings.train_sample)
      logging.info(
        "index: training %s on %d of %d vectors",
        settings.factory,
        len(rows),
        count,
      )
      _train(made, rows)
  except RuntimeError as error:
    raise _refused(settings, vectors, error) from error
  return made


def make_index(dim: int, settings: Settings) -> faiss.Index:
  """An empty, untrained index whose scores will be inner products.

  Raises:
    InputError: the type or a transformation does not support inner products.
    RuntimeError: FAISS does not accept the string.
  """
  match = _HNSW_PQ.fullmatch(settings.factory)
  if match:  # FAISS's factory ignores the metric and makes it for L2
    links, parts, bits = match.groups()
    made = faiss.IndexHNSWPQ(
      dim, int(parts), int(links), int(bits or 8), faiss.METRIC_INNER_PRODUCT
    )
  else:
    made = faiss.index_factory(
      dim, settings.factory, faiss.METRIC_INNER_PRODUCT
    )
  for layer in layers(made):
    if isinstance(layer, faiss.IndexIDMap):
      raise errors.InputError(
        f"config.index.factory={settings.factory!r}: IDMap is not needed, row i"
        " of the index is passage i: leave it out"
      )
    if layer.metric_type != faiss.METRIC_INNER_PRODUCT:
      raise errors.InputError(
        f"config.index.factory={settings.factory!r}: FAISS's"
        f" {type(layer).__name__} is for L2 distances, not for the inner"
        " product; use another type"
      )
    if isinstance(layer, faiss.IndexPreTransform):
      for transform in _transforms(layer):
        _check_transform(transform, settings.factory)
    if isinstance(layer, faiss.IndexHNSW):
      layer.hnsw.efConstruction = settings.ef_construction
    if getattr(layer, "do_polysemous_training", False):
      # It sorts codes for search by Hamming distance, which is not used here,
      # and takes far longer than the rest of the training.
      layer.do_polysemous_training = False
  return made


def layers(index: faiss.Index) -> Iterator[faiss.Index]:
  """Yields an index and all indexes inside it, each with its actual type."""
  index = faiss.downcast_index(index)
  yield index
  for name in _INNER:
    inner = getattr(index, name, None)
    if isinstance(inner, faiss.Index):
      yield from layers(inner)


def _transforms(index: faiss.IndexPreTransform) -> list:
  return [
    faiss.downcast_VectorTransform(index.chain.at(i))
    for i in range(index.chain.size())
  ]


def _check_transform(transform, factory: str) -> None:
  """`InputError` for a transformation that changes inner products."""
  kept = isinstance(
    transform, faiss.OPQMatrix | faiss.RandomRotationMatrix | faiss.PCAMatrix
  )
  if not kept or getattr(transform, "eigen_power", 0) != 0:
    raise errors.InputError(
      f"config.index.factory={factory!r}: {type(transform).__name__} (with"
      " whitening, where it is a PCA) does not keep inner products; OPQ, RR and"
      " PCA do; for unit vectors set config.model.normalize"
    )


def _train(index: faiss.Index, vectors: Float[np.ndarray, "rows dim"]) -> None:
  """As `index.train`, but a PCA does not subtract the mean.

  Subtracting the mean would add a term to every inner product that depends on
  the passage.
  """
  index = faiss.downcast_index(index)
  if isinstance(index, faiss.IndexPreTransform):
    for transform in _transforms(index):
      if not transform.is_trained:
        transform.train(vectors)
      if isinstance(transform, faiss.PCAMatrix):
        transform.have_bias = False
      vectors = transform.apply(vectors)
    _train(index.index, vectors)
  elif isinstance(index, faiss.IndexRefine):
    _train(index.base_index, vectors)
    _train(index.refine_index, vectors)
  elif not index.is_trained:
    index.train(vectors)
  index.is_trained = True


def _fill(index: faiss.Index, vectors: Vectors, rows: range) -> None:
  lists = _reserve(index, vectors, rows)
  with progress.Progress(len(rows), "index", "vectors") as bar:
    for first_row, block in finite_blocks(vectors, rows):
      if first_row - rows.start != index.ntotal:
        raise ValueError(f"block at row {first_row} after {index.ntotal} rows")
      start = first_row - rows.start
      some = None if lists is None else lists[start : start + len(block)]
      _add(index, block, some)
      bar.update(len(block))


def _add(
  index: faiss.Index,
  block: Float[np.ndarray, "rows dim"],
  lists: Int[np.ndarray, " rows"] | None,
) -> None:
  """As `index.add`, with the inverted list of each row, if it is known."""
  index = faiss.downcast_index(index)
  if lists is None:
    index.add(block)
  elif isinstance(index, faiss.IndexPreTransform):
    for transform in _transforms(index):
      block = transform.apply(block)
    _add(index.index, block, lists)
    index.ntotal = index.index.ntotal
  elif isinstance(index, faiss.IndexRefine):
    _add(index.base_index, block, lists)
    index.refine_index.add(block)
    index.ntotal = index.refine_index.ntotal
  else:
    wide = np.ascontiguousarray(lists, np.int64)
    index.add_core(
      len(block), faiss.swig_ptr(block), None, faiss.swig_ptr(wide)
    )


def _reserve(
  index: faiss.Index, vectors: Vectors, rows: range
) -> np.ndarray | None:
  """Allocates the arrays of an index with their final size.

  Returns:
    The inverted list of every row, int32, if the index has lists; else None.
  """
  count = len(rows)
  assigned = None
  for layer in layers(index):
    if isinstance(layer, faiss.IndexHNSW):
      _reserve_links(layer.hnsw, count)
    elif isinstance(layer, faiss.IndexIVF):
      lists = faiss.downcast_InvertedLists(layer.invlists)
      if type(lists) is faiss.ArrayInvertedLists:
        assigned = _assign(index, layer, vectors, rows)
        sizes = np.bincount(assigned, minlength=layer.nlist)
        for number, size in enumerate(sizes.tolist()):
          lists.resize(number, size)
          lists.resize(number, 0)  # keeps the allocated memory
    elif type(getattr(layer, "codes", None)) is faiss.MaybeOwnedVectorUInt8:
      if not layer.ntotal:  # a coarse quantiser is already filled
        layer.codes.resize(count * layer.code_size)
        layer.codes.resize(0)
  return assigned


def _reserve_links(hnsw: faiss.HNSW, count: int) -> None:
  """Allocates the graph links of `count` vectors at the expected levels."""
  if hnsw.levels.size():  # a coarse quantiser is already filled
    return
  links = links_per_vector(hnsw) * count
  hnsw.neighbors.resize(int(links * 1.01) + 1024)
  hnsw.neighbors.resize(0)


def links_per_vector(hnsw: faiss.HNSW) -> float:
  """Expected number of graph links of a vector, over all levels."""
  shares = faiss.vector_to_array(hnsw.assign_probas)
  upto = faiss.vector_to_array(hnsw.cum_nneighbor_per_level)
  return float(sum(shares * upto[1 : len(shares) + 1]))


def _assign(
  index: faiss.Index, ivf: faiss.IndexIVF, vectors: Vectors, rows: range
) -> np.ndarray:
  """The inverted list of each row, as int32."""
  chain = [
    transform
    for layer in layers(index)
    if isinstance(layer, faiss.IndexPreTransform)
    for transform in _transforms(layer)
  ]
  lists = np.empty(len(rows), np.int32)
  with progress.Progress(len(rows), "index: lists", "vectors") as bar:
    for first_row, block in finite_blocks(vectors, rows):
      for transform in chain:
        block = transform.apply(block)
      start = first_row - rows.start
      lists[start : start + len(block)] = ivf.quantizer.assign(block, 1)[:, 0]
      bar.update(len(block))
  return lists


def finite_blocks(
  vectors: Vectors, rows: range | None = None
) -> Iterator[tuple[int, np.ndarray]]:
  """Yields (first row, float32 block) over contiguous rows; checks the values.

  Raises:
    InputError: a vector is not finite.
  """
  whole = rows is None or len(rows) == len(vectors)
  blocks = vectors.blocks(BLOCK) if whole else _part(vectors, rows)
  for first_row, block in blocks:
    block = np.ascontiguousarray(block, np.float32)
    finite = np.isfinite(block).all(axis=1)
    if not finite.all():
      row = first_row + int(np.argmin(finite))
      raise errors.InputError(
        f"index: the vector of passage row {row} is not finite (NaN or"
        " infinite): the model is broken; train and embed again"
      )
    yield first_row, block


def _part(vectors: Vectors, rows: range) -> Iterator[tuple[int, np.ndarray]]:
  for first in range(rows.start, rows.stop, BLOCK):
    some = np.arange(first, min(first + BLOCK, rows.stop))
    yield first, vectors.take(some)


def sample(vectors: Vectors, size: int) -> np.ndarray:
  """Vectors of at most `size` evenly spaced rows: no random choice."""
  count = len(vectors)
  rows = np.linspace(0, count - 1, min(size, count)).round().astype(np.int64)
  sampled = vectors.take(rows)
  finite = np.isfinite(sampled).all(axis=1)
  if not finite.all():
    raise errors.InputError(
      f"index: the vector of passage row {rows[np.argmin(finite)]} is not"
      " finite (NaN or infinite): the model is broken; train and embed again"
    )
  return sampled


def reason(error: RuntimeError) -> str:
  """FAISS's message without the C++ function and source line before it."""
  return re.sub(r"^Error in .*? at \S+:\d+: ", "", str(error)).strip()


def _refused(
  settings: Settings, vectors: Vectors, error: RuntimeError
) -> errors.InputError:
  return errors.InputError(
    f"config.index.factory={settings.factory!r} for {len(vectors)} vectors of"
    f" width {vectors.dim}: {reason(error)}"
  )
