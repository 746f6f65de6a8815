"""Reads the reader's input: questions of a file, each with its passages.

Input: a results file in DPR's format, or a file in SQuAD's format, whose
questions have one paragraph each.  Output: one `Task` per question.
"""

import dataclasses
import pathlib
from collections.abc import Iterator

from dpr_jax.core import errors
from dpr_jax.data import records, squad_files
from dpr_jax.evaluation import evaluate as evaluate_lib


@dataclasses.dataclass(frozen=True)
class Task:
  """A question with the passages to read.

  Attributes:
    question: text of the question.
    answers: accepted answers; may be empty.
    passages: passages to read, best first.
    scores: the retriever's score of each passage.
    id: SQuAD's id; "" for other files.
    impossible: the paragraph has no answer (SQuAD v2.0).
  """

  question: str
  answers: tuple[str, ...]
  passages: list[records.Passage]
  scores: list[float]
  id: str = ""
  impossible: bool = False


def tasks_of(path: pathlib.Path, depth: int) -> Iterator[Task]:
  """Questions of a results file or of a file in SQuAD's format.

  Args:
    path: path of the file.
    depth: maximum number of passages per question.

  Raises:
    InputError: the file is malformed.
  """
  if squad_files.is_squad(path):
    for one in squad_files.read_squad(path):
      yield Task(
        one.question,
        one.answers,
        [one.paragraph],
        [0.0],
        one.id,
        one.impossible,
      )
    return
  for row, entry in enumerate(evaluate_lib.read_results(path)):
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
