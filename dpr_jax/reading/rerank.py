"""Stage `rerank`: reorders retrieved passages with the reader's rank head.

Input: `results/<name>.<method>.json`.  Output: the same question set as
`results/<name>.<method>-reader.json`.  The first passages of every question are
ordered by the reader's score, plus the retriever's score times
`read.retriever_weight`; the others follow in their old order.
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

  Their scores are the reader's.  Each of the passages after them gets a score 1
  below that of the passage before, so that every tool keeps the order.

  Args:
    config: reads `read` and `evaluate.match`.
    workdir: workdir with the results and the reader.
    name: name of the question set.
    method: method of retrieval whose results are reordered.
    overwrite: reorders again even if the results are current.

  Raises:
    InputError: no such results, no reader, or its rank head was not trained.
  """
  config = model_settings.settle(config, workdir, reads=True)
  source = workdir.results(name, method)
  depth = int(
    config_lib.at_least("read.rerank_depth", config.read.rerank_depth, 1)
  )
  reader = read_lib.load_reader(config, workdir)
  if not reader.ranks:
    raise errors.InputError(
      "--rerank=reader: the rank head of this reader was not trained: run"
      " `dpr-jax train-reader` with config.reader.passages above 1"
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
  rows: dict[tuple[str, str], int] = {}  # the matcher's keys of passages
  tag = method + SUFFIX
  with (
    workdir_lib.replace_file(output) as temporary_output,
    workdir_lib.replace_file(run) as temporary_run,
    ResultsWriter(temporary_output, temporary_run, tag, matcher) as writer,
    progress.Progress(len(tasks), f"rerank {method}", "questions") as bar,
  ):
    for first in range(0, len(tasks), read_lib.BLOCK):
      block = tasks[first : first + read_lib.BLOCK]
      of_block = engine.read(
        [task.question for task in block],
        [task.passages[:depth] for task in block],
      )
      for number, (task, readings) in enumerate(
        zip(block, of_block, strict=True), first
      ):
        scores = passage_reader.mixed_scores(
          readings, task.scores[:depth], weight
        )
        hits = _reordered(task, scores.tolist())
        question = records.Question(task.question, task.answers)
        keys = [(hit.id, hit.text) for hit in hits]
        numbers = [rows.setdefault(k, len(rows)) for k in keys]
        writer.write(question, numbers, hits, ids[number])
      bar.update(len(block))
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
  logging.info("rerank: wrote %s: %d questions", output, len(tasks))


def _reordered(task: reader_tasks.Task, new_scores: list[float]) -> list[Hit]:
  """Hits by new score, ties in the old order; then those without a score."""
  order = sorted(range(len(new_scores)), key=lambda i: -new_scores[i])
  scores = [new_scores[i] for i in order]
  least = scores[-1] if scores else 0.0
  behind = range(len(new_scores), len(task.passages))
  scores += [least - 1 - i for i in range(len(behind))]
  return [
    Hit(p.id, p.title, p.text, score)
    for p, score in zip(
      (task.passages[i] for i in (*order, *behind)), scores, strict=True
    )
  ]
