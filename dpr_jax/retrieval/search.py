"""Retrieval: the best passages of each question, by any method.

In come questions (the workdir's dev set or any question file), the BM25 index
or the FAISS index with the encoder of the same model; out come
`results/<name>.<method>.json` in DPR's results format, the same as a TREC run,
and a manifest beside them that evaluation reads.  `Retriever` is the same in
three lines of Python.
"""

import os
import re
import time
from collections.abc import Iterable, Sequence

import ml_collections
import numpy as np
from absl import logging

from dpr_jax import configuration, errors, progress
from dpr_jax import workdir as workdir_lib
from dpr_jax.data import records
from dpr_jax.evaluation import answers as answers_lib
from dpr_jax.retrieval import bm25, faiss_index, mining
from dpr_jax.retrieval.results import Hit, ResultsWriter

METHODS = ("bm25", "dense", "dense-start")
_BATCH = 256  # questions at once
_NAME = re.compile(r"\w[\w.+-]*")


class DenseRanker:
  """Encodes questions and searches the passages of the same model."""

  def __init__(self, encoder, index):
    """Takes an `embedding.Encoder` and a FAISS index."""
    self._encoder = encoder
    self._index = index
    self.seconds: dict[str, float] = {}  # of the steps of the last search

  def search(
    self, questions: Sequence[str], k: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """As `faiss_index.search_index`, from texts."""
    began = time.perf_counter()
    vectors = self._encoder.encode_questions(list(questions))
    encoded = time.perf_counter()
    found = faiss_index.search_index(self._index, vectors, k)
    self.seconds = {
      "encode": encoded - began,
      "search": time.perf_counter() - encoded,
    }
    return found


class Retriever:
  """`Retriever.load(workdir).search("who wrote ...", k=20)`."""

  def __init__(self, ranker: mining.Ranker, passages):
    """Takes a ranker and the PassageTable that its rows point into."""
    self._ranker = ranker
    self._passages = passages

  @classmethod
  def load(
    cls,
    workdir_path: str | os.PathLike,
    method: str = "dense",
    *,
    factory: str = "",
  ) -> "Retriever":
    """Opens what a finished workdir holds.

    Args:
      workdir_path: where `dpr-jax run` has been.
      method: "bm25", "dense" or "dense-start".
      factory: the FAISS index to use; by default the one of the workdir's own
        config.

    Raises:
      InputError: an unknown method, or something is missing or does not
        belong together.
    """
    from dpr_jax.data import prepare

    check_methods([method])
    workdir = workdir_lib.Workdir(workdir_path)
    passages = prepare.open_passages(workdir)
    if method == "bm25":
      ranker = bm25.load_checked(workdir.bm25)
      bm25.check_size(ranker, passages)
    else:
      factory = factory or _configured_factory(workdir)
      ranker = load_dense(workdir, method, factory, len(passages))
    return cls(ranker, passages)

  @property
  def seconds(self) -> dict[str, float]:
    """Of the steps of the last search, {} where its method has one alone."""
    return getattr(self._ranker, "seconds", {})

  def search(
    self, questions: str | Sequence[str], k: int = 20
  ) -> list[list[Hit]]:
    """The best passages of each question, best first.

    Args:
      questions: texts; one string counts as a list of one.
      k: hits wanted; fewer where the corpus or BM25 has fewer.

    Raises:
      InputError: k is below 1.
    """
    if isinstance(questions, str):
      questions = [questions]
    if k < 1:
      raise errors.InputError(f"k={k}: must be at least 1")
    cache = mining.PassageCache(self._passages)
    found = []
    for first in range(0, len(questions), _BATCH):
      batch = questions[first : first + _BATCH]
      for hits in search_batch(self._ranker, cache, batch, k):
        found.append([hit for _, hit in hits])
    return found


def search_batch(
  ranker: mining.Ranker,
  cache: mining.PassageCache,
  questions: Sequence[str],
  k: int,
) -> list[list[tuple[int, Hit]]]:
  """Rows with their hits for every question, best first."""
  rows, scores = ranker.search(questions, k)
  passages = cache.take(np.unique(rows[rows >= 0]).tolist())
  found = []
  for ranked, values in zip(rows.tolist(), scores.tolist(), strict=True):
    hits = []
    for row, score in zip(ranked, values, strict=True):
      if row >= 0:
        passage = passages[row]
        hits.append((row, Hit(passage.id, passage.title, passage.text, score)))
    found.append(hits)
  return found


def retrieve(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  *,
  questions_file: str | os.PathLike | None = None,
  name: str = "dev",
  methods: Sequence[str] | None = None,
  split: str = "dev",
  overwrite: bool = False,
) -> None:
  """Writes the results of every method for one question set.

  Args:
    config: reads `retrieve`, `bm25`, `index`, `evaluate.match`, `model`.
    workdir: holds the corpus, and the index of each dense method.
    questions_file: `*.qa.csv` or DPR JSON; the workdir's `split` without it.
    name: the results are `results/<name>.<method>.json`.
    methods: instead of `config.retrieve.methods`.
    split: "dev" or "train".
    overwrite: also where results are current.

  Raises:
    InputError: an unknown method, a bad name, no questions, or an index,
      vectors and model that do not belong together.
  """
  methods = check_methods(methods or config.retrieve.methods)
  configuration.at_least("retrieve.depth", config.retrieve.depth, 1)
  configuration.one_of(
    "evaluate.match", config.evaluate.match, answers_lib.MATCHES
  )
  if not _NAME.fullmatch(name):
    raise errors.InputError(
      f"--name={name!r}: must be letters, digits, and . _ + - inside"
    )
  source = workdir_lib.dataset_inputs(workdir, "passages")
  if questions_file is None:
    source |= workdir_lib.dataset_inputs(workdir, split)
  else:
    source["questions"] = workdir_lib.fingerprint_file(questions_file)
  for method in methods:
    stage = _stage(config, workdir, name, method, source)
    if not stage.is_current(overwrite):
      _retrieve_with(
        config, workdir, method, stage, questions_file, name, split
      )


def check_methods(methods: Iterable[str]) -> tuple[str, ...]:
  """Returns the distinct methods in order; `InputError` for an unknown one."""
  methods = tuple(dict.fromkeys(methods))
  for method in methods:
    configuration.one_of("retrieve.methods", method, METHODS)
  if not methods:
    raise errors.InputError(
      f"config.retrieve.methods is empty: name some of {', '.join(METHODS)}"
    )
  return methods


def _stage(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  name: str,
  method: str,
  source: dict[str, str],
) -> workdir_lib.Stage:
  """What the results of one method depend on."""
  settings = {
    "method": method,
    "depth": int(config.retrieve.depth),
    "match": config.evaluate.match,
  }
  inputs = dict(source)
  if method == "bm25":
    settings |= configuration.sections(config, "bm25")
  else:
    factory = faiss_index.check_factory(config.index.factory)
    # How questions are encoded is in no input's fingerprint.
    settings |= configuration.sections(config, "model")
    settings["factory"] = factory
    inputs["index"] = workdir_lib.manifest_fingerprint(
      workdir.index(factory, method), "index"
    )
    if method == "dense":
      # So that towers trained anew are noticed, and old vectors refused.
      inputs["training"] = workdir_lib.manifest_fingerprint(
        workdir.training, "train"
      )
  return workdir_lib.Stage(
    name="retrieve",
    folder=workdir.results(name, method).parent,
    config=settings,
    inputs=inputs,
    manifest_name=f"{name}.{method}.manifest.json",
  )


def _retrieve_with(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  method: str,
  stage: workdir_lib.Stage,
  questions_file: str | os.PathLike | None,
  name: str,
  split: str,
) -> None:
  """Runs one method and writes its three files."""
  from dpr_jax.data import prepare

  passages = prepare.open_passages(workdir)
  if method == "bm25":
    ranker = bm25.build_or_load(config, workdir)
    bm25.check_size(ranker, passages)
  else:
    ranker = load_dense(workdir, method, config.index.factory, len(passages))
  questions = _questions(workdir, questions_file, split)
  output = workdir.results(name, method)
  run = output.with_suffix(".trec")
  depth, match = stage.config["depth"], stage.config["match"]
  stage.manifest.unlink(missing_ok=True)  # not for half-replaced files
  matcher = answers_lib.AnswerMatcher(match=match)
  cache = mining.PassageCache(passages)
  with (
    workdir_lib.replace_file(output) as temporary_output,
    workdir_lib.replace_file(run) as temporary_run,
    ResultsWriter(temporary_output, temporary_run, method, matcher) as writer,
  ):
    for batch in _batches(questions, f"retrieve {method}"):
      texts = [question.question for question in batch]
      found = search_batch(ranker, cache, texts, depth)
      for question, ranked in zip(batch, found, strict=True):
        rows = [row for row, _ in ranked]
        writer.write(question, rows, [hit for _, hit in ranked])
  gold = [
    [passage.id for passage in question.positives if passage.id]
    for question in questions
  ]
  stage.finish(
    {
      **writer.counts,
      "passages": len(passages),
      "with_gold": sum(map(bool, gold)),
    },
    files={
      path.name: workdir_lib.fingerprint_file(path) for path in (output, run)
    },
    depth=min(depth, len(passages)),
    match=match,
    gold=gold,
  )
  logging.info("retrieve: %s", output)


def _questions(
  workdir: workdir_lib.Workdir,
  questions_file: str | os.PathLike | None,
  split: str,
) -> list[records.Question]:
  """All questions of the set, without what retrieval does not need."""
  from dpr_jax.data import formats, prepare

  if questions_file is not None:
    table = formats.read_questions(questions_file)
    where = str(questions_file)
  else:
    stored = prepare.open_questions(workdir, split)
    table = stored.take(range(len(stored)))
    where = f"{workdir.data / split} (config.data.{split})"
  questions = [
    records.Question(
      question.question, question.answers, positives=question.positives
    )
    for question in table
  ]
  if not questions:
    raise errors.InputError(f"{where}: no questions to retrieve for")
  return questions


def _batches(
  questions: Sequence[records.Question], title: str
) -> Iterable[Sequence[records.Question]]:
  with progress.Progress(len(questions), title, "questions") as bar:
    for first in range(0, len(questions), _BATCH):
      batch = questions[first : first + _BATCH]
      yield batch
      bar.update(len(batch))


def load_dense(
  workdir: workdir_lib.Workdir, method: str, factory: str, passages: int
) -> DenseRanker:
  """Encoder and index of a dense method, after checking that they fit.

  Args:
    workdir: holds `index/<factory>` and the model.
    method: "dense" (the best trained towers) or "dense-start".
    factory: the FAISS index.
    passages: how many passages the corpus has.

  Raises:
    InputError: the index is not of these passages, vectors or model.
  """
  folder = workdir.index(faiss_index.check_factory(factory), method)
  index, manifest = faiss_index.load_index(folder)
  rebuild = "run `dpr-jax embed` and `dpr-jax index` again"
  corpus = workdir_lib.dataset_inputs(workdir, "passages")["passages"]
  if index.ntotal != passages or manifest["inputs"]["passages"] != corpus:
    raise errors.InputError(
      f"{folder}: this index of {index.ntotal} vectors was not made from the"
      f" {passages} passages in {workdir.data}: {rebuild}"
    )
  embeddings = workdir.embeddings(method)
  # The vectors may have been deleted since: the index holds what is needed.
  if (embeddings / workdir_lib.MANIFEST).exists():
    made_from = workdir_lib.manifest_fingerprint(embeddings, "embed")
    if manifest["inputs"].get("embeddings") != made_from:
      raise errors.InputError(
        f"{folder}: this index was made from other vectors than those in"
        f" {embeddings}: run `dpr-jax index` again"
      )
  encoder = _load_encoder(
    workdir, "start" if method == "dense-start" else "best"
  )
  if manifest.get("model") != encoder.fingerprint:
    raise errors.InputError(
      f"{folder}: this index holds vectors of model"
      f" {str(manifest.get('model'))[:12]}, questions would be encoded by model"
      f" {encoder.fingerprint[:12]}: {rebuild}"
    )
  return DenseRanker(encoder, index)


def _load_encoder(workdir: workdir_lib.Workdir, which: str):
  from dpr_jax.retrieval import embedding  # starts JAX: only when needed

  return embedding.Encoder.load(workdir.root, which=which)


def _configured_factory(workdir: workdir_lib.Workdir) -> str:
  """The index that the workdir's own config names."""
  config = workdir_lib.read_json(workdir.root / "config.json")
  try:
    return config["index"]["factory"]
  except (KeyError, TypeError) as error:
    raise errors.InputError(
      f"{workdir.root / 'config.json'} has no index.factory: name one with"
      " factory='Flat'"
    ) from error
