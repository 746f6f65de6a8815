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
from dpr_jax.core import errors, setting_rules
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import (
  prepare,
  reader_examples,
  reader_tokenization,
  records,
  squad_files,
)
from dpr_jax.evaluation import evaluate as evaluate_lib
from dpr_jax.evaluation import exact_match
from dpr_jax.inference import passage_reader
from dpr_jax.models import reader_model
from dpr_jax.reading import read as read_lib
from dpr_jax.retrieval import retrieve as retrieve_lib

RESULTS = "results"
_BLOCK = 64  # dev questions read at once


def retrieve(
  config: ml_collections.ConfigDict, workdir: workdir_lib.Workdir
) -> None:
  """Retrieves for the training questions, where the reader learns from that."""
  reader = config.reader
  setting_rules.reader_source(reader.train)
  if reader.train == RESULTS:
    retrieve_lib.retrieve(
      config, workdir, name="train", methods=[reader.method], split="train"
    )


def _paths(
  config: ml_collections.ConfigDict, workdir: workdir_lib.Workdir
) -> dict[str, pathlib.Path]:
  """The files that are read, by role; `InputError` where one is missing."""
  reader = config.reader
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
      if name == RESULTS:
        fix = f"run `dpr-jax retrieve --method={reader.method}` first"
        if role == "dev":
          fix += ", or set config.reader.dev to a file, or dev_questions to 0"
      raise errors.InputError(
        f"config.reader.{role}={getattr(reader, role)!r}: {path} is missing:"
        f" {fix}"
      )
    found[role] = path
  return found


def inputs(
  config: ml_collections.ConfigDict, workdir: workdir_lib.Workdir
) -> dict[str, str]:
  """Fingerprints of what training reads, for a Stage."""
  found = {
    role: workdir_lib.fingerprint_file(path)
    for role, path in _paths(config, workdir).items()
  }
  checkpoint = config.reader.checkpoint
  if checkpoint:
    where = workdir_lib.Workdir(checkpoint)
    if (where.reader / workdir_lib.MANIFEST).exists():
      found["checkpoint"] = workdir_lib.manifest_fingerprint(
        where.reader, reader_model.STAGE
      )
  return found


def examples(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  tokenizer: reader_tokenization.ReaderTokenizer,
) -> reader_examples.Examples:
  """What the reader learns from.

  Raises:
    InputError: nothing can be learnt from it, or it is malformed.
  """
  reader = config.reader
  for name in ("from_top", "spans"):
    config_lib.at_least(f"reader.{name}", reader[name], 1)
  path = _paths(config, workdir)["train"]
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
      match=config.evaluate.match,
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

  tasks: list[read_lib.Task]
  engine: passage_reader.PassageReader

  @classmethod
  def make(
    cls,
    config: ml_collections.ConfigDict,
    workdir: workdir_lib.Workdir,
    reader: reader_model.Reader,
    ranks: bool,
  ) -> "DevQuestions | None":
    """The first dev questions; None where no figures are wanted.

    Args:
      config: the experiment.
      workdir: its folder.
      reader: structure and tokenizer.
      ranks: the rank head is being trained.
    """
    settings = config.reader
    wanted = config_lib.at_least(
      "reader.dev_questions", settings.dev_questions, 0
    )
    if not wanted:
      return None
    depth = config_lib.at_least("reader.dev_passages", settings.dev_passages, 1)
    path = _paths(config, workdir)["dev"]
    tasks = list(
      itertools.islice(read_lib.tasks_of(path, int(depth)), int(wanted))
    )
    if not tasks:
      raise errors.InputError(f"{path}: no dev questions in it")
    engine = passage_reader.PassageReader(
      dataclasses.replace(reader, ranks=ranks),
      tokens_per_core=config.read.tokens_per_core,
      length_step=config.read.length_step,
      span_tokens=config.read.span_tokens,
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
        predictions.append(read_lib.answer(task, found).prediction)
    scores = exact_match.mean_scores(
      predictions, [task.answers for task in self.tasks]
    )
    return {f"dev_{name}": value for name, value in scores.items()} | {
      "dev_questions": len(self.tasks)
    }
