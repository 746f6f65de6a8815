"""Stage `read`: answers the questions of a question set with the reader.

Input: results files (or a file in SQuAD's format, in which every question has
its paragraph), and a reader.  Output: `answers/<questions>.json`.  A passage is
read once for a question, even if several methods retrieved it, or several
numbers of passages are compared.
"""

import dataclasses
import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ml_collections
from absl import logging

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors, progress
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import records, squad_files
from dpr_jax.evaluation import answer_scores, reader_tasks, staleness
from dpr_jax.evaluation import evaluate as evaluate_lib
from dpr_jax.inference import passage_reader, reader_answers
from dpr_jax.models import model_settings, reader_model
from dpr_jax.reading import null_threshold, retriever_weight

STAGE = "read"
SQUAD = "squad"  # instead of a method: the questions have their paragraphs
BLOCK = 64  # questions read at once


def read(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  *,
  name: str = "dev",
  questions_file: str | os.PathLike | None = None,
  methods: Sequence[str] | None = None,
  tune: bool = False,
  overwrite: bool = False,
) -> None:
  """Stage `read`: answers a question set, for every method's results.

  Args:
    config: reads `read`.
    workdir: workdir with `results/<name>.<method>.json` and the trained reader.
    name: name of the question set.
    questions_file: file in SQuAD's format, in which every question has its own
      paragraph, so that no results are needed; None = read the results.
    methods: methods whose results are read; None = `config.read.methods`.  The
      answers of the first one are also written to `answers/<name>.json`.
    tune: chooses on these questions the weight of the retriever's score for
      each method (`retriever_weight`), or for a file in SQuAD v2.0's format the
      score below which there is no answer (`null_threshold`); stores and uses
      it.  All readings are kept in memory until then.
    overwrite: reads again even if the answers are current.

  Raises:
    InputError: no results or no reader, or a bad setting.
  """
  config = model_settings.settle(config, workdir, reads=True)
  settings = config.read
  workdir_lib.check_name("--name", name)
  counts = _counts(config)
  sources = {}
  if questions_file is not None:
    path = pathlib.Path(questions_file)
    if not squad_files.is_squad(path):
      raise errors.InputError(
        f"--questions={path} is not in SQuAD's format: for other formats run"
        f" `dpr-jax retrieve --questions={path} --name={name}` and then"
        f" `dpr-jax read --name={name}`"
      )
    if tune and not any(o.impossible for o in squad_files.read_squad(path)):
      raise errors.InputError(
        f"--tune: every question of --questions={path} has one passage and an"
        " answer in it, so there is nothing to tune: give a file in SQuAD"
        " v2.0's format, or retrieved results (--name)"
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
      sidecar = evaluate_lib.sidecar_of(sources[method])
      staleness.check_results(workdir, name, method, sidecar)
  reader = load_reader(config, workdir)
  files = []
  for method, path in sources.items():
    weight, null = 0.0, None
    if method == SQUAD and not tune:
      null = null_threshold.threshold(
        settings.null_answers, workdir, method, reader.fingerprint
      )
    elif not tune:
      weight = retriever_weight.weight(config, workdir, method, reader)
    stage = _stage(
      config, workdir, name, method, path, reader, counts, weight, null
    )
    if not stage.is_current(overwrite or tune):
      output = workdir.answers(name, method)
      if method == SQUAD:
        choose = functools.partial(
          null_threshold.setting, workdir, method, reader.fingerprint
        )
      else:
        choose = functools.partial(
          retriever_weight.setting, workdir, method, reader, counts[-1]
        )
      files.append(
        _Answers(
          stage,
          path,
          output,
          counts,
          choose if tune else None,
          reader_origin(config, workdir),
        )
      )
  if files:
    _read_files(make_engine(config, reader), files)
  _copy_first(workdir.answers(name, next(iter(sources))), workdir.answers(name))


def _copy_first(first: pathlib.Path, copy: pathlib.Path) -> None:
  """Copies the first method's answers to `answers/<name>.json`."""
  if copy.exists():
    same = map(workdir_lib.fingerprint_file, (first, copy))
    if len(set(same)) == 1:
      return
  workdir_lib.write_json(copy, workdir_lib.read_json(first))


def _counts(config: ml_collections.ConfigDict) -> list[int]:
  """The numbers of passages to compare, ascending and distinct."""
  counts = config.read.passages
  if not len(counts):
    raise errors.InputError(
      "config.read.passages is empty: set it to the number of passages to read,"
      " such as (20,)"
    )
  checked = (config_lib.at_least("read.passages", n, 1) for n in counts)
  return sorted(set(map(int, checked)))


def load_reader(
  config: ml_collections.ConfigDict, workdir: workdir_lib.Workdir
) -> reader_model.Reader:
  """The reader that `config.read.reader` names."""
  if config.read.reader:
    return reader_model.from_folder(config.read.reader)
  return reader_model.trained(config, workdir)


def reader_origin(
  config: ml_collections.ConfigDict, workdir: workdir_lib.Workdir
) -> dict[str, Any]:
  """Manifest entries on the workdir's own reader; {} = another reader."""
  if config.read.reader:
    return {}
  return {"reader_training": staleness.reader_training(workdir)}


def make_engine(
  config: ml_collections.ConfigDict, reader: reader_model.Reader
) -> passage_reader.PassageReader:
  """The reader with the settings of `config.read`."""
  if not reader.ranks:
    logging.info(
      "read: this reader has no trained passage ranker; passages are ranked by"
      " their best span score"
    )
  settings = config.read
  return passage_reader.PassageReader(
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
  reader: reader_model.Reader,
  counts: list[int],
  weight: float,
  null: float | None,
) -> workdir_lib.Stage:
  return workdir_lib.Stage(
    STAGE,
    workdir.answers(name).parent,
    {
      "passages": counts,
      "span_tokens": int(config.read.span_tokens),
      "retriever_weight": weight,
      **({} if null is None else {"null_threshold": null}),
    },
    {
      "questions": workdir_lib.fingerprint_file(path),
      "reader": reader.fingerprint,
    },
    manifest_name=f"{name}.{method}.manifest.json",
  )


class _Answers:
  """Collects the answers to the questions of one results file."""

  def __init__(
    self,
    stage: workdir_lib.Stage,
    path: pathlib.Path,
    output: pathlib.Path,
    counts: list[int],
    tune: Callable[[retriever_weight.Read], dict[str, float]] | None = None,
    extra: Mapping[str, Any] | None = None,
  ):
    """Reads and writes nothing yet.

    Args:
      stage: stage of the answers, for their manifest.
      path: results file, or file in SQuAD's format.
      output: path of the answers.
      counts: numbers of passages to compare, ascending.
      tune: function from all readings to a setting that it chooses; None = no
        tuning.
      extra: further entries of the manifest.
    """
    self._extra = extra or {}
    self.path, self.output, self.counts = path, output, counts
    self._stage, self._tune = stage, tune
    self._kept: list[
      tuple[reader_tasks.Task, Sequence[passage_reader.Reading]]
    ] = []
    self._rows: list[dict[str, Any]] = []
    self._totals = dict.fromkeys(
      (
        "questions",
        "passages",
        "without_passages",
        "without_prediction",
        "below_null_threshold",
        "questions_cut",
      ),
      0,
    )

  def tasks(self) -> Iterator[reader_tasks.Task]:
    """The questions, each with the largest number of passages to compare."""
    return reader_tasks.tasks_of(self.path, self.counts[-1])

  def check(self) -> int:
    """Reads the whole file and returns its number of questions.

    Raises:
      InputError: it is malformed or empty, or no question has an answer to tune
        on.
    """
    count = answered = most = 0
    for task in self.tasks():
      count += 1
      answered += bool(task.answers) or task.impossible
      most = max(most, len(task.passages))
    if not count:
      raise errors.InputError(f"{self.path} has no questions")
    if self._tune is not None and not answered:
      raise errors.InputError(
        f"--tune: no question in {self.path} has an answer to tune on: give"
        " questions with answers"
      )
    if most and most < self.counts[-1]:
      logging.warning(
        "read: %s has at most %d passages per question: no answers from %s",
        self.path,
        most,
        ", ".join(str(n) for n in self.counts if n > most),
      )
      self.counts = sorted({min(n, most) for n in self.counts})
    return count

  def add(
    self,
    task: reader_tasks.Task,
    readings: Sequence[passage_reader.Reading],
    cut: bool,
  ) -> None:
    """Adds a question; `cut` = it was too long for the reader."""
    self._totals["questions_cut"] += cut
    if self._tune is None:
      self._answer(task, readings)
    else:
      self._kept.append((task, readings))

  def _answer(
    self, task: reader_tasks.Task, readings: Sequence[passage_reader.Reading]
  ) -> None:
    weight = self._stage.config["retriever_weight"]
    row = _row(task, readings, self.counts, weight)
    null = self._stage.config.get("null_threshold")
    if null is not None and row["score"] is not None and row["score"] < null:
      self._totals["below_null_threshold"] += 1
      row |= {"prediction": "", "passage_id": ""}
    self._rows.append(row)
    self._totals["questions"] += 1
    self._totals["passages"] += len(task.passages)
    self._totals["without_passages"] += not task.passages
    self._totals["without_prediction"] += not row["prediction"]

  def finish(self) -> None:
    """Tunes if configured, then writes the answers and the manifest."""
    if self._tune is not None:
      chosen = self._tune(self._kept)
      self._stage = dataclasses.replace(
        self._stage, config={**self._stage.config, **chosen}
      )
      for task, readings in self._kept:
        self._answer(task, readings)
    self._stage.begin([self.output])
    workdir_lib.write_json(self.output, self._rows)
    name = self.output.name
    files = {name: workdir_lib.fingerprint_file(self.output)}
    self._stage.finish(self._totals, files=files, **self._extra)
    notes = ", ".join(
      f"{count} {key.replace('_', ' ')}"
      for key, count in self._totals.items()
      if count
    )
    logging.info("read: wrote %s: %s", self.output, notes)


def _read_files(
  engine: passage_reader.PassageReader, files: Sequence[_Answers]
) -> None:
  """Reads the questions of several files in parallel; writes the answers.

  Block by block, so that a passage which several methods retrieved for the same
  question is read once.
  """
  # Checks all files first: an error in the last row of the last file must not
  # come after hours of reading.
  questions = [answers.check() for answers in files]
  tasks = [answers.tasks() for answers in files]
  tokenizer = engine.reader.tokenizer
  names = ", ".join(answers.output.stem for answers in files)
  logging.info(
    "read: reading %s; the first questions take longer, while the reader is"
    " compiled",
    names,
  )
  with progress.Progress(max(questions), f"read {names}", "questions") as bar:
    while any(
      blocks := [list(itertools.islice(of_file, BLOCK)) for of_file in tasks]
    ):
      for answers, block, of_block in zip(
        files, blocks, read_once(engine, blocks), strict=True
      ):
        ids = tokenizer.question_ids([task.question for task in block])
        for task, question, readings in zip(block, ids, of_block, strict=True):
          too_long = len(question) > tokenizer.question_length
          answers.add(task, readings, too_long)
      bar.update(max(map(len, blocks)))
  for answers in files:
    answers.finish()


def read_once(
  engine: passage_reader.PassageReader,
  blocks: Sequence[Sequence[reader_tasks.Task]],
) -> list[list[list[passage_reader.Reading]]]:
  """Readings of the passages of every task of every block.

  A passage that several blocks have for the same question is read once.
  """
  wanted: dict[str, dict[records.Passage, Any]] = {}
  for task in itertools.chain(*blocks):
    wanted.setdefault(task.question, {}).update(dict.fromkeys(task.passages))
  # By question, then by passage: first the passages to read, then the readings.
  all_readings = engine.read(list(wanted), [list(p) for p in wanted.values()])
  for by_passage, readings in zip(wanted.values(), all_readings, strict=True):
    by_passage.update(zip(list(by_passage), readings, strict=True))
  return [
    [[wanted[task.question][p] for p in task.passages] for task in block]
    for block in blocks
  ]


def _row(
  task: reader_tasks.Task,
  readings: Sequence[passage_reader.Reading],
  counts: Sequence[int],
  weight: float,
) -> dict[str, Any]:
  """An entry of an answers file, with the answer from the most passages."""
  by_count = {}
  for count in counts:
    answer = reader_answers.answer(
      task.passages, task.scores[:count], readings[:count], weight
    )
    by_count[str(count)] = {
      "prediction": answer.prediction,
      "passage_id": answer.passage_id,
      "score": answer.score,
    }
  row = {"question": task.question, "answers": list(task.answers)}
  row |= by_count[str(counts[-1])]
  if task.id:
    row["id"] = task.id
  if task.impossible:
    row[answer_scores.IMPOSSIBLE] = True
  if len(counts) > 1:
    row["by_passages"] = by_count
  return row
