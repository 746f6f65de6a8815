"""Stage `retrieve`: finds the best passages of each question, by any method.

Input: questions (the workdir's dev set or a question file), and a ranker of
`retrievers`.  Output: `results/<name>.<method>.json` in DPR's results format,
the same as a TREC run, and a manifest that evaluation reads.  `api.Retriever`
does the same from Python.
"""

import contextlib
import copy
import functools
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections
import numpy as np
from absl import logging

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors, multiprocess, progress
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import answer_matching, records, same_passages
from dpr_jax.models import model_settings
from dpr_jax.retrieval import (
  api,
  bm25,
  hybrid,
  passage_cache,
  question_sets,
  retrievers,
)
from dpr_jax.retrieval.result_files import ResultsWriter

_BATCH = 256  # questions searched at once for tuning
_TUNED_ON = 2000  # largest number of dev questions for tuning


def retrieve(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  *,
  questions_file: str | os.PathLike | None = None,
  name: str = "dev",
  methods: Sequence[str] | None = None,
  split: str = "dev",
  qrels: str | os.PathLike | None = None,
  tune: bool = False,
  overwrite: bool = False,
) -> None:
  """Writes the results of every method for one question set.

  Args:
    config: reads `retrieve`, `evaluate.match`, and the sections of the methods.
    workdir: workdir with the corpus, and the index of each dense method.
    questions_file: `*.qa.csv` or DPR JSON; None = the workdir's `split`.
    name: name of the question set; writes `results/<name>.<method>.json`.
    methods: methods to use; None = `config.retrieve.methods`.
    split: "dev" or "train".
    qrels: BEIR judgements; only questions with a judgement are used, because
      BEIR's files have the questions of all splits.  None = all questions.
    tune: chooses the weight of "hybrid" on the dev set first, and uses it.
    overwrite: retrieves again even if the results are current.

  Raises:
    InputError: an unknown method, a bad name, no questions, or an index,
      vectors and model that do not belong together.
  """
  config = model_settings.settle(config, workdir)
  methods = retrievers.check_methods(methods or config.retrieve.methods)
  config_lib.at_least("retrieve.depth", config.retrieve.depth, 1)
  config_lib.one_of(
    "evaluate.match", config.evaluate.match, answer_matching.MATCHES
  )
  workdir_lib.check_name("--name", name)
  for method in methods if questions_file is not None else ():
    output = workdir.results(name, method)
    if pathlib.Path(questions_file).resolve() == output.resolve():
      raise errors.InputError(
        f"--questions={questions_file} is where the results would be written:"
        " give another --name"
      )
  if tune:
    if "hybrid" not in methods:
      raise errors.InputError(
        "--tune: only --method=hybrid has a weight to tune"
      )

    def choose() -> None:
      tune_fusion(config, workdir)

    retrievers.on_all_processes(config, workdir, "hybrid", choose)
    config = copy.deepcopy(config)
    config.fusion.weight = -1.0
  if qrels is not None and questions_file is None:
    raise errors.InputError(f"--qrels={qrels}: needs --questions as well")
  source = multiprocess.first_alone(
    lambda: _source(workdir, questions_file, qrels, split)
  )
  open_questions = functools.partial(
    question_sets.open_set, workdir, questions_file, qrels, split
  )
  for method in methods:
    _retrieve(config, workdir, method, name, source, open_questions, overwrite)


def _retrieve(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  method: str,
  name: str,
  source: dict[str, str],
  open_questions: Callable[[], question_sets.QuestionSet],
  overwrite: bool,
) -> None:
  """Writes a method's results unless current; all processes call it."""

  def stage() -> workdir_lib.Stage:
    return _stage(config, workdir, name, method, source)

  if multiprocess.first_alone(lambda: stage().is_current(overwrite)):
    return
  retrievers.on_all_processes(
    config,
    workdir,
    method,
    lambda: _retrieve_with(
      config, workdir, method, stage(), open_questions(), name
    ),
  )


def _source(
  workdir: workdir_lib.Workdir,
  questions_file: str | os.PathLike | None,
  qrels: str | os.PathLike | None,
  split: str,
) -> dict[str, str]:
  """Fingerprints of corpus, questions and judgements."""
  source = workdir_lib.dataset_inputs(workdir, "passages")
  if questions_file is None:
    source |= workdir_lib.dataset_inputs(workdir, split)
  else:
    source["questions"] = workdir_lib.fingerprint_file(questions_file)
  if qrels is not None:
    source["qrels"] = workdir_lib.fingerprint_file(qrels)
  return source


def _stage(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  name: str,
  method: str,
  source: dict[str, str],
) -> workdir_lib.Stage:
  """The stage of one method: all that its results depend on."""
  settings, inputs = retrievers.depends_on(config, workdir, method)
  return workdir_lib.Stage(
    name="retrieve",
    folder=workdir.results(name, method).parent,
    config={
      **settings,
      "depth": int(config.retrieve.depth),
      "match": config.evaluate.match,
      "pyserini": bool(config.retrieve.pyserini),
    },
    inputs={**source, **inputs},
    manifest_name=f"{name}.{method}.manifest.json",
  )


def _retrieve_with(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  method: str,
  stage: workdir_lib.Stage,
  questions: question_sets.QuestionSet,
  name: str,
) -> None:
  """Runs one method and writes its files, a batch of questions at a time."""
  from dpr_jax.data import prepare

  passages = prepare.open_passages(workdir)
  ranker = retrievers.load(config, workdir, method, passages)
  depth, match = stage.config["depth"], stage.config["match"]
  matcher = answer_matching.AnswerMatcher(match=match)
  cache = passage_cache.PassageCache(passages)
  # A copy of a gold passage counts as gold.
  copies = same_passages.open_copies(workdir)
  output = workdir.results(name, method)
  outputs = [output, output.with_suffix(".trec")]
  if stage.config["pyserini"]:
    outputs.append(output.with_suffix(".pyserini.json"))
  stage.begin(outputs)
  gold: list[list[str]] = []
  started = time.monotonic()
  with contextlib.ExitStack() as stack:
    temporary = [
      stack.enter_context(workdir_lib.replace_file(path)) for path in outputs
    ]
    writer = stack.enter_context(
      ResultsWriter(*temporary[:2], method, matcher, *temporary[2:])
    )
    bar = stack.enter_context(
      progress.Progress(questions.count, f"retrieve {method}", "questions")
    )
    for batch in api.batches_of(questions, api.at_once(ranker)):
      texts = [each.question.question for each in batch]
      hits_of = api.search_batch(ranker, cache, texts, depth)
      for each, ranked in zip(batch, hits_of, strict=True):
        rows = [row for row, _ in ranked]
        hits = [hit for _, hit in ranked]
        writer.write(each.question, rows, hits, each.id)
        ids = [p.id for p in each.question.positives if p.id]
        gold.append(copies.ids_of_all(ids, passages))
      bar.update(len(batch))
    if not gold:
      raise errors.InputError(
        f"{questions.where} has no questions to retrieve for"
      )
  seconds = time.monotonic() - started
  bm25.warn_without_hits(
    f"retrieve: {method}", writer.counts["no_hits"], len(gold)
  )
  stage.finish(
    {
      **writer.counts,
      **questions.left_out,
      "passages": len(passages),
      "with_gold": sum(map(bool, gold)),
    },
    files={path.name: workdir_lib.fingerprint_file(path) for path in outputs},
    depth=min(depth, len(passages)),
    match=match,
    gold=gold,
    ids=writer.ids,
  )
  logging.info(
    "retrieve: wrote %s: %d questions, %.1f questions/s with encoding and"
    " writing",
    output,
    len(gold),
    len(gold) / seconds,
  )


def tune_fusion(
  config: ml_collections.ConfigDict, workdir: workdir_lib.Workdir
) -> dict[str, Any]:
  """Chooses the weight of dense in "hybrid" on the dev set, and stores it.

  The measure is the mean reciprocal rank of the first passage with an answer
  among the first `retrieve.depth`, over at most `_TUNED_ON` dev questions.

  Args:
    config: reads `fusion`, `retrieve.depth`, `evaluate.match`, and the sections
      of both rankers.
    workdir: workdir with corpus, index and dev questions.

  Raises:
    InputError: no dev question has an answer, or something is missing.
  """
  from dpr_jax.data import prepare

  passages = prepare.open_passages(workdir)
  fusion_settings = {**hybrid.settings(_untuned(config), workdir)}
  ranker = retrievers.load(_untuned(config), workdir, "hybrid", passages)
  dev = prepare.open_questions(workdir, "dev")
  rows = np.linspace(0, len(dev) - 1, min(len(dev), _TUNED_ON)).astype(np.int64)
  questions = [each for each in dev.take(np.unique(rows)) if each.answers]
  if not questions:
    raise errors.InputError(
      f"{workdir.data / 'dev'}: no question has an answer, so the weight of"
      " `hybrid` cannot be tuned: set config.fusion.weight to a number >= 0"
    )
  depth = int(config_lib.at_least("retrieve.depth", config.retrieve.depth, 1))
  batches = list(api.batches_of(questions, _BATCH))
  logging.info(
    "fusion: searching for %d dev questions, to tune the weight", len(questions)
  )
  rankings = [
    ranker.search_both([each.question for each in batch], depth)
    for batch in batches
  ]
  cache = passage_cache.PassageCache(passages)
  matcher = answer_matching.AnswerMatcher(match=config.evaluate.match)

  def reciprocal_rank(rows: Sequence[np.ndarray]) -> float:
    total = 0.0
    for batch, of_batch in zip(batches, rows, strict=True):
      for question, ranked in zip(batch, of_batch, strict=True):
        total += _first_answer(question, ranked, cache, matcher)
    return total / len(questions)

  chosen = hybrid.tune(rankings, reciprocal_rank, fusion_settings, depth)
  hybrid.store_tuned(
    workdir,
    fusion_settings["method"],
    {
      **chosen,
      "questions": len(questions),
      "inputs": workdir_lib.dataset_inputs(workdir, "passages", "dev"),
      "depends_on": retrievers.depends_on(config, workdir, "dense")[1],
    },
  )
  matcher.warn("fusion")
  logging.info(
    "fusion: %s: best weight of dense on dev is %.4g (mean reciprocal rank"
    " %.4f)",
    fusion_settings["method"],
    chosen["weight"],
    chosen["measure"],
  )
  return chosen


def _untuned(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """A copy of the config with a non-negative weight, to start tuning from."""
  config = copy.deepcopy(config)
  config.fusion.weight = abs(float(config.fusion.weight))
  return config


def _first_answer(
  question: records.Question,
  ranked: np.ndarray,
  cache: passage_cache.PassageCache,
  matcher: answer_matching.AnswerMatcher,
) -> float:
  """1 / rank of the first passage with an answer; 0 = there is none."""
  for first in range(0, len(ranked), 10):
    rows = [int(row) for row in ranked[first : first + 10] if row >= 0]
    passages = cache.take(rows)
    hits = matcher.hits(
      question.answers, rows, [passages[row].text for row in rows]
    )
    if any(hits):
      return 1 / (first + hits.index(True) + 1)
  return 0.0
