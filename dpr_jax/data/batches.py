"""Training batches as a pure function of (seed, step, process).

Global row r of step s is place `s * batch_size + r` in the concatenation of the
epochs' permutations, so that no question is dropped at the end of an epoch and
the same run on 1, 8 or 2 x 4 cores sees the same batches.  A negative depends
on (seed, epoch, question) alone.  In what order the texts of a batch stand is
free, since every question knows the place of its positive: so they are sorted
into groups by length, and little is padding.  Grain makes the batches in the
background; the train loop gets NumPy arrays.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
from jaxtyping import Int

from dpr_jax.core import errors, setting_rules
from dpr_jax.data import negative_sampling, records, token_store, tokenization

_COLUMNS = 32  # other positives of a question that a step compares with
_LOOKED_AT = 20  # batches


@dataclasses.dataclass(frozen=True)
class Plan:
  """Which question stands in which global row of which step.

  Attributes:
    seed: of the run.
    questions: number of training questions.
    batch_size: questions in the global batch.
  """

  seed: int
  questions: int
  batch_size: int

  def steps(self, epochs: float, max_steps: int = 0) -> int:
    """Steps of a run, as of `setting_rules.total_steps`."""
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
  """Some texts of every core that are padded to one length.

  Attributes:
    rows: texts per core.
    length: tokens.
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
  """Groups by length that almost every batch fits, with the least padding.

  A process sorts its texts by length and deals them to its cores, the longest
  first.  How long the r-th longest of a batch may be is seen in batches drawn
  from a sample of texts; a batch that does not fit after all is padded to
  `limit` (see `BatchSource`).

  Args:
    lengths: token counts of some texts of the training data.
    rows: texts of a process in one batch.
    cores: of the process.
    groups: wanted at most.
    chunk: texts that a core encodes at once: groups are multiples of it.
    limit: tokens of a text at most; the length of the first group.
    draws: batches drawn; one in about so many will not fit.
  """
  each = rows // cores
  if groups <= 1 or not len(lengths):
    return (Group(each, limit),)
  unit = chunk if chunk and each % chunk == 0 else 1
  units = each // unit
  generator = np.random.default_rng(4)
  drawn = generator.choice(np.asarray(lengths), (draws, rows))
  drawn = -np.sort(-drawn, axis=1)
  # The longest text from each place on, were a group to begin there.
  longest = drawn[:, :: unit * cores].max(axis=0)
  longest = np.minimum(-(-longest // 8) * 8, limit)
  longest[0] = limit
  # best[g][u]: least padded length of the units from u on, in g more groups.
  best = [[longest[u] * (units - u) for u in range(units)] + [0]]
  ends = [[units] * (units + 1)]
  for _ in range(min(groups, units) - 1):
    costs, cuts = [], []
    for u in range(units):
      options = [
        (longest[u] * (end - u) + best[-1][end], end)
        for end in range(u + 1, units + 1)
      ]
      cost, end = min(options)
      costs.append(cost)
      cuts.append(end)
    best.append([*costs, 0])
    ends.append([*cuts, units])
  found, u = [], 0
  for cuts in reversed(ends):
    if u < units:
      found.append(Group((cuts[u] - u) * unit, int(longest[u])))
      u = cuts[u]
  return tuple(found)


@dataclasses.dataclass(frozen=True)
class _Arranged:
  """Texts of one kind, dealt to the cores.

  Attributes:
    groups: one `{"ids", "mask"}` per group.
    order: which text stands in each place; places count core by core.
  """

  groups: tuple[dict[str, np.ndarray], ...]
  order: Int[np.ndarray, " places"]

  @property
  def places(self) -> Int[np.ndarray, " texts"]:
    """Where each text stands."""
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
  """Sorts texts into groups; where one does not fit, pads all to `limit`."""
  lengths = np.array([len(row) for row in ids])
  order = np.argsort(-lengths, kind="stable")
  starts = np.cumsum([0, *(cores * group.rows for group in groups)])
  if len(groups) < 2 or any(
    lengths[order[start]] > group.length
    for start, group in zip(starts[:-1], groups, strict=True)
  ):
    groups = (Group(len(ids) // cores, limit),)
    order, starts = np.arange(len(ids)), np.array([0, len(ids)])
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
  """Knows which passages hold an answer: see `training.answer_masks`."""

  def excluded(self, question_indexes: Any, keys: Any, labels: Any) -> Any:
    """True [questions, passages] where a passage is no negative."""
    ...


@dataclasses.dataclass(frozen=True)
class BatchSource:
  """Random access to batches: `source[step]` is this process's share.

  Attributes:
    plan: which question stands where.
    steps: number of batches.
    questions: the training questions.
    sampler: chooses their passages.
    tokenizer: text to ids.
    tokens: the corpus's ids, so that negatives need not be tokenized; None =
      from their text.
    question_groups: shapes, see `length_groups`; () = one, all of full length.
    passage_groups: shapes of the passages.
    answer_rows: masks passages that hold an answer; None = no such mask.
    positive_columns: see `positive_columns`.
    cores: of this process.
    process: number of this process.
    processes: number of all processes.
  """

  plan: Plan
  steps: int
  questions: negative_sampling.Rows
  sampler: negative_sampling.Sampler
  tokenizer: tokenization.TextTokenizer
  tokens: token_store.TokenStore | None = None
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

    Texts stand in groups by length, dealt to the cores; what belongs to a text
    stands in the order of the groups' rows, core by core.

    Returns:
      `questions`, `passages`: a tuple of groups `{"ids", "mask"}` [rows,
      length]; of each question `question_rows` (its row in the global batch),
      `question_keys` (key of its positive, -1 = unknown) and `labels` (its
      positive's place among the passages of all cores), with
      `positive_columns` also `question_positives` [questions, columns] (keys of
      other positives of the question, -1 = none); of each passage
      `passage_rows` (question row * passages per question + number),
      `passage_valid` and `passage_keys`; with `answer_rows` also `excluded`
      [questions, passages of all cores].
    """
    indexes, epochs = self.plan.rows(int(step))
    share = self.plan.batch_size // self.processes
    first = self.process * share
    mine = slice(first, first + share)
    each = self.sampler.per_question
    questions = self.questions.take([int(i) for i in indexes[mine]])
    passages, keys = self.sampler.passages_of_batch(
      questions, indexes[mine], epochs[mine], texts=self.tokens is None
    )
    keys = np.asarray(keys, np.int32)
    asked = _arrange(
      self.tokenizer,
      self.tokenizer.question_ids([q.question for q in questions]),
      self.question_groups,
      self.cores,
      self.tokenizer.question_length,
    )
    read = _arrange(
      self.tokenizer,
      self._passage_ids(passages),
      self.passage_groups,
      self.cores,
      self.tokenizer.passage_length,
    )
    valid = np.array([passage is not None for passage in passages])
    labels = first * each + read.places[::each][asked.order]
    batch = {
      "questions": asked.groups,
      "passages": read.groups,
      "question_rows": (first + asked.order).astype(np.int32),
      "question_keys": keys[::each][asked.order],
      "labels": labels.astype(np.int32),
      "passage_rows": (first * each + read.order).astype(np.int32),
      "passage_valid": valid[read.order],
      "passage_keys": keys[read.order],
    }
    if self.positive_columns:
      others = self._other_positives(indexes, epochs, mine, keys[::each])
      batch["question_positives"] = others[asked.order]
    if self.answer_rows is not None:
      everyone = batch["passage_keys"]
      if self.processes > 1:  # then nothing is sorted, see `retriever_batches`
        everyone = self.sampler.keys_of_batch(indexes, epochs)
      batch["excluded"] = self.answer_rows.excluded(
        indexes[mine][asked.order], everyone, labels
      )
    return batch

  def _other_positives(
    self, indexes: np.ndarray, epochs: np.ndarray, mine: slice, own: np.ndarray
  ) -> Int[np.ndarray, "questions columns"]:
    """Keys of each question's positives but the one in the batch; -1 = none.

    A question may have more of them than there are columns: then those that
    are in the global batch count.  Where even these are too many, there are
    twice as many columns, the same on all processes: this batch's step is
    compiled for itself.
    """
    columns = self.positive_columns
    positives = {
      index: self.sampler.candidates[index].positives
      for index in np.unique(indexes).tolist()
    }
    many = [i for i, keys in positives.items() if len(keys) > columns + 1]
    if many:
      here = set(self.sampler.keys_of_batch(indexes, epochs).tolist())
      for index in many:
        positives[index] = [key for key in positives[index] if key in here]
      while max(len(positives[index]) for index in many) > columns + 1:
        columns *= 2
    found = np.full((len(own), columns), -1, np.int32)
    for place, (index, key) in enumerate(
      zip(indexes[mine].tolist(), own.tolist(), strict=True)
    ):
      others = [other for other in positives[index] if other != key]
      found[place, : len(others)] = others
    return found

  def _passage_ids(
    self, passages: Sequence[records.Passage | int | None]
  ) -> list[Sequence[int] | np.ndarray]:
    """Token ids: of a text, of a row of the corpus, of nothing."""
    empty = records.Passage("", "", "")
    texts = [each or empty for each in passages if not isinstance(each, int)]
    ids = iter(self.tokenizer.passage_ids(texts))
    return [
      self.tokens.ids(each) if isinstance(each, int) else next(ids)
      for each in passages
    ]


def positive_columns(sampler: negative_sampling.Sampler) -> int:
  """Columns of `question_positives`, for all batches: a power of two, or 0.

  As many as any question has positives besides the one in the batch, and at
  most `_COLUMNS`.
  """
  most = max((len(one.positives) for one in sampler.candidates), default=1) - 1
  if most < 1:
    return 0
  return 1 << (min(most, _COLUMNS) - 1).bit_length()


def check_negatives(source: BatchSource) -> None:
  """Refuses a run in which no question ever meets a negative.

  Looks at the first batches; a softmax over the own positive alone has no
  gradient.

  Raises:
    InputError: in none of them any question has one.
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
    " so that there is nothing to learn: set config.train.hard_negatives to at"
    " least 1 (config.train.negatives=random needs nothing mined), a larger"
    " batch, or give other questions"
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


def in_background(
  source: Source, first_step: int, buffer: int = 4
) -> Iterator[dict[str, np.ndarray]]:
  """Batches from `first_step` on, made by Grain's threads ahead of time."""
  dataset = grain.MapDataset.source(source)[first_step:]
  options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=buffer)
  return iter(dataset.to_iter_dataset(options))
