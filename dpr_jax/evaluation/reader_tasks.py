"""What a reader reads: questions of a file, each with its passages.

In comes a results file in DPR's format, or a file in SQuAD's, whose questions
each have their paragraph; out comes a `Task` a question.
"""

import dataclasses
import pathlib
from collections.abc import Iterator

from dpr_jax.core import errors
from dpr_jax.data import records, squad_files
from dpr_jax.evaluation import evaluate as evaluate_lib


@dataclasses.dataclass(frozen=True)
class Task:
  """A question with what is to be read for it.

  Attributes:
    question: its text.
    answers: accepted ones; may be empty.
    passages: best first.
    scores: the retriever's, of each.
    id: SQuAD's, "" elsewhere.
    impossible: SQuAD v2.0 says that its paragraph has no answer.
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
    path: of the file.
    depth: passages of a question at most.

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
