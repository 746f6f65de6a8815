"""Rankers that encode questions and compare them with vectors.

Input: a workdir with vectors, an index of them, or the address of a search
engine.  Output: a `DenseRanker` or `ExactRanker`.  Loading compares the
fingerprints of index, vectors, question encoder and corpus, and refuses those
that do not belong together.
"""

import pathlib
import time
from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np
from absl import logging
from jaxtyping import Float

from dpr_jax.core import config as config_lib
from dpr_jax.core import engine_addresses, errors, forks, multiprocess
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.embedding import vector_encoder, vector_shards
from dpr_jax.index import (
  all_processes,
  faiss_build,
  faiss_search,
  faiss_stage,
)
from dpr_jax.models import model_settings
from dpr_jax.retrieval import engines

_STREAMED = 8192  # questions searched in one pass over the corpus


class DenseRanker:
  """Encodes questions and searches a FAISS index of the same model."""

  def __init__(self, encoder, index, vectors=None, threads: int = 0):
    """Stores them; computes nothing.

    Args:
      encoder: an `encoder.Encoder` for the questions.
      index: FAISS index of the passages.
      vectors: exact vectors, to rescore the hits of a compressed index; None =
        use the scores of the index.
      threads: number of FAISS threads; 0 = all.
    """
    self._home = forks.Home()
    self._threads = threads
    self._encoder = encoder
    self._index = index
    self._vectors = vectors
    self.seconds: dict[str, float] = {}  # of the steps of the last search

  def search(
    self, questions: Sequence[str], k: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Rows and scores as of `faiss_stage.search_index`, for texts."""
    began = time.perf_counter()
    vectors = self.encode(questions)
    encoded = time.perf_counter()
    rows, scores = self.search_for(vectors, k)
    self.seconds = {
      "encode": encoded - began,
      "search": time.perf_counter() - encoded,
    }
    return rows, scores

  def encode(
    self, questions: Sequence[str]
  ) -> Float[np.ndarray, "questions dim"]:
    """Vectors of questions, for `search_for`."""
    self._home.check(self)
    vectors = self._encoder.encode_questions(list(questions))
    return np.asarray(vectors, np.float32)

  def search_for(
    self, vectors: Float[np.ndarray, "questions dim"], k: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """As `search`, for vectors: of questions, or of passages."""
    self._home.check(self)
    more = 0 if self._vectors is None else faiss_search.TIES
    with faiss_search.threads(self._threads):
      rows, scores = faiss_stage.search_index(self._index, vectors, k + more)
    if self._vectors is not None:
      rows, scores = faiss_search.score_again(
        self._vectors, vectors, rows, min(k, self._index.ntotal)
      )
    return rows, scores

  def passage_vectors(self, folder: pathlib.Path) -> faiss_search.Takes | None:
    """The vectors of passages by row; None, with a warning, if there are none.

    They are those of the index if it keeps them in memory, else those of
    `embeddings/`.

    Args:
      folder: the folder of the vectors that the index was made from.

    Raises:
      InputError: a file of the vectors is damaged or missing.
    """
    if faiss_search.keeps_all(self._index):
      return faiss_search.IndexVectors(self._index)
    if (folder / workdir_lib.MANIFEST).exists():
      try:
        return vector_shards.open_vectors(folder)
      except errors.InputError as error:
        if multiprocess.count() == 1:
          raise
        # Other processes may have the files of other rows.
        logging.warning("%s", error)
    logging.warning(
      "%s has no vectors, and the index does not keep them: passages that are"
      " not hits have no scores",
      folder,
    )
    return None


class ExactRanker:
  """Encodes questions and scores them with every passage, on the devices."""

  def __init__(self, encoder, exact):
    """Stores them; computes nothing.

    Args:
      encoder: an `encoder.Encoder` for the questions.
      exact: search of `all_processes.open_exact`.
    """
    self._home = forks.Home()
    self._encoder = encoder
    self._exact = exact
    self.questions_at_once = _STREAMED if exact.streams else 0

  def search(
    self, questions: Sequence[str], k: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Rows and scores as of `exact_search.ExactSearch.search`, for texts."""
    self._home.check(self)
    vectors = self._encoder.encode_questions(list(questions))
    return self._exact.search(np.asarray(vectors, np.float32), k)


def load_exact(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  passages: int,
) -> ExactRanker:
  """The exact ranker of the trained towers, after comparing fingerprints.

  Raises:
    InputError: the vectors belong to other passages or another model.
  """
  folder = workdir.embeddings("dense")
  manifest = workdir_lib.read_manifest(folder, "embed")
  corpus = workdir_lib.dataset_inputs(workdir, "passages")["passages"]
  faiss_stage.check_origin(manifest, corpus, folder)
  count = vector_shards.read_manifest(folder)["count"]
  if count != passages:
    raise errors.InputError(
      f"{folder}: {count} vectors for the {passages} passages in"
      f" {workdir.data}: run `dpr-jax embed` again"
    )
  encoder = _load_encoder(workdir, "dense", folder, manifest)
  logging.info("retrieve: loading %d vectors from %s", count, folder)
  return ExactRanker(
    encoder, all_processes.open_exact(config, workdir, "dense")
  )


def load_dense(
  workdir: workdir_lib.Workdir,
  method: str,
  factory: str,
  passages: int,
  config: ml_collections.ConfigDict | None = None,
) -> DenseRanker:
  """The ranker of a dense method, after comparing fingerprints.

  Args:
    workdir: workdir with `index/<factory>` and the model.
    method: "dense" (the trained towers) or "dense-start" (the pretrained ones).
    factory: factory string of the FAISS index.
    passages: number of passages in the corpus.
    config: reads `index`; None = the defaults.

  Raises:
    InputError: the index belongs to other passages, vectors or another model.
  """
  config = config or config_lib.base_config()
  folder = workdir.index(faiss_stage.check_factory(factory), method)
  index, manifest = all_processes.open_index(
    workdir, factory, method, mmap=config.index.mmap
  )
  has_vectors = _check_index(workdir, method, folder, index, manifest, passages)
  encoder = _load_encoder(workdir, method, folder, manifest)
  faiss_stage.set_parameters(config, index, manifest)
  vectors = None
  if config.index.rescore and not faiss_search.scores_are_exact(index):
    folder = workdir.embeddings(method)
    vectors = _vectors_to_score_with(folder, has_vectors)
  return DenseRanker(encoder, index, vectors, int(config.index.threads))


def load_engine(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  model: str,
  passages: int,
) -> DenseRanker:
  """The ranker that searches `index.backend`; arguments as of `load_dense`.

  Raises:
    InputError: the engine cannot be used, or the collection belongs to other
      passages, vectors or another model.
  """
  address = engine_addresses.parse(config.index.backend, model)
  index, manifest = engines.open_index(address)
  _check_index(workdir, model, address, index, manifest, passages)
  return DenseRanker(_load_encoder(workdir, model, address, manifest), index)


def _check_index(
  workdir: workdir_lib.Workdir,
  model: str,
  where: Any,
  index: Any,
  manifest: dict[str, Any],
  passages: int,
) -> bool:
  """Refuses an index of other passages or vectors than the workdir's.

  Args:
    workdir: the workdir.
    model: model of the vectors.
    where: folder of the index, or address of a collection, for messages.
    index: the index.
    manifest: its manifest.
    passages: number of passages in the corpus.

  Returns:
    Whether the workdir has the vectors.
  """
  corpus = workdir_lib.dataset_inputs(workdir, "passages")["passages"]
  indexed = manifest["inputs"].get("passages")
  if index.ntotal != passages or indexed != corpus:
    raise errors.InputError(
      f"{where}: this index of {index.ntotal} vectors was not made from the"
      f" {passages} passages in {workdir.data}"
      f" ({workdir_lib.short(indexed)} are indexed, {workdir_lib.short(corpus)}"
      " are there): run `dpr-jax embed` and `dpr-jax index` again"
    )
  embeddings = workdir.embeddings(model)
  # The vectors may have been deleted: the index alone is enough.
  has_vectors = (embeddings / workdir_lib.MANIFEST).exists()
  if has_vectors:
    made_from = workdir_lib.manifest_fingerprint(embeddings, "embed")
    indexed = manifest["inputs"].get("embeddings")
    if indexed != made_from:
      raise errors.InputError(
        f"{where}: this index was made from other vectors"
        f" ({workdir_lib.short(indexed)}) than those in {embeddings}"
        f" ({workdir_lib.short(made_from)}): run `dpr-jax index` again"
      )
  return has_vectors


def _vectors_to_score_with(folder, there: bool) -> faiss_build.Vectors | None:
  if not there:
    logging.warning(
      "%s has no vectors: scores are estimates of the inner product, as the"
      " compressed index gives them",
      folder,
    )
    return None
  return vector_shards.open_vectors(folder)


def _check_model(folder: Any, manifest: dict[str, Any], encoder):
  """Raises `InputError` if vectors and question encoder differ in model."""
  theirs, ours = manifest.get("model"), encoder.fingerprint
  if theirs == ours:
    return
  why = model_settings.why_other(
    manifest.get("model_settings"), encoder.settings
  )
  raise errors.InputError(
    f"{folder}: this index holds vectors of model {str(theirs)[:12]}, but the"
    f" questions would be encoded by model {ours[:12]}{why}. To use the towers"
    " in this workdir, run `dpr-jax embed --overwrite` and `dpr-jax index`;"
    " otherwise give the --workdir of the vectors' model"
  )


def _load_encoder(
  workdir: workdir_lib.Workdir,
  model: str,
  folder: Any,
  manifest: dict[str, Any],
):
  """The encoder of questions for the vectors that a manifest describes.

  Raises:
    InputError: it is missing, or another model made the vectors.
  """
  logging.info("retrieve: loading the question encoder of %r", model)
  if vector_shards.is_imported(manifest):
    return vector_encoder.load(workdir.embeddings(model), manifest["dim"])
  from dpr_jax.inference import (
    encoder as encoder_lib,  # initialises JAX: only when needed
  )

  encoder = encoder_lib.Encoder.load(
    workdir.root, which=faiss_stage.ENCODERS[model]
  )
  _check_model(folder, manifest, encoder)
  return encoder
