"""Loads the rankers: from the text of questions to ranked rows of the corpus.

Input: the name of a method and a workdir.  Output: an object whose `search`
returns the best rows and their scores: BM25 (`bm25`), vectors
(`dense_rankers`), or both (`hybrid`).  `depends_on` names everything that a
method's results depend on.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import ml_collections
import numpy as np

from dpr_jax.core import config as config_lib
from dpr_jax.core import engine_addresses, errors, multiprocess
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.embedding import vector_encoder, vector_shards
from dpr_jax.index import (
  all_processes,
  faiss_search,
  faiss_stage,
)
from dpr_jax.models import model_settings
from dpr_jax.retrieval import bm25, dense_rankers, engines, hybrid

METHODS = ("bm25", "dense", "dense-start", "exact", "hybrid")
# Vectors, and index, that a method searches: "dense" = of the trained model, or
# of the pretrained one if nothing is trained; "dense-start" = of the latter.
VECTORS = {
  "dense": "dense",
  "dense-start": "dense-start",
  "exact": "dense",
  "hybrid": "dense",
}
INDEXES = {key: model for key, model in VECTORS.items() if key != "exact"}


@runtime_checkable
class Ranker(Protocol):
  """Ranks the corpus for questions: what `load` returns."""

  def search(
    self, questions: Sequence[str], k: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Rows (-1: no hit) and scores, [questions, at most k], best first."""
    ...


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
    return dense_rankers.load_exact(config, workdir, len(passages))
  model = INDEXES[method]
  if config.index.backend:
    dense = dense_rankers.load_engine(config, workdir, model, len(passages))
  else:
    factory = config.index.factory
    dense = dense_rankers.load_dense(
      workdir, model, factory, len(passages), config
    )
  if method == "hybrid":
    return hybrid.HybridRanker(
      _load_bm25(config, workdir, passages, build),
      dense,
      **hybrid.settings(config, workdir),
    )
  return dense


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
  if method not in INDEXES or config.index.backend:
    return method == "exact"
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
    if method in INDEXES and config.index.backend:
      address = engine_addresses.parse(config.index.backend, model)
      made = engines.read_record(address)
      settings["backend"] = str(address)
      inputs["embeddings"] = made["embeddings"]
    elif method in INDEXES:
      settings |= {
        "factory": faiss_stage.check_factory(config.index.factory),
        "search": faiss_stage.search_overrides(config),
        "rescore": bool(config.index.rescore),
      }
      searched = workdir.index(settings["factory"], model), "index"
      inputs["index"] = workdir_lib.manifest_fingerprint(*searched)
      made = workdir_lib.read_manifest(*searched)
    else:
      exact = config_lib.sections(config, "exact")["exact"]
      exact.pop("core_gb")  # does not change the result
      settings["exact"] = exact
      searched = workdir.embeddings(model), "embed"
      inputs["embeddings"] = workdir_lib.manifest_fingerprint(*searched)
      made = workdir_lib.read_manifest(*searched)
    untrained = model == "dense" and model_settings.is_untrained(workdir)
    if untrained or vector_shards.is_imported(made):
      folder = workdir.embeddings(model)
      settings["model"] |= vector_encoder.settings(folder)
      inputs["encoder"] = vector_encoder.fingerprint(folder)
    elif model == "dense":
      # Detects towers that were trained again, and refuses their old vectors.
      inputs["training"] = workdir_lib.manifest_fingerprint(
        workdir.training, "train"
      )
  return settings, inputs
