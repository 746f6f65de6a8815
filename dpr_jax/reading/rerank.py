"""The reader as a cross-encoder: retrieved passages in a better order.

In comes `results/<name>.<method>.json`, out comes the same question set as
`results/<name>.<method>-reader.json`: the first passages of every question
ordered by the reader's rank head, the retriever's score beside it where
`read.retriever_weight` says so, the rest behind them as they were.
"""

import ml_collections
from absl import logging

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors, progress
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import answer_matching, records
from dpr_jax.evaluation import evaluate as evaluate_lib
from dpr_jax.evaluation import reader_tasks, staleness
from dpr_jax.inference import passage_reader
from dpr_jax.models import model_settings
from dpr_jax.reading import read as read_lib
from dpr_jax.reading import retriever_weight
from dpr_jax.retrieval.result_files import Hit, ResultsWriter

STAGE = "rerank"
SUFFIX = "-reader"


def rerank(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  *,
  name: str,
  method: str,
  overwrite: bool = False,
) -> None:
  """Reorders the first `config.read.rerank_depth` passages of every question.

  The scores are the reader's; those of the passages behind continue downwards
  from the least of them by 1 each, so that every tool keeps the order.

  Args:
    config: reads `read` and `evaluate.match`.
    workdir: holds the results and the reader.
    name: the question set.
    method: whose results.
    overwrite: also where it is done and unchanged.

  Raises:
    InputError: no such results or no reader; or its rank head was not trained.
  """
  config = model_settings.settle(config, workdir, reads=True)
  source = workdir.results(name, method)
  depth = int(
    config_lib.at_least("read.rerank_depth", config.read.rerank_depth, 1)
  )
  reader = read_lib.load_reader(config, workdir)
  if not reader.ranks:
    raise errors.InputError(
      "--rerank=reader: the rank head of this reader was not trained; train it"
      " with config.reader.passages above 1"
    )
  weight = retriever_weight.weight(config, workdir, method, reader)
  output = workdir.results(name, method + SUFFIX)
  before = evaluate_lib.sidecar_of(source)
  staleness.check_results(workdir, name, method, before)
  stage = workdir_lib.Stage(
    STAGE,
    output.parent,
    {
      "rerank_depth": depth,
      "retriever_weight": weight,
      "match": config.evaluate.match,
    },
    {
      "results": workdir_lib.fingerprint_file(source),
      "reader": reader.fingerprint,
    },
    manifest_name=output.with_suffix(".manifest.json").name,
  )
  if stage.is_current(overwrite):
    return
  engine = read_lib.make_engine(config, reader)
  run = output.with_suffix(".trec")
  matcher = answer_matching.AnswerMatcher(match=config.evaluate.match)
  stage.begin([output, run])
  tasks = list(reader_tasks.tasks_of(source, depth=1 << 30))
  ids = before.get("ids") or [""] * len(tasks)
  rows: dict[tuple[str, str], int] = {}  # numbers for the matcher
  tag = method + SUFFIX
  with (
    workdir_lib.replace_file(output) as temporary_output,
    workdir_lib.replace_file(run) as temporary_run,
    ResultsWriter(temporary_output, temporary_run, tag, matcher) as writer,
    progress.Progress(len(tasks), f"rerank {method}", "questions") as bar,
  ):
    for first in range(0, len(tasks), read_lib.BLOCK):
      some = tasks[first : first + read_lib.BLOCK]
      found = engine.read(
        [task.question for task in some],
        [task.passages[:depth] for task in some],
      )
      for number, (task, readings) in enumerate(
        zip(some, found, strict=True), first
      ):
        scores = passage_reader.mixed_scores(
          readings, task.scores[:depth], weight
        )
        hits = _reordered(task, scores.tolist())
        question = records.Question(task.question, task.answers)
        keys = [(hit.id, hit.text) for hit in hits]
        numbers = [rows.setdefault(k, len(rows)) for k in keys]
        writer.write(question, numbers, hits, ids[number])
      bar.update(len(some))
  stage.finish(
    writer.counts,
    files={
      path.name: workdir_lib.fingerprint_file(path) for path in (output, run)
    },
    depth=before.get("depth", max(len(task.passages) for task in tasks)),
    match=config.evaluate.match,
    gold=before.get("gold", [[] for _ in tasks]),
    ids=writer.ids,
    **read_lib.reader_origin(config, workdir),
  )
  logging.info("rerank: %s", output)


def _reordered(task: reader_tasks.Task, given: list[float]) -> list[Hit]:
  """Hits by score, equal ones as they were; then those that have none."""
  order = sorted(range(len(given)), key=lambda i: -given[i])
  scores = [given[i] for i in order]
  least = scores[-1] if scores else 0.0
  behind = range(len(given), len(task.passages))
  scores += [least - 1 - i for i in range(len(behind))]
  return [
    Hit(p.id, p.title, p.text, score)
    for p, score in zip(
      (task.passages[i] for i in (*order, *behind)), scores, strict=True
    )
  ]
