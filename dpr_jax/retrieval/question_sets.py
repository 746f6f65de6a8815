"""The questions that are retrieved for, one after the other.

In comes a workdir (its dev or train set) or any question file; out comes a
stream of questions without what retrieval does not need, each with its own id
where the format has one.
"""

import dataclasses
import os
from collections.abc import Iterator

from absl import logging

from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import beir_files, records

_BLOCK = 256


@dataclasses.dataclass(frozen=True)
class Asked:
  """A question and its id; "" where its row is all there is."""

  id: str
  question: records.Question


@dataclasses.dataclass(frozen=True)
class QuestionSet:
  """A set that can be read once or more, a question at a time.

  Attributes:
    where: for messages.
    count: how many; None where only reading tells.
    source: a workdir, or the path of a file.
    judged: ids of BEIR's questions to keep; None = all.  A file of BEIR holds
      those of all splits.
    split: of a workdir.
  """

  where: str
  count: int | None
  source: workdir_lib.Workdir | str | os.PathLike
  judged: frozenset[str] | None = None
  split: str = "dev"

  def __iter__(self) -> Iterator[Asked]:
    from dpr_jax.data import dpr_files, prepare

    if isinstance(self.source, workdir_lib.Workdir):
      table = prepare.open_questions(self.source, self.split)
      for _, block in table.blocks(_BLOCK):
        yield from (Asked("", _bare(question)) for question in block)
    elif beir_files.is_beir(self.source):
      left_out = 0
      for identifier, question in beir_files.read_queries(self.source):
        if self.judged is None or identifier in self.judged:
          yield Asked(identifier, question)
        else:
          left_out += 1
      if left_out:
        logging.info(
          "%s: %d questions not judged, left out", self.where, left_out
        )
    else:
      for question in dpr_files.read_questions(self.source):
        yield Asked("", _bare(question))


def _bare(question: records.Question) -> records.Question:
  return records.Question(
    question.question, question.answers, positives=question.positives
  )


def open_set(
  workdir: workdir_lib.Workdir,
  questions_file: str | os.PathLike | None,
  qrels: str | os.PathLike | None = None,
  split: str = "dev",
) -> QuestionSet:
  """The workdir's dev questions, or those of a file.

  Args:
    workdir: read where there is no file.
    questions_file: `*.qa.csv`, DPR JSON or JSONL, BEIR's `queries.jsonl`.
    qrels: judgements: only BEIR's questions that stand there are asked.
    split: of the workdir: "dev" or "train".
  """
  from dpr_jax.data import prepare

  if questions_file is not None:
    judged = None if qrels is None else frozenset(beir_files.read_qrels(qrels))
    return QuestionSet(str(questions_file), None, questions_file, judged)
  count = len(prepare.open_questions(workdir, split))
  where = f"{workdir.data / split} (config.data.{split})"
  return QuestionSet(where, count, workdir, split=split)
