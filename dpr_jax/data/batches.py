"""Training batches as a pure function of (seed, step, process).

Global row r of step s is place `s * batch_size + r` in the concatenation of the
epochs' permutations, so that no question is dropped at the end of an epoch and
the same run on 1, 8 or 2 x 4 cores sees the same batches.  A negative depends
on (seed, epoch, question) alone.  Grain makes the batches in the background;
the train loop gets NumPy arrays, one row per text of this process.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
from jaxtyping import Int

from dpr_jax import errors
from dpr_jax.data import records, tokenization

KINDS = ("bm25", "given", "random")


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

  def steps(self, epochs: float) -> int:
    """Steps that see every question `epochs` times, rounded up."""
    return max(1, -int(-epochs * self.questions // self.batch_size))

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
class Candidate:
  """A question's passages as the sampler needs them: rows of the corpus.

  Attributes:
    positive: corpus row of the gold passage, -1 where it is in no corpus.
    hard: corpus rows of its hard negatives, best first.
  """

  positive: int
  hard: Int[np.ndarray, " negatives"]


def choose_negatives(
  candidate: Candidate,
  *,
  count: int,
  from_top: int,
  kind: str,
  corpus_size: int,
  key: Sequence[int],
) -> Int[np.ndarray, " count"]:
  """Corpus rows of one question's negatives, -1 where there are too few.

  Args:
    candidate: the question's passages.
    count: negatives wanted.
    from_top: hard negatives are drawn from the best so many, without
      replacement; with `from_top == count` they are simply the best.
    kind: "random" draws from the whole corpus, else from the hard negatives.
    corpus_size: passages in the corpus.
    key: seeds the draw: (seed, epoch, question).
  """
  chosen = np.full(count, -1, np.int64)
  generator = np.random.default_rng(tuple(key))
  if kind == "random":
    pool = corpus_size - (candidate.positive >= 0)
    drawn = generator.choice(pool, min(count, pool), replace=False)
    if candidate.positive >= 0:
      drawn += drawn >= candidate.positive
  else:
    pool = candidate.hard[: max(from_top, count)]
    drawn = (generator.permutation(pool) if from_top > count else pool)[:count]
  chosen[: len(drawn)] = drawn
  return chosen


@runtime_checkable
class Rows(Protocol):
  """What is needed of a `tables.QuestionTable` or `tables.PassageTable`."""

  def __len__(self) -> int:
    """Number of rows."""
    ...

  def take(self, rows: Sequence[int] | np.ndarray) -> list[Any]:
    """The records of some rows, in their order."""
    ...


@dataclasses.dataclass(frozen=True)
class BatchSource:
  """Random access to batches: `source[step]` is this process's share.

  Attributes:
    plan: which question stands where.
    steps: number of batches.
    questions: the training questions.
    passages: the corpus.
    candidates: one per training question.
    tokenizer: text to ids.
    negatives: hard negatives per question.
    from_top: see `choose_negatives`.
    kind: see `choose_negatives`; "given" uses the passages in the data.
    process: number of this process.
    processes: number of all processes.
  """

  plan: Plan
  steps: int
  questions: Rows
  passages: Rows
  candidates: Sequence[Candidate]
  tokenizer: tokenization.TextTokenizer
  negatives: int
  from_top: int
  kind: str
  process: int = 0
  processes: int = 1

  def __post_init__(self):
    if self.kind not in KINDS:
      raise errors.InputError(
        f"config.train.negatives={self.kind!r}: must be one of"
        f" {', '.join(KINDS)}"
      )

  def __len__(self) -> int:
    return self.steps

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    """The batch of a step.

    Returns:
      `question_ids`, `question_mask` [questions, length], `passage_ids`,
      `passage_mask` [questions * (1 + negatives), length], `passage_valid`
      and `passage_keys` [same], `global_rows` [questions]; passages of
      question i stand at i * (1 + negatives), its positive first.
    """
    indexes, epochs = self.plan.rows(int(step))
    share = self.plan.batch_size // self.processes
    mine = slice(self.process * share, (self.process + 1) * share)
    rows = np.arange(self.plan.batch_size)[mine]
    questions = self.questions.take([int(i) for i in indexes[mine]])
    passages, keys = [], []
    for question, index, epoch in zip(
      questions, indexes[mine], epochs[mine], strict=True
    ):
      mine_passages, mine_keys = self._passages(
        question, int(index), int(epoch)
      )
      passages += mine_passages
      keys += mine_keys
    question_tokens = self.tokenizer.questions([q.question for q in questions])
    valid = np.array([passage is not None for passage in passages])
    empty = records.Passage("", "", "")
    passage_tokens = self.tokenizer.passages(
      [passage or empty for passage in passages]
    )
    return {
      "question_ids": question_tokens.ids,
      "question_mask": question_tokens.mask,
      "passage_ids": passage_tokens.ids,
      "passage_mask": passage_tokens.mask,
      "passage_valid": valid,
      "passage_keys": np.array(keys, np.int32),
      "global_rows": rows.astype(np.int32),
    }

  def _passages(
    self, question: records.Question, index: int, epoch: int
  ) -> tuple[list[records.Passage | None], list[int]]:
    """A question's positive and negatives, and their corpus rows."""
    candidate = self.candidates[index]
    if self.kind == "given":
      given = [*question.hard_negatives, *question.negatives]
      given = given[: self.negatives]
      padding: list = [None] * (self.negatives - len(given))
      keys = [candidate.positive] + [-1] * self.negatives
      return [question.positives[0], *given, *padding], keys
    chosen = choose_negatives(
      candidate,
      count=self.negatives,
      from_top=self.from_top,
      kind=self.kind,
      corpus_size=len(self.passages),
      key=(self.plan.seed, 2, epoch, index),
    )
    found = self.passages.take(chosen[chosen >= 0])
    padding = [None] * (self.negatives - len(found))
    keys = [candidate.positive, *(int(row) for row in chosen)]
    return [question.positives[0], *found, *padding], keys


def in_background(
  source: BatchSource, first_step: int, buffer: int = 4
) -> Iterator[dict[str, np.ndarray]]:
  """Batches from `first_step` on, made by Grain's threads ahead of time."""
  dataset = grain.MapDataset.source(source)[first_step:]
  options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=buffer)
  return iter(dataset.to_iter_dataset(options))
