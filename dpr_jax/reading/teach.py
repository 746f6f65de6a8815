"""Writes a teacher's scores of the training questions' passages.

Input: a retrieval method, or the reader's passage ranker, and the training
questions.  Output: a file of `data.teacher_files`, which training reads
(`config.train.distill_scores`).  A retrieval method scores the passages that it
finds; the reader scores the gold passages and the mined negatives.
"""

import os
from collections.abc import Iterator, Sequence

import ml_collections
from absl import logging

from dpr_jax.core import errors, multiprocess, progress
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import records, teacher_files
from dpr_jax.models import model_settings
from dpr_jax.reading import read as read_lib
from dpr_jax.retrieval import api, passage_cache, retrievers

READER = "reader"
METHODS = (*retrievers.METHODS, READER)


def teach(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  *,
  method: str,
  out: str | os.PathLike,
  mined: Sequence[Sequence[Sequence[str]]] = (),
) -> None:
  """Writes the scores; all processes call it.

  Args:
    config: reads the sections of the method; of retrieval `retrieve.depth`, of
      the reader `read`.
    workdir: workdir with the data, and the index or the reader.
    method: one of `METHODS`.
    out: path of the file, `*.jsonl` or `*.jsonl.gz`; replaced if it exists.
    mined: for the reader: passage ids of every training question that it
      scores besides the gold passages, of each kind of mined negatives.

  Raises:
    InputError: an unknown method, or something is missing.
  """
  from dpr_jax.data import prepare

  if method not in METHODS:
    raise errors.InputError(
      f"--method={method}: must be one of {', '.join(METHODS)}"
    )
  config = model_settings.settle(config, workdir, reads=method == READER)

  def write() -> None:
    questions = prepare.open_questions(workdir, "train")
    passages = prepare.open_passages(workdir)
    if method == READER:
      reader = read_lib.load_reader(config, workdir)
      if not reader.ranks:
        raise errors.InputError(
          "--method=reader: the rank head of this reader was not trained: run"
          " `dpr-jax train-reader` with config.reader.passages above 1"
        )
      engine = read_lib.make_engine(config, reader)
      rows = of_reader(engine, questions, passages, mined)
    else:
      ranker = retrievers.load(config, workdir, method, passages)
      depth = min(int(config.retrieve.depth), len(passages))
      rows = of_ranker(ranker, questions, passages, depth)
    _write(out, rows, len(questions), f"teach {method}")

  if method == READER:
    multiprocess.first_alone(write)
  else:
    retrievers.on_all_processes(config, workdir, method, write)


def _write(
  out: str | os.PathLike,
  rows: Iterator[teacher_files.Scored],
  total: int,
  label: str,
) -> None:
  count = 0
  with progress.Progress(total, label, "questions") as bar:

    def counted() -> Iterator[teacher_files.Scored]:
      nonlocal count
      for row in rows:
        count += len(row.ids)
        yield row
        bar.update()

    teacher_files.write(out, counted())
  logging.info(
    "teach: wrote %s: %d questions, %.1f scores each", out, total, count / total
  )


def of_ranker(
  ranker: retrievers.Ranker, questions, passages, depth: int
) -> Iterator[teacher_files.Scored]:
  """The scores of each question's first `depth` hits.

  Args:
    ranker: of the method.
    questions: a QuestionTable.
    passages: the PassageTable of the ranker's rows.
    depth: number of hits of a question, at most.
  """
  cache = passage_cache.PassageCache(passages)
  for _, block in questions.blocks(api.at_once(ranker)):
    texts = [question.question for question in block]
    hits_of = api.search_batch(ranker, cache, texts, depth)
    for text, ranked in zip(texts, hits_of, strict=True):
      yield teacher_files.Scored(
        text,
        tuple(hit.id for _, hit in ranked),
        tuple(hit.score for _, hit in ranked),
      )


def of_reader(
  engine, questions, passages, mined: Sequence[Sequence[Sequence[str]]]
) -> Iterator[teacher_files.Scored]:
  """The reader's scores of the positives and the mined passages.

  A positive without an id is not scored: a file of scores could not name it.

  Args:
    engine: a `passage_reader.PassageReader`.
    questions: a QuestionTable.
    passages: a PassageTable.
    mined: as of `teach`.
  """
  cache = passage_cache.PassageCache(passages)
  for first, block in questions.blocks(read_lib.BLOCK):
    ids_of = [
      [i for kind in mined for i in kind[first + place]]
      for place in range(len(block))
    ]
    rows = passages.rows_of([i for ids in ids_of for i in ids])
    known = cache.take(rows[rows >= 0].tolist())
    by_id = {passage.id: passage for passage in known.values()}
    read: list[list[records.Passage]] = []
    for question, ids in zip(block, ids_of, strict=True):
      own = {p.id: p for p in question.positives if p.id}
      read.append(
        list((own | {i: by_id[i] for i in ids if i in by_id}).values())
      )
    readings_of = engine.read([question.question for question in block], read)
    for question, some, readings in zip(block, read, readings_of, strict=True):
      yield teacher_files.Scored(
        question.question,
        tuple(passage.id for passage in some),
        tuple(reading.rank for reading in readings),
      )
