"""Search engines in place of a FAISS index: `--backend=milvus:URI`.

`upload` fills a collection of the engine with the vectors of a workdir and
their passages; `open_index` opens it like an index of FAISS, so that `retrieve`
writes the same results.  A record in the collection's metadata says which
vectors it holds: another model's, another corpus's, or an incomplete collection
is refused.
"""

from typing import Any

import ml_collections
import numpy as np
from absl import logging
from jaxtyping import Float

from dpr_jax.core import engine_addresses, errors, multiprocess, progress
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.embedding import vector_shards
from dpr_jax.index import faiss_build, faiss_stage
from dpr_jax.retrieval import engine_clients

_ROWS = 500  # passages per upload
_FORMAT = 1


class EngineIndex:
  """A collection, with the attributes and results of an index of FAISS.

  Attributes:
    ntotal: number of vectors.
    d: width of a vector.
  """

  def __init__(
    self,
    address: engine_addresses.Address,
    collection: engine_clients.Collection,
    record: dict[str, Any],
  ):
    """Takes the address, for messages, the collection and its record."""
    self._address, self._collection = address, collection
    self.ntotal, self.d = record["count"], record["dim"]

  def search(
    self, questions: Float[np.ndarray, "questions dim"], k: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Scores and rows [questions, k], as FAISS returns them; -1 = no hit."""
    rows = np.full((len(questions), k), -1, np.int64)
    scores = np.zeros((len(questions), k), np.float32)
    with engine_clients.translated(self._address):
      found = self._collection.search(questions, k)
    for number, (some, values) in enumerate(found):
      rows[number, : len(some)] = some
      scores[number, : len(some)] = values
    if (rows >= self.ntotal).any():
      raise errors.InputError(
        f"--backend={self._address}: it returned row {rows.max()} of"
        f" {self.ntotal}: other passages were added to the collection; run"
        " `dpr-jax index` with --backend and --overwrite"
      )
    return scores, rows


def upload(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  *,
  model: str = "dense",
  overwrite: bool = False,
) -> None:
  """Fills the collection of `index.backend` with a workdir's vectors.

  A collection that was left incomplete is filled again.

  Args:
    config: reads `index.backend`.
    workdir: workdir with the vectors and their passages.
    model: model of the vectors, "dense" or "dense-start".
    overwrite: replace our collection, even if it is current.

  Raises:
    InputError: there are no vectors, the engine cannot be used, or the
      collection is of something else.
  """
  address = engine_addresses.parse(config.index.backend, model)
  source = workdir.embeddings(model)
  corpus = workdir_lib.dataset_inputs(workdir, "passages")["passages"]
  faiss_stage.check_origin(vector_shards.read_manifest(source), corpus, source)
  multiprocess.first_alone(
    lambda: _upload(address, workdir, source, corpus, overwrite)
  )


def _upload(
  address: engine_addresses.Address,
  workdir: workdir_lib.Workdir,
  source: Any,
  corpus: str,
  overwrite: bool,
) -> None:
  from dpr_jax.data import prepare

  vectors = vector_shards.open_vectors(source)
  wanted = {
    "format": _FORMAT,
    "embeddings": workdir_lib.manifest_fingerprint(source, "embed"),
    "passages": corpus,
    "model": vectors.manifest["model"],
    "model_settings": vectors.manifest.get("model_settings"),
    "dim": vectors.dim,
    "count": len(vectors),
  }
  collection = engine_clients.connect(address)
  with engine_clients.translated(address):
    if _is_current(address, collection, wanted, overwrite):
      logging.info("index: %s: done and unchanged, skipped", address)
      return
    if collection.record() is not None:
      collection.drop()
    collection.create(vectors.dim, wanted)
    passages = prepare.open_passages(workdir)
    with progress.Progress(len(vectors), "index: upload", "passages") as bar:
      for first, block in faiss_build.finite_blocks(vectors):
        for start in range(0, len(block), _ROWS):
          some = block[start : start + _ROWS]
          row = first + start
          collection.add(row, passages.take(range(row, row + len(some))), some)
          bar.update(len(some))
    _check_count(address, collection, wanted)
  logging.info("index: %d passages are in %s", len(vectors), address)


def _is_current(
  address: engine_addresses.Address,
  collection: engine_clients.Collection,
  wanted: dict[str, Any],
  overwrite: bool,
) -> bool:
  """Whether the collection holds these vectors.

  Raises:
    InputError: it holds something else, and is not to be replaced.
  """
  record = collection.record()
  if record is None:
    return False
  if not record.get("format"):
    raise errors.InputError(
      f"--backend={address}: its collection was not made by dpr-jax: name"
      f" another, as in {address.bare}#wikipedia"
    )
  if overwrite:
    return False
  if changed := workdir_lib.changes(record, wanted):
    raise errors.InputError(
      f"--backend={address} has other vectors: {', '.join(changed[:3])};"
      " --overwrite replaces them"
    )
  count = collection.count()
  if count != wanted["count"]:
    logging.info(
      "index: %s has %d of %d passages: filled again",
      *(address, count, wanted["count"]),
    )
  return count == wanted["count"]


def _check_count(
  address: engine_addresses.Address,
  collection: engine_clients.Collection,
  record: dict[str, Any],
) -> None:
  if (count := collection.count()) != record["count"]:
    raise errors.InputError(
      f"--backend={address} has {count} passages instead of"
      f" {record['count']}: run `dpr-jax index` with the same --backend again"
    )


def read_record(address: engine_addresses.Address) -> dict[str, Any]:
  """The record of a collection.

  Raises:
    InputError: there is no collection of ours, or it cannot be reached.
  """
  return _opened(address)[1]


def _opened(
  address: engine_addresses.Address,
) -> tuple[engine_clients.Collection, dict[str, Any]]:
  engine_clients.check_there(address)
  collection = engine_clients.connect(address)
  with engine_clients.translated(address):
    record = collection.record()
  if not record or record.get("format") != _FORMAT:
    raise errors.InputError(
      f"--backend={address} has no collection of dpr-jax: run `dpr-jax index`"
      " with the same --backend first"
    )
  return collection, record


def open_index(
  address: engine_addresses.Address,
) -> tuple[EngineIndex, dict[str, Any]]:
  """The collection as an index, and its record as an index's manifest.

  Raises:
    InputError: as in `read_record`, or the collection is incomplete.
  """
  collection, record = _opened(address)
  with engine_clients.translated(address):
    _check_count(address, collection, record)
  inputs = {key: record[key] for key in ("embeddings", "passages")}
  return EngineIndex(address, collection, record), {**record, "inputs": inputs}
