"""From readings of a question's passages to the answer that is given."""

import dataclasses
from collections.abc import Sequence

from dpr_jax.data import records
from dpr_jax.inference import passage_reader


@dataclasses.dataclass(frozen=True)
class Answer:
  """An answer and where it stands; all empty where there is none.

  Attributes:
    prediction: text of the passage, unchanged.
    index: of the passage among those read, -1 for none.
    passage_id: its id.
    score: that decided; None where there is no answer.
    start: character of the passage's text where it starts.
    end: character behind it.
  """

  prediction: str = ""
  index: int = -1
  passage_id: str = ""
  score: float | None = None
  start: int = 0
  end: int = 0


def answer(
  passages: Sequence[records.Passage],
  scores: Sequence[float],
  readings: Sequence[passage_reader.Reading],
  weight: float = 0.0,
) -> Answer:
  """The answer of the best of the passages that were read.

  Args:
    passages: of one question; those without a reading are not looked at.
    scores: the retriever's, one for each reading.
    readings: of the first passages.
    weight: of the retriever's scores, as in `passage_reader.choose`.
  """
  index, score = passage_reader.choose(readings, scores, weight)
  if index < 0:
    return Answer()
  found, passage = readings[index], passages[index]
  text = cut(passage, found)
  return Answer(text, index, passage.id, score, found.start, found.end)


def cut(passage: records.Passage, found: passage_reader.Reading) -> str:
  """The words of the passage that a reading points at."""
  return passage.text[found.start : found.end]
