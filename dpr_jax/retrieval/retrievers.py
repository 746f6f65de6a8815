"""Methods of retrieval: from the text of questions to rows of the corpus.

In come a method's name and a workdir, out comes an object whose `search` gives
the best rows and their scores.  What an answer depends on (the index, the
vectors, the model that encodes the questions, the corpus) is compared when it
is loaded: what does not belong together is refused.
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
# Whose vectors, and whose index, a method searches.
VECTORS = {
  "dense": "dense",
  "dense-start": "dense-start",
  "exact": "dense",
  "hybrid": "dense",
}
INDEXES = {key: model for key, model in VECTORS.items() if key != "exact"}
_STREAMED = 8192  # questions that share one way of the corpus over the cores
_REBUILD = "run `dpr-jax embed` and `dpr-jax index` again"


class DenseRanker:
  """Encodes questions and searches the passages of the same model."""

  def __init__(self, encoder, index, vectors=None, threads: int = 0):
    """Takes an `encoder.Encoder` and a FAISS index.

    Where vectors are given, the hits are scored again with them: for an index
    that has compressed them.  FAISS uses `threads`, 0 = all.
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
    """As `faiss_stage.search_index`, from texts."""
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
  """Encodes questions and compares them with every passage, on the cores."""

  def __init__(self, encoder, exact):
    """Takes an `encoder.Encoder` and what `all_processes.open_exact` gives."""
    self._home = forks.Home()
    self._encoder = encoder
    self._exact = exact
    self.questions_at_once = _STREAMED if exact.streams else 0

  def search(
    self, questions: Sequence[str], k: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """As `exact_search.ExactSearch.search`, from texts."""
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


def models_of(methods: Iterable[str], room: dict[str, str]) -> list[str]:
  """The models that `methods` need in `VECTORS` or `INDEXES`, each once."""
  methods = check_methods(methods)
  return list(dict.fromkeys(room[each] for each in methods if each in room))


def factory_there(
  config: ml_collections.ConfigDict, workdir: workdir_lib.Workdir, method: str
) -> str:
  """The index of a method that is there; of several the config's.

  Raises:
    InputError: the config names none of several.
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
    f"{workdir.root / 'index'} holds {', '.join(sorted(there))} and not"
    f" config.index.factory={configured!r}: name one of them"
  )


def load(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  method: str,
  passages,
  *,
  build: bool = True,
):
  """The ranker of a method.

  Args:
    config: reads `bm25`, `index`, `exact`, `fusion`.
    workdir: holds what the method searches.
    method: one of `METHODS`.
    passages: the workdir's PassageTable.
    build: makes the BM25 index where it is not current; without it, takes
      the one that is there.

  Raises:
    InputError: something is missing or does not belong together.
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
  """The first process calls `function`, which searches with one method.

  Where what that searches is spread over the processes (shards of an index,
  the rows of exact search), the others search along with it, each its own
  part; elsewhere they wait.  All call it.

  Args:
    config: as of `load`.
    workdir: as of `load`; the others need their part of what is searched there,
      and its manifest.
    method: one of `METHODS`.
    function: calls `load` once for that method, and searches.
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
  """Settings and fingerprints that a method's answers depend on."""
  settings: dict[str, Any] = {"method": method}
  inputs: dict[str, str] = {}
  if method in ("bm25", "hybrid"):
    more, inputs = bm25.depends_on(config)
    settings |= more
  if method == "hybrid":
    settings["fusion"] = hybrid.settings(config, workdir)
  if method in VECTORS:
    model = VECTORS[method]
    # How questions are encoded is in no input's fingerprint.
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
      exact.pop("core_gb")  # where it is computed, not what
      settings["exact"] = exact
      inputs["embeddings"] = workdir_lib.manifest_fingerprint(
        workdir.embeddings(model), "embed"
      )
    if model == "dense":
      # So that towers trained anew are noticed, and old vectors refused.
      inputs["training"] = workdir_lib.manifest_fingerprint(
        workdir.training, "train"
      )
  return settings, inputs


def load_exact(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  passages: int,
) -> ExactRanker:
  """Encoder and vectors of the trained towers, after checking that they fit.

  Raises:
    InputError: the vectors are not of these passages or this model.
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
  """Encoder and index of a dense method, after checking that they fit.

  Args:
    workdir: holds `index/<factory>` and the model.
    method: "dense" (the best trained towers) or "dense-start".
    factory: the FAISS index.
    passages: how many passages the corpus has.
    config: reads how carefully is searched; None = the defaults.

  Raises:
    InputError: the index is not of these passages, vectors or model.
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
  # The vectors may have been deleted since: the index holds what is needed.
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
  """`InputError` where vectors are of another model than the questions'."""
  found, ours = manifest.get("model"), encoder.fingerprint
  if found == ours:
    return
  why = model_settings.why_other(
    manifest.get("model_settings"), encoder.settings
  )
  raise errors.InputError(
    f"{folder}: this index holds vectors of model {str(found)[:12]}, questions"
    f" would be encoded by model {ours[:12]}{why}. If the towers in the workdir"
    " are those that you want, `dpr-jax embed --overwrite` and `dpr-jax index`"
    " replace the vectors; otherwise give the workdir of the vectors' own model"
  )


def _load_encoder(workdir: workdir_lib.Workdir, model: str):
  from dpr_jax.inference import (
    encoder as encoder_lib,  # starts JAX: only when needed
  )

  return encoder_lib.Encoder.load(
    workdir.root, which=faiss_stage.ENCODERS[model]
  )
