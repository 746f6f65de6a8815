"""Loads the training examples and dev questions of the reader.

Input: the files named by `config.reader.train` and `config.reader.dev`: in
SQuAD's format, DPR results, or the workdir's own results.  Output:
`reader_examples.Examples` for the batches, and `DevQuestions`, which computes
the dev figures of `reader/metrics.jsonl`.
"""

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from absl import logging

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import (
  prepare,
  reader_examples,
  reader_tokenization,
  records,
  squad_files,
)
from dpr_jax.evaluation import answer_scores, reader_tasks
from dpr_jax.evaluation import evaluate as evaluate_lib
from dpr_jax.inference import passage_reader, reader_answers
from dpr_jax.models import reader_model

RESULTS = "results"
_BLOCK = 64  # dev questions read at once


def _paths(
  reader: ml_collections.ConfigDict, workdir: workdir_lib.Workdir
) -> dict[str, pathlib.Path]:
  """Paths of the files, by role; raises `InputError` if one is missing."""
  names = {"train": reader.train}
  if reader.dev_questions > 0:
    names["dev"] = reader.dev or RESULTS
  paths = {}
  for role, name in names.items():
    path = pathlib.Path(os.path.expanduser(name))
    if name == RESULTS:
      path = workdir.results(role, reader.method)
    if not path.is_file():
      fix = "name a file that exists"
      if name == RESULTS and role == "train":
        fix = (
          "run `dpr-jax train-reader`, which retrieves first; from Python, call"
          " train_reader with retrieve=dpr_jax.retrieval.retrieve.retrieve"
        )
      elif name == RESULTS:
        fix = (
          f"run `dpr-jax retrieve --method={reader.method}` first, or set"
          " config.reader.dev to a file, or dev_questions to 0"
        )
      raise errors.InputError(
        f"config.reader.{role}={getattr(reader, role)!r}: {path} is missing:"
        f" {fix}"
      )
    paths[role] = path
  return paths


def inputs(
  reader: ml_collections.ConfigDict, workdir: workdir_lib.Workdir
) -> dict[str, str]:
  """Fingerprints of the files that training reads, for a Stage.

  Args:
    reader: section `reader` of the config.
    workdir: workdir of the run.

  Raises:
    InputError: a file is missing.
  """
  fingerprints = {
    role: workdir_lib.fingerprint_file(path)
    for role, path in _paths(reader, workdir).items()
  }
  checkpoint = reader.checkpoint
  if checkpoint:
    where = workdir_lib.Workdir(checkpoint)
    if (where.reader / workdir_lib.MANIFEST).exists():
      fingerprints["checkpoint"] = workdir_lib.manifest_fingerprint(
        where.reader, reader_model.STAGE
      )
  return fingerprints


def examples(
  reader: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  tokenizer: reader_tokenization.ReaderTokenizer,
  *,
  match: str,
) -> reader_examples.Examples:
  """Loads the training examples of the reader.

  Args:
    reader: section `reader` of the config.
    workdir: workdir of the run.
    tokenizer: tokenizer of the reader.
    match: rule for answers in retrieved passages, `evaluate.match`.

  Raises:
    InputError: the file is malformed, or no question in it can be used.
  """
  for name in ("from_top", "spans"):
    config_lib.at_least(f"reader.{name}", reader[name], 1)
  path = _paths(reader, workdir)["train"]
  logging.info("train-reader: loading %s", path)
  if squad_files.is_squad(path):
    loaded = reader_examples.from_squad(
      squad_files.read_squad(path), tokenizer, most_spans=reader.spans
    )
  else:
    golden: Sequence[Sequence[records.Passage]] = ()
    if reader.train == RESULTS:
      table = prepare.open_questions(workdir, "train")
      golden = [
        list(question.positives) for question in table.take(range(len(table)))
      ]
    loaded = reader_examples.from_results(
      evaluate_lib.read_results(path),
      tokenizer,
      golden=golden,
      match=match,
      from_top=reader.from_top,
      most_spans=reader.spans,
    )
  loaded.log(str(path))
  few = sum(
    len(example.negatives) < reader.passages - 1 for example in loaded.examples
  )
  if few:
    logging.info(
      "train-reader: %d of %d questions have fewer than %d negatives: padded"
      " and masked",
      few,
      len(loaded.examples),
      reader.passages - 1,
    )
  return loaded


@dataclasses.dataclass(frozen=True)
class DevQuestions:
  """Dev questions that are answered and scored during training.

  Attributes:
    tasks: questions with the passages to read.
    engine: compiled reader, called with the current parameters.
  """

  tasks: list[reader_tasks.Task]
  engine: passage_reader.PassageReader

  @classmethod
  def make(
    cls,
    settings: ml_collections.ConfigDict,
    read: ml_collections.ConfigDict,
    workdir: workdir_lib.Workdir,
    reader: reader_model.Reader,
    ranks: bool,
  ) -> "DevQuestions | None":
    """Loads the first `dev_questions` of dev; None if that is 0.

    Args:
      settings: section `reader` of the config.
      read: section `read` of the config: batch sizes and span length.
      workdir: workdir of the run.
      reader: reader; only its structure and tokenizer are used.
      ranks: whether the rank head is trained.

    Raises:
      InputError: the file has no question, or none with an answer.
    """
    wanted = config_lib.at_least(
      "reader.dev_questions", settings.dev_questions, 0
    )
    if not wanted:
      return None
    depth = config_lib.at_least("reader.dev_passages", settings.dev_passages, 1)
    path = _paths(settings, workdir)["dev"]
    tasks = list(
      itertools.islice(reader_tasks.tasks_of(path, int(depth)), int(wanted))
    )
    if not tasks:
      raise errors.InputError(
        f"{path} has no questions: give another config.reader.dev, or set"
        " config.reader.dev_questions=0"
      )
    judged = [
      t for t in tasks if answer_scores.is_judged(t.answers, t.impossible)
    ]
    if not judged:
      raise errors.InputError(
        f"{path}: none of the first {len(tasks)} questions has an answer to"
        " compare with: give another config.reader.dev, or set"
        " config.reader.dev_questions=0"
      )
    if len(judged) < len(tasks):
      logging.warning(
        "train-reader: %s: %d of %d questions have no answer to compare with:"
        " left out",
        path,
        len(tasks) - len(judged),
        len(tasks),
      )
    tasks = judged
    engine = passage_reader.PassageReader(
      dataclasses.replace(reader, ranks=ranks),
      tokens_per_core=read.tokens_per_core,
      length_step=read.length_step,
      span_tokens=read.span_tokens,
      params={},
    )
    return cls(tasks, engine)

  def evaluate(self, params: Any) -> Mapping[str, float]:
    """Exact match and F1 with these replicated parameters, as fractions."""
    engine = self.engine.with_params(params)
    predictions = []
    for first in range(0, len(self.tasks), _BLOCK):
      block = self.tasks[first : first + _BLOCK]
      readings = engine.read(
        [task.question for task in block], [task.passages for task in block]
      )
      for task, reading in zip(block, readings, strict=True):
        answer = reader_answers.answer(task.passages, task.scores, reading)
        predictions.append(answer.prediction)
    scores = answer_scores.means(
      predictions,
      [task.answers for task in self.tasks],
      [task.impossible for task in self.tasks],
    )
    return {f"dev_{name}": scores[name] for name in ("em", "f1")} | {
      "dev_questions": len(self.tasks)
    }
