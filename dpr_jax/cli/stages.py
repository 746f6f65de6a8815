"""The stages' functions: pass the flags of a call as plain arguments.

Each function imports its stage when called, so that a call that is refused
early is answered quickly.
"""

import copy
from collections.abc import Callable, Mapping

from dpr_jax.cli.invocation import Invocation
from dpr_jax.core import engine_addresses, errors, multiprocess


def _again(call: Invocation, stage: str) -> dict[str, bool]:
  return {"overwrite": call.flags.overwrites(stage)}


def prepare(call: Invocation) -> None:
  """Reads corpus and questions into the workdir."""
  from dpr_jax.data import prepare as prepare_lib

  prepare_lib.prepare(call.config, call.workdir, **_again(call, "prepare"))


def mine(call: Invocation) -> None:
  """Finds hard negatives."""
  from dpr_jax.retrieval import mine as mine_lib

  ranker = call.flags["from"] or "bm25"
  mine_lib.mine(
    call.config, call.workdir, ranker=ranker, **_again(call, "mine")
  )


def train(call: Invocation) -> None:
  """Trains the towers."""
  from dpr_jax.retrieval import negative_refresh
  from dpr_jax.training import train_retriever

  train_retriever.train(
    call.config,
    call.workdir,
    refresh=negative_refresh.refresh,
    peak_flops=_peak_flops(),
    **_again(call, "train"),
  )


def _peak_flops() -> float | None:
  """FLOPs per second of one device at best, for the metrics."""
  import jax

  from dpr_jax.planning import chips

  return chips.peak_flops(jax.local_devices()[0].device_kind)


def embed(call: Invocation) -> None:
  """Encodes the corpus with every model that the methods need."""
  from dpr_jax.embedding import embed as embed_lib
  from dpr_jax.retrieval import retrievers

  _for_models(
    call, embed_lib.embed, retrievers.VECTORS, **_again(call, "embed")
  )


def index(call: Invocation) -> None:
  """Builds the index of every model that the methods need, or uploads it."""
  from dpr_jax.index import faiss_stage
  from dpr_jax.retrieval import engines, retrievers

  call = _with_backend(call)
  if call.config.index.backend:
    for flag in ("shard", "tune"):
      if call.flags[flag] not in (None, False):
        raise errors.InputError(
          f"--{flag}: only for a FAISS index, not with --backend"
        )
    _for_models(
      call, engines.upload, retrievers.INDEXES, **_again(call, "index")
    )
    return
  _for_models(
    call,
    faiss_stage.index,
    retrievers.INDEXES,
    **_again(call, "index"),
    shard=call.flags["shard"],
    tune=call.flags["tune"],
  )


def _with_backend(call: Invocation) -> Invocation:
  """The call with `--backend` as its `config.index.backend`."""
  config = call.config
  if call.flags["backend"] is not None:
    config = copy.deepcopy(config)
    config.index.backend = call.flags["backend"]
    engine_addresses.parse(config.index.backend)  # before anything starts
  return call.with_config(config)


def _for_models(
  call: Invocation, function: Callable, methods: Mapping[str, str], **kwargs
) -> None:
  from dpr_jax.retrieval import retrievers

  named = call.flags["model"]
  found = retrievers.models_of(call.config.retrieve.methods, methods)
  for model in [named] if named else found:
    function(call.config, call.workdir, model=model, **kwargs)


def retrieve(call: Invocation) -> None:
  """Retrieves for one question set; reranks with the reader if asked."""
  from dpr_jax.reading import rerank
  from dpr_jax.retrieval import retrieve as retrieve_lib
  from dpr_jax.retrieval import retrievers

  flags, alone = call.flags, call.command.name == "retrieve"
  call = _with_backend(call)
  methods = flags["method"] or call.config.retrieve.methods
  if flags["backend"] and not set(methods) & set(retrievers.INDEXES):
    raise errors.InputError(
      f"--backend={flags['backend']}: none of the methods {', '.join(methods)}"
      f" searches it: add one of {', '.join(retrievers.INDEXES)}"
    )
  retrieve_lib.retrieve(
    call.config,
    call.workdir,
    questions_file=call.path("questions"),
    name=flags["name"],
    methods=flags["method"],
    qrels=call.path("qrels") if alone else None,
    tune=flags["tune"],
    **_again(call, "retrieve"),
  )

  def rerank_all() -> None:
    for method in flags["method"] or call.config.retrieve.methods:
      rerank.rerank(
        call.config,
        call.workdir,
        name=flags["name"],
        method=method,
        **_again(call, "retrieve"),
      )

  if flags["rerank"]:
    multiprocess.first_alone(rerank_all)


def train_reader(call: Invocation) -> None:
  """Trains the span reader."""
  from dpr_jax.retrieval import retrieve as retrieve_lib
  from dpr_jax.training import train_reader as train_reader_lib

  train_reader_lib.train_reader(
    call.config,
    call.workdir,
    retrieve=retrieve_lib.retrieve,
    peak_flops=_peak_flops(),
    **_again(call, "train-reader"),
  )


def read(call: Invocation) -> None:
  """Extracts answers from retrieved passages."""
  from dpr_jax.reading import read as read_lib

  # In `run`, --questions is the file of `retrieve`, not of `read`.
  alone = call.command.name == "read"
  read_lib.read(
    call.config,
    call.workdir,
    name=call.flags["name"],
    questions_file=call.path("questions") if alone else None,
    methods=call.flags["method"],
    tune=call.flags["tune"],
    **_again(call, "read"),
  )


def evaluate(call: Invocation) -> None:
  """Measures results and answers."""
  from dpr_jax.evaluation import evaluate as evaluate_lib

  evaluate_lib.evaluate(
    call.config,
    call.workdir,
    name=call.flags["name"],
    match=call.flags["match"],
    qrels=call.path("qrels"),
    judged=call.flags["judged"],
    compare=call.flags["compare"],
    **_again(call, "evaluate"),
  )
