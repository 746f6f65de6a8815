"""The questions that are retrieved for, one after the other.

In comes a workdir (its dev set) or any question file; out comes a stream of
questions without what retrieval does not need, each with its own id where the
format has one.
"""

import dataclasses
import os
from collections.abc import Iterator

from dpr_jax import workdir as workdir_lib
from dpr_jax.data import beir, records

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
  """

  where: str
  count: int | None
  source: workdir_lib.Workdir | str | os.PathLike

  def __iter__(self) -> Iterator[Asked]:
    from dpr_jax.data import formats, prepare

    if isinstance(self.source, workdir_lib.Workdir):
      dev = prepare.open_questions(self.source, "dev")
      for _, block in dev.blocks(_BLOCK):
        yield from (Asked("", _bare(question)) for question in block)
    elif beir.is_beir(self.source):
      for identifier, question in beir.read_queries(self.source):
        yield Asked(identifier, question)
    else:
      for question in formats.read_questions(self.source):
        yield Asked("", _bare(question))


def _bare(question: records.Question) -> records.Question:
  return records.Question(
    question.question, question.answers, positives=question.positives
  )


def open_set(
  workdir: workdir_lib.Workdir, questions_file: str | os.PathLike | None
) -> QuestionSet:
  """The workdir's dev questions, or those of a file.

  Args:
    workdir: read where there is no file.
    questions_file: `*.qa.csv`, DPR JSON or JSONL, BEIR's `queries.jsonl`.
  """
  from dpr_jax.data import prepare

  if questions_file is not None:
    return QuestionSet(str(questions_file), None, questions_file)
  count = len(prepare.open_questions(workdir, "dev"))
  where = f"{workdir.data / 'dev'} (config.data.dev)"
  return QuestionSet(where, count, workdir)
