"""Loads the rankers: from the text of questions to ranked rows of the corpus.

Input: the name of a method and a workdir.  Output: an object whose `search`
returns the best rows and their scores.  Loading compares the fingerprints of
index, vectors, question encoder and corpus, and refuses those that do not
belong together.
"""

import pathlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import ml_collections
import numpy as np
from absl import logging

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors, forks, multiprocess
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.embedding import vector_shards
from dpr_jax.index import (
  all_processes,
  faiss_build,
  faiss_search,
  faiss_stage,
)
from dpr_jax.models import model_settings
from dpr_jax.retrieval import bm25, hybrid

METHODS = ("bm25", "dense", "dense-start", "exact", "hybrid")
# Vectors, and index, that a method searches: those of the trained model
# ("dense") or of the pretrained one ("dense-start").
VECTORS = {
  "dense": "dense",
  "dense-start": "dense-start",
  "exact": "dense",
  "hybrid": "dense",
}
INDEXES = {key: model for key, model in VECTORS.items() if key != "exact"}
_STREAMED = 8192  # questions searched in one pass over the corpus
_REBUILD = "run `dpr-jax embed` and `dpr-jax index` again"


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
    self._home.check(self)
    began = time.perf_counter()
    vectors = np.asarray(
      self._encoder.encode_questions(list(questions)), np.float32
    )
    encoded = time.perf_counter()
    more = 0 if self._vectors is None else faiss_search.TIES
    with faiss_search.threads(self._threads):
      rows, scores = faiss_stage.search_index(self._index, vectors, k + more)
    if self._vectors is not None:
      rows, scores = faiss_search.score_again(
        self._vectors, vectors, rows, min(k, self._index.ntotal)
      )
    self.seconds = {
      "encode": encoded - began,
      "search": time.perf_counter() - encoded,
    }
    return rows, scores


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


def check_methods(methods: Iterable[str]) -> tuple[str, ...]:
  """Returns the distinct methods in order; `InputError` for an unknown one."""
  methods = tuple(dict.fromkeys(methods))
  for method in methods:
    config_lib.one_of("retrieve.methods", method, METHODS)
  if not methods:
    raise errors.InputError(
      f"config.retrieve.methods is empty: name some of {', '.join(METHODS)}"
    )
  return methods


def models_of(methods: Iterable[str], table: dict[str, str]) -> list[str]:
  """The distinct models that `methods` use.

  Args:
    methods: some of `METHODS`.
    table: `VECTORS` or `INDEXES`.
  """
  methods = check_methods(methods)
  return list(dict.fromkeys(table[m] for m in methods if m in table))


def factory_there(
  config: ml_collections.ConfigDict, workdir: workdir_lib.Workdir, method: str
) -> str:
  """The factory of the method's index in the workdir.

  If there are several, it is the one that the config names.

  Raises:
    InputError: there are several, and the config names none of them.
  """
  model, configured = INDEXES[method], config.index.factory
  own = workdir.index(faiss_stage.check_factory(configured), model)
  there = set()
  for path in (workdir.root / "index").glob(f"*/{workdir_lib.MANIFEST}"):
    factory = workdir_lib.read_manifest(path.parent, "index").get("factory", "")
    if path.parent == workdir.index(factory, model):
      there.add(factory)
  if (own / workdir_lib.MANIFEST).exists() or not there:
    return configured
  if len(there) == 1:
    return there.pop()
  raise errors.InputError(
    f"{workdir.root / 'index'} holds {', '.join(sorted(there))} but not"
    f" config.index.factory={configured!r}: set it to one of them"
  )


def load(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  method: str,
  passages,
  *,
  build: bool = True,
):
  """Loads the ranker of a method.

  Args:
    config: reads `bm25`, `index`, `exact`, `fusion`.
    workdir: workdir with the index or vectors of the method.
    method: one of `METHODS`.
    passages: PassageTable of the workdir.
    build: True = build the BM25 index if it is not current; False = use the
      existing one.

  Raises:
    InputError: something is missing, or belongs to another model or corpus.
  """
  if method == "bm25":
    return _load_bm25(config, workdir, passages, build)
  if method == "exact":
    return load_exact(config, workdir, len(passages))
  if method == "hybrid":
    return hybrid.HybridRanker(
      _load_bm25(config, workdir, passages, build),
      load_dense(workdir, "dense", config.index.factory, len(passages), config),
      **hybrid.settings(config, workdir),
    )
  return load_dense(
    workdir, method, config.index.factory, len(passages), config
  )


def on_all_processes(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  method: str,
  function: Callable[[], None],
) -> None:
  """Calls `function` in the first process; the others help it to search.

  If the index or the vectors are split over the processes (shards of an index,
  rows of exact search), every process searches its own part.  Otherwise the
  others wait.  Call it on all processes.

  Args:
    config: as for `load`.
    workdir: as for `load`; every process needs its part of the index or
      vectors, and the manifest.
    method: one of `METHODS`.
    function: function that calls `load` once for that method, and searches.
  """
  spread = multiprocess.count() > 1 and multiprocess.first_alone(
    lambda: _is_spread(config, workdir, method)
  )
  if not spread:
    multiprocess.first_alone(function)
    return
  if multiprocess.is_first():
    function()
    all_processes.end()
    return
  if method in INDEXES:
    part, manifest = all_processes.open_index(
      workdir, config.index.factory, INDEXES[method], mmap=config.index.mmap
    )
    faiss_stage.set_parameters(config, part, manifest)
  else:
    part = all_processes.open_exact(config, workdir, VECTORS[method])
  with faiss_search.threads(int(config.index.threads)):
    all_processes.follow(part)


def _is_spread(
  config: ml_collections.ConfigDict, workdir: workdir_lib.Workdir, method: str
) -> bool:
  if method not in INDEXES:
    return method in VECTORS
  folder = workdir.index(
    faiss_stage.check_factory(config.index.factory), INDEXES[method]
  )
  return bool(workdir_lib.read_manifest(folder, "index").get("shards"))


def _load_bm25(config, workdir, passages, build: bool) -> bm25.BM25Index:
  index = (
    bm25.build_or_load(config, workdir) if build else bm25.load_checked(workdir)
  )
  bm25.check_size(index, passages)
  return index


def depends_on(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  method: str,
) -> tuple[dict[str, Any], dict[str, str]]:
  """Settings and input fingerprints that a method's results depend on."""
  settings: dict[str, Any] = {"method": method}
  inputs: dict[str, str] = {}
  if method in ("bm25", "hybrid"):
    more, inputs = bm25.depends_on(config)
    settings |= more
  if method == "hybrid":
    settings["fusion"] = hybrid.settings(config, workdir)
  if method in VECTORS:
    model = VECTORS[method]
    # Settings of encoding questions are not part of the inputs' fingerprints.
    settings |= config_lib.sections(config, "model")
    if method in INDEXES:
      settings |= {
        "factory": faiss_stage.check_factory(config.index.factory),
        "search": faiss_stage.search_overrides(config),
        "rescore": bool(config.index.rescore),
      }
      inputs["index"] = workdir_lib.manifest_fingerprint(
        workdir.index(settings["factory"], model), "index"
      )
    else:
      exact = config_lib.sections(config, "exact")["exact"]
      exact.pop("core_gb")  # does not change the result
      settings["exact"] = exact
      inputs["embeddings"] = workdir_lib.manifest_fingerprint(
        workdir.embeddings(model), "embed"
      )
    if model == "dense":
      # Detects towers that were trained again, and refuses their old vectors.
      inputs["training"] = workdir_lib.manifest_fingerprint(
        workdir.training, "train"
      )
  return settings, inputs


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
  encoder = _load_encoder(workdir, "dense")
  _check_model(folder, manifest, encoder)
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
  corpus = workdir_lib.dataset_inputs(workdir, "passages")["passages"]
  indexed = manifest["inputs"].get("passages")
  if index.ntotal != passages or indexed != corpus:
    raise errors.InputError(
      f"{folder}: this index of {index.ntotal} vectors was not made from the"
      f" {passages} passages in {workdir.data}"
      f" ({workdir_lib.short(indexed)} are indexed, {workdir_lib.short(corpus)}"
      f" are there): {_REBUILD}"
    )
  embeddings = workdir.embeddings(method)
  # The vectors may have been deleted: the index alone is enough.
  has_vectors = (embeddings / workdir_lib.MANIFEST).exists()
  if has_vectors:
    made_from = workdir_lib.manifest_fingerprint(embeddings, "embed")
    indexed = manifest["inputs"].get("embeddings")
    if indexed != made_from:
      raise errors.InputError(
        f"{folder}: this index was made from other vectors"
        f" ({workdir_lib.short(indexed)}) than those in {embeddings}"
        f" ({workdir_lib.short(made_from)}): run `dpr-jax index` again"
      )
  encoder = _load_encoder(workdir, method)
  _check_model(folder, manifest, encoder)
  faiss_stage.set_parameters(config, index, manifest)
  vectors = None
  if config.index.rescore and not faiss_search.scores_are_exact(index):
    vectors = _vectors_to_score_with(embeddings, has_vectors)
  return DenseRanker(encoder, index, vectors, int(config.index.threads))


def _vectors_to_score_with(folder, there: bool) -> faiss_build.Vectors | None:
  if not there:
    logging.warning(
      "%s has no vectors: scores are estimates of the inner product, as the"
      " compressed index gives them",
      folder,
    )
    return None
  return vector_shards.open_vectors(folder)


def _check_model(folder: pathlib.Path, manifest: dict[str, Any], encoder):
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


def _load_encoder(workdir: workdir_lib.Workdir, model: str):
  from dpr_jax.inference import (
    encoder as encoder_lib,  # initialises JAX: only when needed
  )

  logging.info("retrieve: loading the question encoder of %r", model)
  return encoder_lib.Encoder.load(
    workdir.root, which=faiss_stage.ENCODERS[model]
  )
