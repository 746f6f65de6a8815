"""The texts of training batches, for libraries that tokenize themselves.

Input: the `batches.BatchSource` of a run.  Output: the first batches that any
library can train on, as texts: questions, and passages by column.
"""

import dataclasses

from dpr_jax.core import errors
from dpr_jax.data import batches

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
