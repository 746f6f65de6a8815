"""The texts of training batches, for libraries that tokenize themselves.

Input: the `batches.BatchSource` of a run.  Output: the first batches that any
library can train on, as texts: questions, and passages by column.  For our side
`BatchTokens` tokenizes them batch by batch as well.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Int

from dpr_jax.core import errors
from dpr_jax.data import batches, records, run_texts

LOOKED_AT = 200  # number of batches that are searched for suitable ones
Text = str | tuple[str, str]  # a pair is joined by [SEP]


@dataclasses.dataclass(frozen=True)
class Round:
  """The texts of one batch.

  Attributes:
    step: step of the run that uses the batch.
    questions: question texts as they are tokenized.
    columns: passage texts as they are tokenized: the positives of all
      questions, their first negatives, ...
  """

  step: int
  questions: list[str]
  columns: list[list[Text]]


def choose(source: batches.BatchSource, count: int) -> list[Round]:
  """The first batches that both sides can train on, repeated if too few.

  Batches with a missing negative, or with titles for some passages only, are
  skipped, because other libraries do not support them.

  Raises:
    InputError: there is no suitable batch.
  """
  found: list[Round] = []
  steps = min(source.steps, LOOKED_AT)
  for step in range(steps):
    if len(found) == count:
      break
    round_ = _texts(source, step)
    if round_ is not None:
      found.append(round_)
  if not found:
    raise errors.InputError(
      f"none of the first {steps} batches has"
      f" {source.sampler.mixture.count} hard negatives for every question, and"
      " all passages with a title or none: try --config.train.negatives=random"
      " or --config.model.title=none"
    )
  return [found[number % len(found)] for number in range(count)]


def _texts(source: batches.BatchSource, step: int) -> Round | None:
  """A batch's texts; None if a passage is missing or titles are mixed."""
  tokenizer, each = source.tokenizer, source.sampler.per_question
  indexes, epochs = source.plan.rows(step)
  questions = source.questions.take(indexes)
  passages, _ = source.sampler.passages_of_batch(questions, indexes, epochs)
  if any(passage is None for passage in passages):
    return None
  texts = [tokenizer.passage_text(passage) for passage in passages]
  if len({type(text) for text in texts}) > 1:
    return None
  return Round(
    step,
    [tokenizer.question_text(question.question) for question in questions],
    [texts[column::each] for column in range(each)],
  )


class BatchTokens:
  """Token ids of one batch, as `batches.Tokens`; the next replaces them.

  Training reads them from stores (`run_texts.RunTexts`).  Here they are made
  when the passages of a batch are asked for, from texts.
  """

  def __init__(self, source: batches.BatchSource):
    """Tokenizes nothing yet.

    Args:
      source: source of the run's texts, without tokens.
    """
    self._source = source
    (self._empty,) = source.tokenizer.passage_ids([records.Passage("", "", "")])
    self._questions: dict[int, list[int]] = {}
    self._passages: list[list[int]] = []

  def passages_of_batch(
    self,
    sampler: Any,
    indexes: Int[np.ndarray, " batch"],
    epochs: Int[np.ndarray, " batch"],
  ) -> tuple[
    Int[np.ndarray, "batch columns"], Int[np.ndarray, "batch columns"]
  ]:
    """Keys and text numbers of the passages of some questions."""
    tokenizer = self._source.tokenizer
    questions = self._source.questions.take(indexes)
    passages, keys = sampler.passages_of_batch(questions, indexes, epochs)
    ids = tokenizer.question_ids([each.question for each in questions])
    self._questions = dict(zip(indexes.tolist(), ids, strict=True))
    there = np.array([passage is not None for passage in passages])
    self._passages = tokenizer.passage_ids([p for p in passages if p])
    texts = np.where(there, np.cumsum(there) - 1, run_texts.NONE)
    shape = (len(indexes), -1)
    return np.asarray(keys).reshape(shape), texts.reshape(shape)

  def question_lengths(
    self, indexes: Int[np.ndarray, "*shape"]
  ) -> Int[np.ndarray, "*shape"]:
    """Number of tokens of questions of the batch."""
    return np.array([len(self._questions[i]) for i in indexes.tolist()])

  def passage_lengths(
    self, texts: Int[np.ndarray, "*shape"]
  ) -> Int[np.ndarray, "*shape"]:
    """Number of tokens of passages of the batch."""
    return np.array([len(self.passage(text)) for text in texts.tolist()])

  def question(self, index: int) -> Int[np.ndarray, " _"]:
    """Token ids of a question of the batch."""
    return np.array(self._questions[index], np.int32)

  def passage(self, text: int) -> Int[np.ndarray, " _"]:
    """Token ids of a passage of the batch."""
    ids = self._empty if text == run_texts.NONE else self._passages[text]
    return np.array(ids, np.int32)
