"""Draws the negatives of training questions.

Input: the candidates of every question (keys of its positives and of its ranked
hard negatives) and the mixture of the config.  Output, for any questions and
epochs: the passages of a batch, the positive first, then the negatives, with
their keys.  A draw depends only on (seed, epoch, question), not on the batch,
the process or the number of devices.

A key identifies a title and a text: it is the first row of the corpus that has
them, or, for a passage of the question files that no row has, a number from the
size of the corpus on (assigned by `data.candidates`).
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int

from dpr_jax.data import negative_mixture, records, same_passages

# How one of several positives is chosen: the first, or drawn in every epoch.
POSITIVES = ("first", "drawn")
# Parts of the seeds, which keep these draws independent of the epochs' order.
_DRAW, _POSITIVE = 2, 5


@runtime_checkable
class Rows(Protocol):
  """The methods of `QuestionTable` and `PassageTable` that are used here."""

  def __len__(self) -> int:
    """Number of rows."""
    ...

  def take(self, rows: Sequence[int] | np.ndarray) -> list[Any]:
    """The records of some rows, in their order."""
    ...


@dataclasses.dataclass(frozen=True)
class Candidate:
  """Keys of a question's passages.

  Attributes:
    positive: key of the gold passage, the first positive; -1 = unknown.
    pools: keys by kind, best first; -1 (unknown) is skipped.  For "given", an
      entry per passage of `hard_negatives`, then `negatives`.
    other_positives: keys of the question's positives after the first.
    elsewhere: keys of the positives of the same question in other rows of the
      data, and rows of copies of any positive; they are never negatives.
  """

  positive: int
  pools: Mapping[str, np.ndarray]
  other_positives: Sequence[int] | np.ndarray = ()
  elsewhere: Sequence[int] | np.ndarray = ()

  @property
  def own(self) -> list[int]:
    """Keys of the question's positives, in the order of the data."""
    return [self.positive, *map(int, self.other_positives)]

  @property
  def positives(self) -> list[int]:
    """Keys of all passages that are not negatives of this question."""
    keys = [*self.own, *map(int, self.elsewhere)]
    return [key for key in dict.fromkeys(keys) if key >= 0]


def choose(
  candidate: Candidate,
  mixture: negative_mixture.Mixture,
  *,
  from_top: int,
  corpus_size: int,
  key: Sequence[int],
) -> Int[np.ndarray, " count"]:
  """Keys of one question's negatives, in the order of the mixture.

  Keys are distinct, and none is of a positive.  If a kind has too few, its last
  columns are -1, which are padded and masked.

  Args:
    candidate: the question's passages.
    mixture: kinds and numbers of negatives.
    from_top: mined and given negatives are drawn without replacement from the
      first `from_top` of their list; a kind with a count of at least `from_top`
      takes the first ones of its list.
    corpus_size: passages in the corpus, from which random ones are drawn.
    key: seed of the draw.
  """
  chosen = np.full(mixture.count, -1, np.int64)
  taken = set(candidate.positives)
  generator = None
  first = 0
  for kind, count in mixture.parts:
    if kind == "random" or from_top > count:
      generator = generator or np.random.default_rng(tuple(key))
    if kind == "random":
      drawn = _random(generator, count, candidate.positive, taken, corpus_size)
    else:
      pool = _distinct(candidate.pools[kind], taken)
      if from_top <= count:
        drawn = pool[:count]
      else:
        drawn = generator.permutation(pool[:from_top])[:count]
    chosen[first : first + len(drawn)] = drawn
    taken |= {int(row) for row in drawn}
    first += count
  return chosen


def _distinct(pool: np.ndarray, taken: set[int]) -> np.ndarray:
  """The pool in its order, without repeated keys, taken keys and -1."""
  wanted = dict.fromkeys(pool.tolist())
  return np.array(
    [key for key in wanted if key not in taken and key >= 0], np.int64
  )


def _random(
  generator: np.random.Generator,
  count: int,
  positive: int,
  taken: set[int],
  corpus_size: int,
) -> np.ndarray:
  """Distinct rows, uniform over the rows of the corpus that are not taken.

  Rows are drawn without the positive first; the few that are taken otherwise
  are drawn again, which does not change the other draws.
  """
  gold = {positive} if 0 <= positive < corpus_size else set()
  drawn = _uniform(generator, count, gold, corpus_size).tolist()
  kept = [row for row in drawn if row not in taken]
  if len(kept) < len(drawn):
    without = taken | set(kept)
    missing = count - len(kept)
    kept += _uniform(generator, missing, without, corpus_size).tolist()
  return np.array(kept, np.int64)


def _uniform(
  generator: np.random.Generator,
  count: int,
  without: set[int],
  corpus_size: int,
) -> np.ndarray:
  """At most `count` distinct rows below `corpus_size`, none of `without`."""
  excluded = sorted(row for row in without if 0 <= row < corpus_size)
  left = corpus_size - len(excluded)
  drawn = generator.choice(left, min(count, left), replace=False)
  for row in excluded:  # ascending: each one shifts the rows from it on
    drawn += drawn >= row
  return drawn


@dataclasses.dataclass(frozen=True)
class Sampler:
  """The passages of any questions in any epochs.

  Attributes:
    passages: the corpus.
    candidates: one per training question, with a pool for each mined kind of
      the mixture.
    mixture: kinds and numbers of negatives.
    from_top: see `choose`.
    seed: seed of the run.
    copies: rows of the corpus with the same title and text.
    drawn: a question's positive is drawn in every epoch; False = its first one.
  """

  passages: Rows
  candidates: Sequence[Candidate]
  mixture: negative_mixture.Mixture
  from_top: int
  seed: int
  copies: same_passages.Copies = dataclasses.field(
    default_factory=same_passages.Copies.none
  )
  drawn: bool = False

  @property
  def per_question(self) -> int:
    """Number of passages per question: a positive and the negatives."""
    return 1 + self.mixture.count

  def possible_rows(self) -> Int[np.ndarray, " rows"]:
    """Corpus rows of all passages that can come up in a batch, ascending."""
    if "random" in self.mixture.kinds:
      return np.arange(len(self.passages))
    rows: set[int] = set()
    for candidate in self.candidates:
      taken = set(candidate.positives)
      rows.update(candidate.own if self.drawn else [candidate.positive])
      before = 0  # negatives of the kinds before, which may be in this pool too
      for kind, count in self.mixture.parts:
        pool = _distinct(candidate.pools[kind], taken)
        top = max(self.from_top, count)
        rows.update(pool[: top + before].tolist())
        before += count
    size = len(self.passages)
    return np.array(sorted(row for row in rows if 0 <= row < size), np.int64)

  def keys_of_batch(
    self,
    indexes: Sequence[int] | np.ndarray,
    epochs: Sequence[int] | np.ndarray,
  ) -> Int[np.ndarray, " passages"]:
    """Keys of some questions' passages; no text is read.

    Args:
      indexes: indexes of training questions.
      epochs: epoch of each question.

    Returns:
      Key of the positive, then of each negative, question by question; -1
      where there is no passage.
    """
    return self.chosen(indexes, epochs)[0].reshape(-1)

  def passages_of_batch(
    self,
    questions: Sequence[records.Question],
    indexes: Sequence[int] | np.ndarray,
    epochs: Sequence[int] | np.ndarray,
  ) -> tuple[list[records.Passage | None], list[int]]:
    """Some questions' passages, each one's positive first, then negatives.

    Args:
      questions: records of the questions.
      indexes: indexes of training questions.
      epochs: epoch of each question.

    Returns:
      (passages, keys), both flat in the order of the questions; None instead of
      a passage where a kind has too few.  Keys as in `keys_of_batch`.
    """
    chosen, numbers = self.chosen(indexes, epochs)
    given = self.are_given
    in_corpus = (chosen >= 0) & ~given
    in_corpus[:, 0] = False  # the positive comes from the question's record
    rows = np.unique(chosen[in_corpus])
    by_row = dict(zip(rows.tolist(), self.passages.take(rows), strict=True))
    passages: list[records.Passage | None] = []
    for question, index, number, row in zip(
      questions, indexes, numbers, chosen, strict=True
    ):
      passages.append(question.positives[number])
      for entry, is_given in zip(row[1:].tolist(), given[1:], strict=True):
        if is_given and entry != -1:
          in_data = (*question.hard_negatives, *question.negatives)
          passages.append(in_data[self.given_place(int(index), entry)])
        else:
          passages.append(by_row.get(entry))
    return passages, chosen.reshape(-1).tolist()

  @property
  def are_given(self) -> Bool[np.ndarray, " columns"]:
    """Which of a question's passages are negatives of the question file."""
    kinds = [kind for kind, count in self.mixture.parts for _ in range(count)]
    return np.array([False, *(kind == "given" for kind in kinds)])

  def given_place(self, index: int, key: int) -> int:
    """Place of a negative in its question's hard negatives and negatives."""
    return int(np.argmax(self.candidates[index].pools["given"] == key))

  def given_depth(self, candidate: Candidate) -> int:
    """Number of first negatives of a record that may be chosen from."""
    pool = candidate.pools["given"]
    before = 0  # chosen by the kinds before, which may be in this pool too
    for kind, count in self.mixture.parts:
      if kind == "given":
        kept = _distinct(pool, set(candidate.positives))
        kept = kept[: max(self.from_top, count) + before]
        places = [int(np.argmax(pool == key)) for key in kept]
        return max(places, default=-1) + 1
      before += count
    return 0

  def chosen(
    self,
    indexes: Sequence[int] | np.ndarray,
    epochs: Sequence[int] | np.ndarray,
  ) -> tuple[
    Int[np.ndarray, "questions columns"], Int[np.ndarray, " questions"]
  ]:
    """Keys of some questions' passages, and the index of each one's positive.

    The first key is of the positive, the others are those of `choose`.
    """
    indexes = np.asarray(indexes)
    if not self._is_fixed:
      return self._draw(indexes.tolist(), np.asarray(epochs).tolist())
    return self._fixed[indexes], np.zeros(len(indexes), np.int64)

  @property
  def _is_fixed(self) -> bool:
    """True if a question has the same passages in all epochs."""
    return not self.drawn and all(
      kind != "random" and count >= self.from_top
      for kind, count in self.mixture.parts
    )

  @functools.cached_property
  def _fixed(self) -> Int[np.ndarray, "questions columns"]:
    """The keys of all questions; they are the same in all epochs."""
    count = len(self.candidates)
    return self._draw(range(count), [0] * count)[0]

  def _draw(
    self, indexes: Sequence[int], epochs: Sequence[int]
  ) -> tuple[np.ndarray, np.ndarray]:
    corpus_size = len(self.passages)
    chosen = np.full((len(indexes), self.per_question), -1, np.int64)
    numbers = np.zeros(len(indexes), np.int64)
    for place, (index, epoch) in enumerate(zip(indexes, epochs, strict=True)):
      candidate = self.candidates[index]
      own = candidate.own
      if self.drawn and len(own) > 1:
        key = (self.seed, _POSITIVE, epoch, index)
        numbers[place] = np.random.default_rng(key).integers(len(own))
      chosen[place, 0] = own[numbers[place]]
      chosen[place, 1:] = choose(
        candidate,
        self.mixture,
        from_top=self.from_top,
        corpus_size=corpus_size,
        key=(self.seed, _DRAW, epoch, index),
      )
    # A row drawn from the corpus may be a copy; its key is the first such row.
    return self.copies.first(chosen), numbers
