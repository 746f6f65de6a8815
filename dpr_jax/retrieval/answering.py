"""Answers for question sets, and for one question that somebody asks.

In come results files (or a file in SQuAD's format, whose questions each have
their paragraph) and a reader; out comes `answers/<questions>.json`.  A passage
is read once, however many numbers of passages are compared.
"""

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections
from absl import logging

from dpr_jax import configuration, errors, progress
from dpr_jax import workdir as workdir_lib
from dpr_jax.data import records, squad
from dpr_jax.evaluation import ranking
from dpr_jax.models import readers
from dpr_jax.retrieval import reading

STAGE = "read"
SQUAD = "squad"  # in the place of a method: paragraphs are given
BLOCK = 64  # questions read at once


@dataclasses.dataclass(frozen=True)
class Task:
  """A question with what is to be read for it.

  Attributes:
    question: its text.
    answers: accepted ones; may be empty.
    passages: best first.
    scores: the retriever's, of each.
    id: SQuAD's, "" elsewhere.
  """

  question: str
  answers: tuple[str, ...]
  passages: list[records.Passage]
  scores: list[float]
  id: str = ""


@dataclasses.dataclass(frozen=True)
class Answer:
  """An answer and where it stands; all empty where there is none.

  Attributes:
    prediction: text of the passage, unchanged.
    index: of the passage among those read, -1 for none.
    passage_id: its id.
    score: that decided; None where there is no answer.
    start: character of the passage's text where it starts.
    end: character behind it.
  """

  prediction: str = ""
  index: int = -1
  passage_id: str = ""
  score: float | None = None
  start: int = 0
  end: int = 0


def answer(
  task: Task,
  readings: Sequence[reading.Reading],
  count: int | None = None,
  weight: float = 0.0,
) -> Answer:
  """The answer among the first `count` passages (None = all)."""
  readings = readings[:count]
  index, score = reading.choose(readings, task.scores[:count], weight)
  if index < 0:
    return Answer()
  found, passage = readings[index], task.passages[index]
  text = passage.text[found.start : found.end]
  return Answer(text, index, passage.id, score, found.start, found.end)


def tasks_of(path: pathlib.Path, depth: int) -> Iterator[Task]:
  """Questions of a results file or of a file in SQuAD's format.

  Args:
    path: of the file.
    depth: passages of a question at most.

  Raises:
    InputError: the file is malformed.
  """
  if squad.is_squad(path):
    for one in squad.read_squad(path):
      yield Task(one.question, one.answers, [one.paragraph], [0.0], one.id)
    return
  for row, entry in enumerate(ranking.read_results(path)):
    try:
      hits = entry["ctxs"][:depth]
      yield Task(
        entry["question"],
        tuple(entry["answers"]),
        [
          records.Passage(str(hit["id"]), hit.get("title") or "", hit["text"])
          for hit in hits
        ],
        [float(hit.get("score", 0.0)) for hit in hits],
      )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
      raise errors.InputError(
        f"{path}, question {row}: not in DPR's results format ({error!r}):"
        " {question, answers, ctxs: [{id, title, text, score}]}"
      ) from error


def read(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  *,
  name: str = "dev",
  questions_file: str | os.PathLike | None = None,
  methods: Sequence[str] | None = None,
  overwrite: bool = False,
) -> None:
  """Stage `read`: answers of a question set, for every method's results.

  Args:
    config: reads `read`.
    workdir: holds `results/<name>.<method>.json` and the trained reader.
    name: the question set.
    questions_file: in SQuAD's format: every question is read in its own
      paragraph, no results are needed.
    methods: instead of `config.read.methods`; the first one's answers are also
      `answers/<name>.json`.
    overwrite: also where answers are current.

  Raises:
    InputError: no results or no reader, or a bad setting.
  """
  settings = config.read
  counts = _counts(config)
  sources = {}
  if questions_file is not None:
    path = pathlib.Path(questions_file)
    if not squad.is_squad(path):
      raise errors.InputError(
        f"--questions={path} is not in SQuAD's format: for other questions run"
        f" `dpr-jax retrieve --questions={path} --name={name}` and then"
        f" `dpr-jax read --name={name}`"
      )
    sources[SQUAD], counts = path, [1]
  else:
    for method in dict.fromkeys(methods or settings.methods):
      sources[method] = workdir.results(name, method)
      if not sources[method].is_file():
        raise errors.InputError(
          f"{sources[method]} is missing: run `dpr-jax retrieve --name={name}"
          f" --method={method}` first (config.read.methods)"
        )
  engine = None
  reader = load_reader(config, workdir)
  for number, (method, path) in enumerate(sources.items()):
    stage = _stage(config, workdir, name, method, path, reader, counts)
    if stage.is_current(overwrite):
      continue
    engine = engine or make_engine(config, reader)
    _read_file(engine, stage, path, workdir.answers(name, method), counts)
    if not number:
      rows = workdir_lib.read_json(workdir.answers(name, method))
      workdir_lib.write_json(workdir.answers(name), rows)


def _counts(config: ml_collections.ConfigDict) -> list[int]:
  """Numbers of passages that are compared, ascending."""
  counts = config.read.passages
  if not len(counts):
    raise errors.InputError(
      "config.read.passages is empty: say how many passages are read, as (20,)"
    )
  checked = (configuration.at_least("read.passages", n, 1) for n in counts)
  return sorted(set(map(int, checked)))


def load_reader(
  config: ml_collections.ConfigDict, workdir: workdir_lib.Workdir
) -> readers.Reader:
  """The reader that `config.read.reader` names."""
  if config.read.reader:
    return readers.from_folder(config.read.reader)
  return readers.trained(config, workdir)


def make_engine(
  config: ml_collections.ConfigDict, reader: readers.Reader
) -> reading.PassageReader:
  """The reader, ready to read as `config.read` says."""
  if not reader.ranks:
    logging.info(
      "read: the rank head of this reader was not trained: passages are told"
      " apart by the scores of their spans"
    )
  settings = config.read
  return reading.PassageReader(
    reader,
    tokens_per_core=settings.tokens_per_core,
    length_step=settings.length_step,
    span_tokens=settings.span_tokens,
  )


def _stage(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  name: str,
  method: str,
  path: pathlib.Path,
  reader: readers.Reader,
  counts: list[int],
) -> workdir_lib.Stage:
  return workdir_lib.Stage(
    STAGE,
    workdir.answers(name).parent,
    {
      "passages": counts,
      "span_tokens": int(config.read.span_tokens),
      "retriever_weight": float(config.read.retriever_weight),
    },
    {
      "questions": workdir_lib.fingerprint_file(path),
      "reader": reader.fingerprint,
    },
    manifest_name=f"{name}.{method}.manifest.json",
  )


def _read_file(
  engine: reading.PassageReader,
  stage: workdir_lib.Stage,
  path: pathlib.Path,
  output: pathlib.Path,
  counts: list[int],
) -> None:
  """Reads all questions of one file and writes their answers."""
  weight = stage.config["retriever_weight"]
  stage.manifest.unlink(missing_ok=True)  # not for half-replaced files
  rows: list[dict[str, Any]] = []
  totals = dict.fromkeys(
    ("questions", "passages", "without_passages", "without_prediction"), 0
  )
  limit = engine.reader.tokenizer.question_length
  totals["questions_cut"] = 0
  tasks = tasks_of(path, counts[-1])
  with progress.Progress(None, f"read {output.stem}", "questions") as bar:
    while some := list(itertools.islice(tasks, BLOCK)):
      questions = [task.question for task in some]
      found = engine.read(questions, [task.passages for task in some])
      cut = engine.reader.tokenizer.question_ids(questions)
      totals["questions_cut"] += sum(len(ids) > limit for ids in cut)
      for task, readings in zip(some, found, strict=True):
        rows.append(_row(task, readings, counts, weight))
        totals["passages"] += len(task.passages)
        totals["without_passages"] += not task.passages
        totals["without_prediction"] += not rows[-1]["prediction"]
      bar.update(len(some))
  if not rows:
    raise errors.InputError(f"{path}: no questions in it")
  totals["questions"] = len(rows)
  workdir_lib.write_json(output, rows)
  files = {output.name: workdir_lib.fingerprint_file(output)}
  stage.finish(totals, files=files)
  notes = ", ".join(
    f"{count} {key.replace('_', ' ')}" for key, count in totals.items() if count
  )
  logging.info("read: %s: %s", output, notes)


def _row(
  task: Task,
  readings: Sequence[reading.Reading],
  counts: Sequence[int],
  weight: float,
) -> dict[str, Any]:
  """One entry of an answers file; the largest number of passages counts."""
  by_count = {}
  for count in counts:
    found = answer(task, readings, count, weight)
    by_count[str(count)] = {
      "prediction": found.prediction,
      "passage_id": found.passage_id,
      "score": found.score,
    }
  row = {"question": task.question, "answers": list(task.answers)}
  row |= by_count[str(counts[-1])]
  if task.id:
    row["id"] = task.id
  if len(counts) > 1:
    row["by_passages"] = by_count
  return row
