"""The questions that are retrieved for, one after the other.

In comes a workdir (its dev or train set) or any question file; out comes a
stream of questions without what retrieval does not need, each with its own id
where the format has one.
"""

import dataclasses
import os
from collections.abc import Iterator

from absl import logging

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import beir_files, records

_BLOCK = 256
_LEFT_OUT = (
  "questions_not_judged",
  "questions_without_text",
  "answers_without_tokens",
)


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
    left_out: counts of what is not asked, after the iteration.
  """

  where: str
  count: int | None
  source: workdir_lib.Workdir | str | os.PathLike
  judged: frozenset[str] | None = None
  split: str = "dev"
  left_out: dict[str, int] = dataclasses.field(default_factory=dict)

  def __iter__(self) -> Iterator[Asked]:
    """Yields the questions; what is left out is counted, then logged.

    Raises:
      InputError: the file is malformed, or two questions have one id.
    """
    from dpr_jax.data import kept_rows

    counts = dict.fromkeys(_LEFT_OUT, 0)
    seen: set[str] = set()
    for asked in self._rows():
      if asked.id and self.judged is not None and asked.id not in self.judged:
        counts["questions_not_judged"] += 1
        continue
      if not asked.question.question.strip():
        counts["questions_without_text"] += 1
        continue
      if asked.id and (name := records.trec_id(asked.id)) in seen:
        raise errors.InputError(
          f"{self.where}: two questions have the id {name!r} (white space"
          " counts as _): give one of them another"
        )
      elif asked.id:
        seen.add(name)
      kept = kept_rows.with_real_answers(asked.question)
      counts["answers_without_tokens"] += len(asked.question.answers) - len(
        kept.answers
      )
      yield Asked(asked.id, kept)
    self.left_out.update(counts)
    for name, count in counts.items():
      if count:
        logging.info(
          "%s: %d %s, left out", self.where, count, name.replace("_", " ")
        )

  def _rows(self) -> Iterator[Asked]:
    from dpr_jax.data import dpr_files, prepare

    if isinstance(self.source, workdir_lib.Workdir):
      table = prepare.open_questions(self.source, self.split)
      for _, block in table.blocks(_BLOCK):
        yield from (Asked("", _bare(question)) for question in block)
    elif beir_files.is_beir(self.source):
      for identifier, question in beir_files.read_queries(self.source):
        yield Asked(identifier, _bare(question))
    else:
      if self.judged is not None:
        logging.warning(
          "%s: its questions have no ids, so --qrels leaves none of them out",
          self.where,
        )
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
