"""The texts of a training's batches, for programs that tokenize themselves.

In comes the run's `batches.BatchSource`, out come the first of its batches that
any library can train on, as texts: questions, and passages by column.
"""

import dataclasses

from dpr_jax.core import errors
from dpr_jax.data import batches

LOOKED_AT = 200  # batches of the run, for some that both sides can train on
Text = str | tuple[str, str]  # a pair is joined by [SEP]


@dataclasses.dataclass(frozen=True)
class Round:
  """The texts of one batch.

  Attributes:
    step: which batch of the run it is.
    questions: as they are tokenized.
    columns: passages as they are tokenized: every question's positive, every
      question's first negative, ...
  """

  step: int
  questions: list[str]
  columns: list[list[Text]]


def choose(source: batches.BatchSource, count: int) -> list[Round]:
  """The run's first batches that both sides can train on, repeated if few.

  A batch where a negative is missing, or only some passages have a title, is
  passed over: other libraries do not know the one or the other.

  Raises:
    InputError: there is none.
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
  """A batch's texts; None where one is missing or of another form."""
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
