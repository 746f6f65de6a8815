"""Answers for question sets, and for one question that somebody asks.

In come results files (or a file in SQuAD's format, whose questions each have
their paragraph) and a reader; out comes `answers/<questions>.json`.  A passage
is read once for a question, however many methods found it, and however many
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
SQUAD = "squad"  # in the place of a method: paragraphs are given
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
  """Stage `read`: answers of a question set, for every method's results.

  Args:
    config: reads `read`.
    workdir: holds `results/<name>.<method>.json` and the trained reader.
    name: the question set.
    questions_file: in SQuAD's format: every question is read in its own
      paragraph, no results are needed.
    methods: instead of `config.read.methods`; the first one's answers are also
      `answers/<name>.json`.
    tune: chooses the weight of the retriever's score on these questions, for
      each method, stores and uses it (`retriever_weight`); of a file in SQuAD
      v2.0's format the score below which there is no answer
      (`null_threshold`).  What was read is kept in memory until then.
    overwrite: also where answers are current.

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
        f"--questions={path} is not in SQuAD's format: for other questions run"
        f" `dpr-jax retrieve --questions={path} --name={name}` and then"
        f" `dpr-jax read --name={name}`"
      )
    if tune and not any(o.impossible for o in squad_files.read_squad(path)):
      raise errors.InputError(
        "--tune: every question of --questions has one passage and an answer"
        " in it: there is no choice that the retriever's score could help, and"
        " none between an answer and none"
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
  """The first method's answers are also `answers/<name>.json`."""
  if copy.exists():
    same = map(workdir_lib.fingerprint_file, (first, copy))
    if len(set(same)) == 1:
      return
  workdir_lib.write_json(copy, workdir_lib.read_json(first))


def _counts(config: ml_collections.ConfigDict) -> list[int]:
  """Numbers of passages that are compared, ascending."""
  counts = config.read.passages
  if not len(counts):
    raise errors.InputError(
      "config.read.passages is empty: say how many passages are read, as (20,)"
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
  """What a manifest says on the workdir's own reader, {} for another one."""
  if config.read.reader:
    return {}
  return {"reader_training": staleness.reader_training(workdir)}


def make_engine(
  config: ml_collections.ConfigDict, reader: reader_model.Reader
) -> passage_reader.PassageReader:
  """The reader, ready to read as `config.read` says."""
  if not reader.ranks:
    logging.info(
      "read: the rank head of this reader was not trained: passages are told"
      " apart by the scores of their spans"
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
  """Answers to the questions of one results file, as they come."""

  def __init__(
    self,
    stage: workdir_lib.Stage,
    path: pathlib.Path,
    output: pathlib.Path,
    counts: list[int],
    tune: Callable[[retriever_weight.Read], dict[str, float]] | None = None,
    extra: Mapping[str, Any] | None = None,
  ):
    """Where `tune` is given, it chooses a setting from all that was read.

    The manifest gets what `extra` holds.
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
    """The questions, with as many passages as the largest count wants."""
    return reader_tasks.tasks_of(self.path, self.counts[-1])

  def check(self) -> int:
    """Looks through the file; how many questions it has.

    Raises:
      InputError: it is malformed or empty, or there is nothing to tune on.
    """
    count = answered = most = 0
    for task in self.tasks():
      count += 1
      answered += bool(task.answers) or task.impossible
      most = max(most, len(task.passages))
    if not count:
      raise errors.InputError(f"{self.path}: no questions in it")
    if self._tune is not None and not answered:
      raise errors.InputError(
        f"--tune: no question in {self.path} has an answer, so no weight is"
        " better than another"
      )
    if most and most < self.counts[-1]:
      logging.warning(
        "read: %s has at most %d passages per question, so no answers of %s",
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
    """One question; `cut` where it was too long for the reader."""
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
    """Writes them, and the manifest."""
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
    logging.info("read: %s: %s", self.output, notes)


def _read_files(
  engine: passage_reader.PassageReader, files: Sequence[_Answers]
) -> None:
  """Reads all questions of some files side by side and writes the answers."""
  # All of them are looked through first: an error in the last row of the last
  # file must not come after hours of reading.
  questions = [one.check() for one in files]
  tasks = [one.tasks() for one in files]
  tokenizer = engine.reader.tokenizer
  names = ", ".join(one.output.stem for one in files)
  with progress.Progress(max(questions), f"read {names}", "questions") as bar:
    while any(
      blocks := [list(itertools.islice(some, BLOCK)) for some in tasks]
    ):
      for one, block, found in zip(
        files, blocks, read_once(engine, blocks), strict=True
      ):
        ids = tokenizer.question_ids([task.question for task in block])
        for task, question, readings in zip(block, ids, found, strict=True):
          one.add(task, readings, len(question) > tokenizer.question_length)
      bar.update(max(map(len, blocks)))
  for one in files:
    one.finish()


def read_once(
  engine: passage_reader.PassageReader,
  blocks: Sequence[Sequence[reader_tasks.Task]],
) -> list[list[list[passage_reader.Reading]]]:
  """Readings of the passages of every task of every block.

  What several have retrieved for the same question is read once.
  """
  wanted: dict[str, dict[records.Passage, Any]] = {}
  for task in itertools.chain(*blocks):
    wanted.setdefault(task.question, {}).update(dict.fromkeys(task.passages))
  found = engine.read(list(wanted), [list(some) for some in wanted.values()])
  for some, readings in zip(wanted.values(), found, strict=True):
    some.update(zip(list(some), readings, strict=True))
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
  """One entry of an answers file; the largest number of passages counts."""
  by_count = {}
  for count in counts:
    found = reader_answers.answer(
      task.passages, task.scores[:count], readings[:count], weight
    )
    by_count[str(count)] = {
      "prediction": found.prediction,
      "passage_id": found.passage_id,
      "score": found.score,
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
