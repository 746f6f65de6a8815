"""Training batches as a pure function of (seed, step, process).

Global row r of step s is item `s * batch_size + r` of the concatenation of the
epochs' permutations, so that no question is dropped at the end of an epoch and
the same run on 1, 8 or 2 x 4 devices sees the same batches.  A negative depends
only on (seed, epoch, question).  The order of the texts in a batch is free,
because every question has the index of its positive: texts are sorted into
groups by length, which reduces padding.  Grain makes the batches in the
background; the train loop gets NumPy arrays.
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


@dataclasses.dataclass(frozen=True)
class Group:
  """Texts that are padded to one length, the same number on every device.

  Attributes:
    rows: texts per device.
    length: padded length in tokens.
  """

  rows: int
  length: int


def length_groups(
  lengths: Int[np.ndarray, " sample"],
  *,
  rows: int,
  cores: int,
  groups: int,
  chunk: int,
  limit: int,
  draws: int = 500,
) -> tuple[Group, ...]:
  """Length groups that fit almost every batch, with the least padding.

  A process sorts its texts by length and deals them to its devices, the longest
  first.  The length of the r-th longest text is estimated from batches drawn
  from a sample of texts; a batch that does not fit is padded to `limit` (see
  `BatchSource`).

  Args:
    lengths: token counts of a sample of the training data's texts.
    rows: texts of a process in one batch.
    cores: devices of the process.
    groups: number of groups, at most.
    chunk: texts that a device encodes at once; groups are multiples of it.
    limit: tokens of a text, at most; the length of the first group.
    draws: number of batches to draw; about one batch in so many will not fit.
  """
  each = rows // cores
  if groups <= 1 or not len(lengths):
    return (Group(each, limit),)
  unit = chunk if chunk and each % chunk == 0 else 1
  units = each // unit
  generator = np.random.default_rng(4)
  drawn = generator.choice(np.asarray(lengths), (draws, rows))
  drawn = -np.sort(-drawn, axis=1)
  # A unit is a chunk (or a text) per device.  longest[u]: padded length of a
  # group that begins at unit u, that of its longest text, a multiple of 8.
  longest = drawn[:, :: unit * cores].max(axis=0)
  longest = np.minimum(-(-longest // 8) * 8, limit)
  longest[0] = limit
  # Dynamic program over the number of groups.  best[g][u]: least padded length
  # of the units from u on in at most g + 1 groups, summed over units;
  # ends[g][u]: the end of the first of these groups.
  best = [[longest[u] * (units - u) for u in range(units)] + [0]]
  ends = [[units] * (units + 1)]
  for _ in range(min(groups, units) - 1):
    costs, cuts = [], []
    for u in range(units):
      # A first group of units u to end, and one group fewer for the rest.
      options = [
        (longest[u] * (end - u) + best[-1][end], end)
        for end in range(u + 1, units + 1)
      ]
      cost, end = min(options)
      costs.append(cost)
      cuts.append(end)
    best.append([*costs, 0])
    ends.append([*cuts, units])
  # Follow the choices, from the table with the most groups on.
  chosen, u = [], 0
  for cuts in reversed(ends):
    if u < units:
      chosen.append(Group((cuts[u] - u) * unit, int(longest[u])))
      u = cuts[u]
  return tuple(chosen)


@dataclasses.dataclass(frozen=True)
class _Arranged:
  """Texts of one kind, dealt to the devices.

  Attributes:
    groups: one `{"ids", "mask"}` per group.
    order: index of the text at each place; places count device by device.
  """

  groups: tuple[dict[str, np.ndarray], ...]
  order: Int[np.ndarray, " places"]

  @property
  def places(self) -> Int[np.ndarray, " texts"]:
    """Place of each text: the inverse permutation of `order`."""
    places = np.empty_like(self.order)
    places[self.order] = np.arange(len(self.order))
    return places


def _arrange(
  tokenizer: tokenization.TextTokenizer,
  ids: Sequence[Sequence[int] | np.ndarray],
  groups: Sequence[Group],
  cores: int,
  limit: int,
) -> _Arranged:
  """Sorts texts into groups; if one does not fit, pads all to `limit`."""
  lengths = np.array([len(row) for row in ids])
  order = np.argsort(-lengths, kind="stable")
  starts = np.cumsum([0, *(cores * group.rows for group in groups)])
  if len(groups) < 2 or any(
    lengths[order[start]] > group.length
    for start, group in zip(starts[:-1], groups, strict=True)
  ):
    groups = (Group(len(ids) // cores, limit),)
    order, starts = np.arange(len(ids)), np.array([0, len(ids)])
  # Per group [devices, rows]; joined along the rows below, a device's places
  # are consecutive.
  dealt = [
    order[start:end].reshape(cores, -1)
    for start, end in zip(starts[:-1], starts[1:], strict=True)
  ]
  tokens = [
    tokenizer.pad([ids[row] for row in rows.reshape(-1)], group.length)
    for rows, group in zip(dealt, groups, strict=True)
  ]
  return _Arranged(
    tuple({"ids": t.ids, "mask": t.mask} for t in tokens),
    np.concatenate(dealt, axis=1).reshape(-1),
  )


@runtime_checkable
class AnswerRows(Protocol):
  """Finds passages that contain an answer: see `training.answer_masks`."""

  def excluded(self, question_indexes: Any, keys: Any, labels: Any) -> Any:
    """Bool [questions, passages]: True where a passage is not a negative."""
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
    question_groups: shapes, see `length_groups`; () = one of full length.
    passage_groups: shapes of the passages.
    answer_rows: masks passages that contain an answer; None = no mask.
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
  tokens: run_texts.RunTexts | None = None
  question_groups: tuple[Group, ...] = ()
  passage_groups: tuple[Group, ...] = ()
  answer_rows: AnswerRows | None = None
  positive_columns: int = 0
  cores: int = 1
  process: int = 0
  processes: int = 1

  def __len__(self) -> int:
    return self.steps

  def __getitem__(self, step: int) -> dict[str, Any]:
    """The batch of a step.

    Texts are in groups by length, dealt to the devices; all other arrays are in
    the order of the groups' rows, device by device.

    Returns:
      `questions`, `passages`: a tuple of groups `{"ids", "mask"}` [rows,
      length].  Per question: `question_rows` (its row in the global batch),
      `question_keys` (key of its positive, -1 = unknown) and `labels` (index of
      its positive among the passages of all devices); with `positive_columns`
      also `question_positives` [questions, columns] (keys of its other
      positives, -1 = none).  Per passage: `passage_rows` (question row *
      passages per question + number), `passage_valid` and `passage_keys`.  With
      `answer_rows` also `excluded` [questions, passages of all devices].
    """
    indexes, epochs = self.plan.rows(int(step))
    share = self.plan.batch_size // self.processes
    first = self.process * share
    mine = slice(first, first + share)
    each = self.sampler.per_question
    content = self._content(indexes[mine], epochs[mine])
    asked = _arrange(
      self.tokenizer,
      content.questions,
      self.question_groups,
      self.cores,
      self.tokenizer.question_length,
    )
    read = _arrange(
      self.tokenizer,
      content.passages,
      self.passage_groups,
      self.cores,
      self.tokenizer.passage_length,
    )
    keys = content.keys
    # Passage `each * q` of this process is the positive of its question q.
    labels = first * each + read.places[::each][asked.order]
    batch = {
      "questions": asked.groups,
      "passages": read.groups,
      "question_rows": (first + asked.order).astype(np.int32),
      "question_keys": keys[::each][asked.order],
      "labels": labels.astype(np.int32),
      "passage_rows": (first * each + read.order).astype(np.int32),
      "passage_valid": content.valid[read.order],
      "passage_keys": keys[read.order],
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
      everyone = batch["passage_keys"]
      if self.processes > 1:  # texts are then not sorted: `retriever_batches`
        everyone = self.sampler.keys_of_batch(indexes, epochs)
      batch["excluded"] = self.answer_rows.excluded(
        indexes[mine][asked.order], everyone, labels
      )
    return batch

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
