"""Selects a question's answer from the readings of its passages."""

import dataclasses
from collections.abc import Sequence

from dpr_jax.data import records
from dpr_jax.inference import passage_reader


@dataclasses.dataclass(frozen=True)
class Answer:
  """An answer and its position; the defaults mean no answer.

  Attributes:
    prediction: the answer, text of the passage.
    index: index of the passage among those read; -1 = no answer.
    passage_id: id of the passage.
    score: score of the answer; None = no answer.
    start: index of the answer's first character in the passage's text.
    end: index after its last character.
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
  """The answer in the best of the passages that were read.

  Args:
    passages: passages of one question; those without a reading are ignored.
    scores: the retriever's score of each passage with a reading.
    readings: readings of the first passages.
    weight: weight of the retriever's scores, as in `passage_reader.choose`.
  """
  index, score = passage_reader.choose(readings, scores, weight)
  if index < 0:
    return Answer()
  reading, passage = readings[index], passages[index]
  text = cut(passage, reading)
  return Answer(text, index, passage.id, score, reading.start, reading.end)


def cut(passage: records.Passage, found: passage_reader.Reading) -> str:
  """The text of the passage that a reading selects."""
  return passage.text[found.start : found.end]
