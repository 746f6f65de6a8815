"""Training batches as a pure function of (seed, step, process).

Global row r of step s is item `s * batch_size + r` of the concatenation of the
epochs' permutations, so that no question is dropped at the end of an epoch and
the same run on 1, 8 or 2 x 4 devices sees the same batches.  A negative depends
only on (seed, epoch, question).  Texts are padded here, and packed by
`training.packed_batches`.  Grain makes the batches in the background; the train
loop gets NumPy arrays.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
from jaxtyping import Bool, Int

from dpr_jax.core import errors, setting_rules
from dpr_jax.data import (
  negative_sampling,
  other_positives,
  records,
  run_texts,
  tokenization,
)

_LOOKED_AT = 20  # batches that `check_negatives` reads


@dataclasses.dataclass(frozen=True)
class Plan:
  """Maps each global row of each step to a question.

  Attributes:
    seed: seed of the run.
    questions: number of training questions.
    batch_size: questions in the global batch.
  """

  seed: int
  questions: int
  batch_size: int

  def steps(self, epochs: float, max_steps: int = 0) -> int:
    """Steps of a run, from `setting_rules.total_steps`."""
    return setting_rules.total_steps(
      max_steps, epochs, self.questions, self.batch_size
    )

  def rows(self, step: int) -> tuple[np.ndarray, np.ndarray]:
    """(question indexes, epochs) of each global row of a step."""
    places = np.arange(self.batch_size, dtype=np.int64)
    places += step * self.batch_size
    epochs = places // self.questions
    indexes = np.empty_like(places)
    for epoch in np.unique(epochs):
      order = np.random.default_rng((self.seed, 1, int(epoch))).permutation(
        self.questions
      )
      chosen = epochs == epoch
      indexes[chosen] = order[places[chosen] % self.questions]
    return indexes, epochs


@runtime_checkable
class Tokens(Protocol):
  """Token ids of texts: see `run_texts.RunTexts`."""

  def passages_of_batch(self, sampler: Any, indexes: Any, epochs: Any) -> Any:
    """Keys and text numbers of some questions' passages."""
    ...

  def question_lengths(self, indexes: Any) -> Any:
    """Number of tokens of questions."""
    ...

  def passage_lengths(self, texts: Any) -> Any:
    """Number of tokens of passages, by their text numbers."""
    ...

  def question(self, index: int) -> Any:
    """Token ids of a question."""
    ...

  def passage(self, text: int) -> Any:
    """Token ids of a passage."""
    ...


@runtime_checkable
class AnswerRows(Protocol):
  """Finds passages that contain an answer: see `training.answer_masks`."""

  def excluded(self, question_indexes: Any, keys: Any, labels: Any) -> Any:
    """Bool [questions, passages]: True where a passage is not a negative."""
    ...


@runtime_checkable
class TeacherScores(Protocol):
  """Scores of a teacher: see `training.teacher_scores`."""

  def columns(self, question_indexes: Any, keys: Any, places: Any) -> Any:
    """Fields `candidates` and `teacher_scores` of a batch."""
    ...


@dataclasses.dataclass(frozen=True)
class BatchSource:
  """Random access to batches: `source[step]` is this process's share.

  Attributes:
    plan: maps global rows to questions.
    steps: number of batches.
    questions: the training questions.
    sampler: chooses their passages.
    tokenizer: text to ids.
    tokens: token ids of all texts of the run; None = tokenize the texts of a
      batch.
    answer_rows: masks passages that contain an answer; None = no mask.
    teacher_scores: scores of a teacher; None = no teacher.
    positive_columns: number of columns, see `other_positives.columns`.
    cores: devices of this process.
    process: index of this process.
    processes: number of processes.
  """

  plan: Plan
  steps: int
  questions: negative_sampling.Rows
  sampler: negative_sampling.Sampler
  tokenizer: tokenization.TextTokenizer
  tokens: Tokens | None = None
  answer_rows: AnswerRows | None = None
  teacher_scores: TeacherScores | None = None
  positive_columns: int = 0
  cores: int = 1
  process: int = 0
  processes: int = 1

  def __len__(self) -> int:
    return self.steps

  def __getitem__(self, step: int) -> dict[str, Any]:
    """The batch of a step.

    Returns:
      `questions`, `passages`: `{"ids", "mask"}` [texts, maximum length].  Per
      question: `question_rows` (its row in the global batch),
      `question_keys` (key of its positive, -1 = unknown) and `labels` (index of
      its positive among the passages of all devices); with `positive_columns`
      also `question_positives` [questions, columns] (keys of its other
      positives, -1 = none).  Per passage: `passage_rows` (question row *
      passages per question + number), `passage_valid` and `passage_keys`.  With
      `answer_rows` also `excluded` [questions, passages of all devices].  With
      `teacher_scores` also `candidates` [questions, passages per question]
      (index of each of its own passages that the teacher scored, -1 = not) and
      `teacher_scores` of these.
    """
    indexes, epochs = self.plan.rows(int(step))
    share = self.plan.batch_size // self.processes
    first = self.process * share
    mine = slice(first, first + share)
    each = self.sampler.per_question
    content = self._content(indexes[mine], epochs[mine])
    keys, tokenizer = content.keys, self.tokenizer
    rows = first + np.arange(share, dtype=np.int32)
    # Passage `each * q` is the positive of question q.
    labels = each * rows
    batch = {
      "questions": self._padded(content.questions, tokenizer.question_length),
      "passages": self._padded(content.passages, tokenizer.passage_length),
      "question_rows": rows,
      "question_keys": keys[::each],
      "labels": labels,
      "passage_rows": first * each + np.arange(len(keys), dtype=np.int32),
      "passage_valid": content.valid,
      "passage_keys": keys,
    }
    if self.positive_columns:
      batch["question_positives"] = other_positives.table(
        self.sampler,
        self.positive_columns,
        indexes,
        epochs,
        batch["question_rows"],
        batch["question_keys"],
      )
    if self.answer_rows is not None:
      everyone = keys
      if self.processes > 1:
        everyone = self.sampler.keys_of_batch(indexes, epochs)
      batch["excluded"] = self.answer_rows.excluded(
        indexes[mine], everyone, labels
      )
    if self.teacher_scores is not None:
      batch |= self.teacher_scores.columns(
        indexes[mine],
        keys.reshape(share, each),
        labels[:, None] + np.arange(each),
      )
    return batch

  def _padded(
    self, ids: Sequence[Sequence[int] | np.ndarray], length: int
  ) -> dict[str, np.ndarray]:
    tokens = self.tokenizer.pad(ids, length)
    return {"ids": tokens.ids, "mask": tokens.mask}

  def _content(self, indexes: np.ndarray, epochs: np.ndarray) -> "_Content":
    """The texts of some questions, from the token stores or tokenized."""
    if self.tokens is not None:
      keys, texts = self.tokens.passages_of_batch(self.sampler, indexes, epochs)
      return _Content(
        [self.tokens.question(index) for index in indexes.tolist()],
        [self.tokens.passage(text) for text in texts.reshape(-1).tolist()],
        keys.reshape(-1).astype(np.int32),
        texts.reshape(-1) != run_texts.NONE,
      )
    questions = self.questions.take(indexes)
    passages, keys = self.sampler.passages_of_batch(questions, indexes, epochs)
    empty = records.Passage("", "", "")
    return _Content(
      self.tokenizer.question_ids([each.question for each in questions]),
      self.tokenizer.passage_ids([passage or empty for passage in passages]),
      np.asarray(keys, np.int32),
      np.array([passage is not None for passage in passages]),
    )


@dataclasses.dataclass(frozen=True)
class _Content:
  """The texts of some questions, in the order of the questions.

  Attributes:
    questions: token ids of each question.
    passages: token ids of each passage.
    keys: key of each passage.
    valid: False where a question has no such negative.
  """

  questions: Sequence[Sequence[int] | np.ndarray]
  passages: Sequence[Sequence[int] | np.ndarray]
  keys: Int[np.ndarray, " passages"]
  valid: Bool[np.ndarray, " passages"]


def check_negatives(source: BatchSource) -> None:
  """Refuses a run without negatives: a softmax over positives has no gradient.

  Raises:
    InputError: no question has a negative in any of the first batches.
  """
  sampler = source.sampler
  for step in range(min(source.steps, _LOOKED_AT)):
    indexes, epochs = source.plan.rows(step)
    keys = set(sampler.keys_of_batch(indexes, epochs).tolist()) - {-1}
    for index in np.unique(indexes).tolist():
      if not keys <= set(sampler.candidates[index].positives):
        return
  raise errors.InputError(
    f"config.train.batch_size={source.plan.batch_size} with"
    f" {sampler.mixture.count} hard negatives: every passage of every batch is"
    f" a positive of its question ({len(source.questions)} training questions),"
    " so there is nothing to learn: set config.train.hard_negatives to at least"
    " 1 (config.train.negatives=random needs no mining), or a larger batch"
  )


@runtime_checkable
class Source(Protocol):
  """Random access to a process's batches: the retriever's or the reader's."""

  def __len__(self) -> int:
    """Number of batches."""
    ...

  def __getitem__(self, step: int) -> dict[str, Any]:
    """The batch of a step."""
    ...


@runtime_checkable
class ShapedSource(Source, Protocol):
  """A source that knows the shapes of its batches before it makes them."""

  def first_of_each_shape(self, steps: range) -> list[int]:
    """The first of some steps with each shape that one of them has.

    The same in all processes.
    """
    ...


def in_background(
  source: Source, first_step: int, buffer: int = 4
) -> Iterator[dict[str, np.ndarray]]:
  """Batches from `first_step` on, `buffer` of them prefetched by Grain."""
  dataset = grain.MapDataset.source(source)[first_step:]
  options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=buffer)
  return iter(dataset.to_iter_dataset(options))
