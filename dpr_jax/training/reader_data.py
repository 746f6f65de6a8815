"""What the reader's training reads: examples, and dev questions.

In comes what `config.reader.train` and `config.reader.dev` name: a file in
SQuAD's format, a results file in DPR's, or the workdir's own results.  Out come
`reader_examples.Examples` for the batches, and `DevQuestions`, which give the
dev figures of `reader/metrics.jsonl`.
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
  """The files that are read, by role; `InputError` where one is missing."""
  names = {"train": reader.train}
  if reader.dev_questions > 0:
    names["dev"] = reader.dev or RESULTS
  found = {}
  for role, name in names.items():
    path = pathlib.Path(os.path.expanduser(name))
    if name == RESULTS:
      path = workdir.results(role, reader.method)
    if not path.is_file():
      fix = "give a file"
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
    found[role] = path
  return found


def inputs(
  reader: ml_collections.ConfigDict, workdir: workdir_lib.Workdir
) -> dict[str, str]:
  """Fingerprints of what training reads, for a Stage.

  Args:
    reader: the config's section.
    workdir: its folder.

  Raises:
    InputError: a file is missing.
  """
  found = {
    role: workdir_lib.fingerprint_file(path)
    for role, path in _paths(reader, workdir).items()
  }
  checkpoint = reader.checkpoint
  if checkpoint:
    where = workdir_lib.Workdir(checkpoint)
    if (where.reader / workdir_lib.MANIFEST).exists():
      found["checkpoint"] = workdir_lib.manifest_fingerprint(
        where.reader, reader_model.STAGE
      )
  return found


def examples(
  reader: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  tokenizer: reader_tokenization.ReaderTokenizer,
  *,
  match: str,
) -> reader_examples.Examples:
  """What the reader learns from.

  Args:
    reader: the config's section.
    workdir: its folder.
    tokenizer: the reader's.
    match: what counts as an answer in retrieved passages, `evaluate.match`.

  Raises:
    InputError: nothing can be learnt from it, or it is malformed.
  """
  for name in ("from_top", "spans"):
    config_lib.at_least(f"reader.{name}", reader[name], 1)
  path = _paths(reader, workdir)["train"]
  if squad_files.is_squad(path):
    found = reader_examples.from_squad(
      squad_files.read_squad(path), tokenizer, most_spans=reader.spans
    )
  else:
    golden: Sequence[Sequence[records.Passage]] = ()
    if reader.train == RESULTS:
      table = prepare.open_questions(workdir, "train")
      golden = [list(one.positives) for one in table.take(range(len(table)))]
    found = reader_examples.from_results(
      evaluate_lib.read_results(path),
      tokenizer,
      golden=golden,
      match=match,
      from_top=reader.from_top,
      most_spans=reader.spans,
    )
  found.log(str(path))
  few = sum(len(one.negatives) < reader.passages - 1 for one in found.examples)
  if few:
    logging.info(
      "train-reader: %d of %d questions have fewer than %d negatives: what is"
      " missing is padded and masked",
      few,
      len(found.examples),
      reader.passages - 1,
    )
  return found


@dataclasses.dataclass(frozen=True)
class DevQuestions:
  """Questions whose answers are compared during training.

  Attributes:
    tasks: questions with the passages to read.
    engine: reads them, with the parameters of the moment.
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
    """The first dev questions; None where no figures are wanted.

    Args:
      settings: section `reader` of the config.
      read: section `read`: how passages are read.
      workdir: its folder.
      reader: structure and tokenizer.
      ranks: the rank head is being trained.
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
      raise errors.InputError(f"{path}: no dev questions in it")
    known = [
      t for t in tasks if answer_scores.is_judged(t.answers, t.impossible)
    ]
    if not known:
      raise errors.InputError(
        f"{path}: none of the first {len(tasks)} questions has an answer to"
        " compare with: give another config.reader.dev, or set"
        " config.reader.dev_questions=0"
      )
    if len(known) < len(tasks):
      logging.warning(
        "train-reader: %s: %d of %d questions have no answer to compare with,"
        " left out",
        path,
        len(tasks) - len(known),
        len(tasks),
      )
    tasks = known
    engine = passage_reader.PassageReader(
      dataclasses.replace(reader, ranks=ranks),
      tokens_per_core=read.tokens_per_core,
      length_step=read.length_step,
      span_tokens=read.span_tokens,
      params={},
    )
    return cls(tasks, engine)

  def evaluate(self, params: Any) -> Mapping[str, float]:
    """Exact match and F1 of these replicated parameters, as fractions."""
    engine = self.engine.with_params(params)
    predictions = []
    for first in range(0, len(self.tasks), _BLOCK):
      some = self.tasks[first : first + _BLOCK]
      readings = engine.read(
        [task.question for task in some], [task.passages for task in some]
      )
      for task, found in zip(some, readings, strict=True):
        answer = reader_answers.answer(task.passages, task.scores, found)
        predictions.append(answer.prediction)
    scores = answer_scores.means(
      predictions,
      [task.answers for task in self.tasks],
      [task.impossible for task in self.tasks],
    )
    return {f"dev_{name}": scores[name] for name in ("em", "f1")} | {
      "dev_questions": len(self.tasks)
    }
