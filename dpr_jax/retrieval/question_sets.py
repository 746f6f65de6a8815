"""Streams the questions of a workdir or of a question file to retrieval.

Input: a workdir (its dev or train set) or a question file.  Output: a stream of
questions with the fields that retrieval needs, each with its id if the format
has ids.
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
  """A question and its id; "" = the format has no ids."""

  id: str
  question: records.Question


@dataclasses.dataclass(frozen=True)
class QuestionSet:
  """A question set that can be iterated over several times.

  Attributes:
    where: file or folder, for messages.
    count: number of questions; None = not known before reading.
    source: a workdir, or the path of a file.
    judged: ids of the questions of a BEIR file to keep; None = all.  Such a
      file has the questions of all splits.
    split: "dev" or "train", for a workdir.
    left_out: counts of questions and answers that were left out, filled by the
      iteration.
  """

  where: str
  count: int | None
  source: workdir_lib.Workdir | str | os.PathLike
  judged: frozenset[str] | None = None
  split: str = "dev"
  left_out: dict[str, int] = dataclasses.field(default_factory=dict)

  def __iter__(self) -> Iterator[Asked]:
    """Yields the questions; counts and logs what is left out.

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
          "%s: its questions have no ids, so --qrels selects all of them",
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
    workdir: workdir whose questions are used if there is no file.
    questions_file: `*.qa.csv`, DPR JSON or JSONL, or BEIR's `queries.jsonl`;
      None = the workdir's.
    qrels: BEIR judgements; only questions with a judgement are used.  None =
      all questions.
    split: "dev" or "train", for the workdir.
  """
  from dpr_jax.data import prepare

  if questions_file is not None:
    judged = None if qrels is None else frozenset(beir_files.read_qrels(qrels))
    return QuestionSet(str(questions_file), None, questions_file, judged)
  count = len(prepare.open_questions(workdir, split))
  where = f"{workdir.data / split} (config.data.{split})"
  return QuestionSet(where, count, workdir, split=split)
