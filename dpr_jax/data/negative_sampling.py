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
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from dpr_jax.core import errors
from dpr_jax.data import records, same_passages

# Mined by BM25, mined by the model, those of the question file, random passages
# of the corpus.
KINDS = ("bm25", "model", "given", "random")
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
class Mixture:
  """Kinds and numbers of a question's negatives.

  Attributes:
    parts: (kind, count >= 1), each kind once, in the order of the columns.
  """

  parts: tuple[tuple[str, int], ...]

  @classmethod
  def parse(cls, text: str, count: int) -> "Mixture":
    """Reads `config.train.negatives`.

    Args:
      text: one of `KINDS`, or kinds with counts, as "bm25:1,random:1".
      count: `config.train.hard_negatives`, which the counts must sum to.

    Raises:
      InputError: an unknown or repeated kind, or counts with another sum.
    """
    where = f"config.train.negatives={text!r}"
    pieces = [piece.strip() for piece in text.split(",")]
    parts: dict[str, int] = {}
    for piece in pieces:
      kind, colon, number = piece.partition(":")
      if kind not in KINDS:
        name = "" if piece == text else f"{kind!r} "
        raise errors.InputError(
          f"{where}: {name}must be one of {', '.join(KINDS)}, or kinds with"
          " counts, as 'bm25:1,random:1'"
        )
      if kind in parts:
        raise errors.InputError(f"{where}: {kind} is repeated: name it once")
      if not colon and len(pieces) == 1:
        parts[kind] = count
      elif number.isascii() and number.isdigit() and int(number) > 0:
        parts[kind] = int(number)
      else:
        raise errors.InputError(
          f"{where}: {piece!r} needs a count of at least 1, as in"
          " 'bm25:1,random:1'"
        )
    total = sum(parts.values())
    if total != count:
      raise errors.InputError(
        f"{where} names {total} negatives, config.train.hard_negatives={count}:"
        f" set config.train.hard_negatives={total}, or change the counts"
      )
    return cls(tuple(part for part in parts.items() if part[1]))

  @classmethod
  def of(cls, train: Any) -> "Mixture":
    """The negatives of section `train` of a config.

    Raises:
      InputError: as in `parse`, or rounds whose negatives would not be used.
    """
    mixture = cls.parse(train.negatives, train.hard_negatives)
    if train.rounds > 1 and "model" not in mixture.kinds:
      raise errors.InputError(
        f"config.train.rounds={train.rounds}: what the model mines would not"
        f" be used by config.train.negatives={train.negatives!r} with"
        f" config.train.hard_negatives={train.hard_negatives}; set them to"
        " model and at least 1, or to a mixture as 'bm25:1,model:1'"
      )
    return mixture

  @property
  def count(self) -> int:
    """Negatives per question."""
    return sum(count for _, count in self.parts)

  @property
  def kinds(self) -> tuple[str, ...]:
    """The kinds of the mixture, in order."""
    return tuple(kind for kind, _ in self.parts)

  def replace(self, old: str, new: str) -> "Mixture":
    """The mixture with kind `new` instead of `old`; adds up equal kinds."""
    parts: dict[str, int] = {}
    for kind, count in self.parts:
      kind = new if kind == old else kind
      parts[kind] = parts.get(kind, 0) + count
    return Mixture(tuple(parts.items()))


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
  mixture: Mixture,
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
  mixture: Mixture
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
    return self._chosen(indexes, epochs)[0].reshape(-1)

  def passages_of_batch(
    self,
    questions: Sequence[records.Question],
    indexes: Sequence[int] | np.ndarray,
    epochs: Sequence[int] | np.ndarray,
    *,
    texts: bool = True,
  ) -> tuple[list[records.Passage | int | None], list[int]]:
    """Some questions' passages, each one's positive first, then negatives.

    Args:
      questions: records of the questions.
      indexes: indexes of training questions.
      epochs: epoch of each question.
      texts: read the passages of the corpus; False = return their rows instead.

    Returns:
      (passages, keys), both flat in the order of the questions; None instead of
      a passage where a kind has too few.  Keys as in `keys_of_batch`.
    """
    chosen, numbers = self._chosen(indexes, epochs)
    given = np.array(
      [False]
      + [kind == "given" for kind, n in self.mixture.parts for _ in range(n)]
    )
    in_corpus = (chosen >= 0) & ~given
    in_corpus[:, 0] = False  # the positive comes from the question's record
    rows = np.unique(chosen[in_corpus])
    read = self.passages.take(rows) if texts else rows.tolist()
    by_row = dict(zip(rows.tolist(), read, strict=True))
    passages: list[records.Passage | int | None] = []
    for question, index, number, row in zip(
      questions, indexes, numbers, chosen, strict=True
    ):
      passages.append(question.positives[number])
      for entry, is_given in zip(row[1:].tolist(), given[1:], strict=True):
        if is_given and entry != -1:
          place = int(np.argmax(self.candidates[index].pools["given"] == entry))
          in_data = (*question.hard_negatives, *question.negatives)
          passages.append(in_data[place])
        else:
          passages.append(by_row.get(entry))
    return passages, chosen.reshape(-1).tolist()

  def _chosen(self, indexes, epochs) -> tuple[np.ndarray, list[int]]:
    """Keys [questions, 1 + negatives], and the index of each one's positive.

    The first key is of the positive, the others are those of `choose`.
    """
    corpus_size = len(self.passages)
    chosen = np.full((len(indexes), self.per_question), -1, np.int64)
    numbers = []
    for place, (index, epoch) in enumerate(zip(indexes, epochs, strict=True)):
      candidate = self.candidates[index]
      own, number = candidate.own, 0
      if self.drawn and len(own) > 1:
        key = (self.seed, _POSITIVE, int(epoch), int(index))
        number = int(np.random.default_rng(key).integers(len(own)))
      numbers.append(number)
      chosen[place, 0] = own[number]
      chosen[place, 1:] = choose(
        candidate,
        self.mixture,
        from_top=self.from_top,
        corpus_size=corpus_size,
        key=(self.seed, _DRAW, int(epoch), int(index)),
      )
    # A row drawn from the corpus may be a copy; its key is the first such row.
    return self.copies.first(chosen), numbers
