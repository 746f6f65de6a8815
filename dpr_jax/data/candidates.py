"""Computes the keys of every training question's positives and negatives.

Input: the question table, the corpus and mined ids.  Output: a
`negative_sampling.Candidate` per question.  Passages with the same title and
text get the same key, whether they are in the corpus, in it twice, or only in
the question file.  So a batch can tell that a passage is a positive of a
question, also one from another row with the same question, and does not use it
as a negative.  Passages that are not used are counted and logged.
"""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from absl import logging

from dpr_jax.core import errors
from dpr_jax.data import (
  datasets,
  negative_mixture,
  negative_sampling,
  records,
  same_passages,
)

_BLOCK = 4096  # questions in memory at once


@dataclasses.dataclass(frozen=True)
class Mined:
  """Mined negatives of one kind.

  Attributes:
    ids: passage ids of every question, best first.
    command: command that mines them, for messages.
  """

  ids: Sequence[Sequence[str]]
  command: str


class Keys:
  """Assigns a key to every passage, see `negative_sampling`."""

  def __init__(
    self, passages: datasets.PassageTable, copies: same_passages.Copies
  ):
    self._passages = passages
    self._copies = copies
    self._by_digest: dict[int, int] = {}
    self._next = len(passages)

  def of_ids(self, lists: Sequence[Sequence[str]]) -> list[np.ndarray]:
    """Keys of many lists of ids, looked up at once; -1 = not in the corpus."""
    rows = self._passages.rows_of([i for ids in lists for i in ids])
    ends = np.cumsum([len(ids) for ids in lists])[:-1]
    return np.split(self._copies.first(rows), ends)

  def of_passages(
    self, lists: Sequence[Sequence[records.Passage]], *, new: bool
  ) -> list[np.ndarray]:
    """Keys of passages of the question file.

    Args:
      lists: passages of each question.
      new: the passages are positives: their texts are remembered, so that
        other passages are compared with them; False = a passage with an id of
        the corpus gets its row, whatever its text.
    """
    all_keys = self.of_ids([[p.id for p in passages] for passages in lists])
    for keys, passages in zip(all_keys, lists, strict=True):
      for place, passage in enumerate(passages):
        keys[place] = self._key(int(keys[place]), passage, new)
    return all_keys

  def _key(self, row: int, passage: records.Passage, new: bool) -> int:
    """The row, or that of an equal positive, or the next free number."""
    if row >= 0 and not new:
      return row
    same = same_passages.digest(passage)
    if row >= 0:
      self._by_digest.setdefault(same, row)
      return row
    if same not in self._by_digest:
      self._by_digest[same] = self._next
      self._next += 1
    return self._by_digest[same]


def candidates(
  questions: datasets.QuestionTable,
  passages: datasets.PassageTable,
  copies: same_passages.Copies,
  mixture: negative_mixture.Mixture,
  mined: Mapping[str, Mined],
  *,
  from_top: int,
  drawn: bool,
) -> list[negative_sampling.Candidate]:
  """Candidates of every training question, in the order of the questions.

  Args:
    questions: the training questions; each has a positive.
    passages: the corpus.
    copies: copies among the rows of the corpus.
    mixture: kinds and counts of negatives.
    mined: mined negatives, by kind.
    from_top: see `negative_sampling.choose`; for the counts only.
    drawn: positives after the first are trained on; for the counts only.

  Raises:
    InputError: a mined passage is not in the corpus.
  """
  keys = Keys(passages, copies)
  positives, groups = _positives(questions, keys)
  given = "given" in mixture.kinds
  result: list[negative_sampling.Candidate] = []
  dropped = 0
  for first in range(0, len(questions), _BLOCK):
    count = min(_BLOCK, len(questions) - first)
    pools = {
      kind: keys.of_ids(one.ids[first : first + count])
      for kind, one in mined.items()
    }
    _check_known(pools, mined, first)
    if given:
      block = questions.take(range(first, first + count))
      pools["given"] = keys.of_passages(
        [(*q.hard_negatives, *q.negatives) for q in block], new=False
      )
    for place in range(count):
      own = positives[first + place]
      everyone = groups.of(first + place)
      same = copies.all_of(everyone[everyone < len(passages)])
      one = negative_sampling.Candidate(
        int(own[0]) if len(own) else -1,
        {kind: lists[place] for kind, lists in pools.items()},
        own[1:],
        np.setdiff1d(np.union1d(everyone, same), own),
      )
      result.append(one)
      if given:
        dropped += int(np.isin(one.pools["given"], one.positives).sum())
  _say_positives(result, len(passages), drawn)
  if dropped:
    logging.info(
      "train: dropped %d negatives of the question file: their text is that of"
      " a positive of their question",
      dropped,
    )
  _say_negatives(result, mixture, from_top)
  return result


class _Groups:
  """Positives of every question, joined over rows with the same question."""

  def __init__(self, positives: Sequence[np.ndarray], digests: np.ndarray):
    self._positives = positives
    self._digests = digests
    values, counts = np.unique(digests, return_counts=True)
    several = np.isin(digests, values[counts > 1])
    self._members: dict[int, list[int]] = collections.defaultdict(list)
    for row in np.flatnonzero(several).tolist():
      self._members[int(digests[row])].append(row)

  def of(self, row: int) -> np.ndarray:
    """Distinct keys of a row's question, ascending."""
    rows = self._members.get(int(self._digests[row]), [row])
    return np.unique(np.concatenate([self._positives[r] for r in rows]))


def _positives(
  questions: datasets.QuestionTable, keys: Keys
) -> tuple[list[np.ndarray], _Groups]:
  """Keys of each question's positives, in the order of the data."""
  positives: list[np.ndarray] = []
  digests = np.zeros(len(questions), np.uint64)
  for first, block in questions.blocks(_BLOCK):
    positives += keys.of_passages([q.positives for q in block], new=True)
    digests[first : first + len(block)] = [
      same_passages.text_digest(q.question) for q in block
    ]
  return positives, _Groups(positives, digests)


def _check_known(
  pools: Mapping[str, list[np.ndarray]], mined: Mapping[str, Mined], first: int
) -> None:
  """`InputError` where a mined passage is not in the corpus."""
  for kind, lists in pools.items():
    for number, keys in enumerate(lists):
      if (keys < 0).any():
        unknown = mined[kind].ids[first + number][int(np.argmin(keys))]
        raise errors.InputError(
          f"the {kind} negatives, line {first + number + 1}: passage"
          f" {unknown!r} is not in the corpus: run `{mined[kind].command}"
          " --overwrite`"
        )


def _say_positives(
  found: Iterable[negative_sampling.Candidate], corpus: int, drawn: bool
) -> None:
  unknown, later, several = 0, 0, 0
  for candidate in found:
    unknown += not 0 <= candidate.positive < corpus
    later += len(candidate.other_positives)
    several += len(candidate.other_positives) > 0
  if unknown:
    logging.warning(
      "train: the gold passages of %d of %d questions are not in the corpus and"
      " are compared with other passages by their text",
      unknown,
      len(found),
    )
  if later and not drawn:
    logging.info(
      "train: %d questions have several positives: training uses the first; the"
      " other %d are not used as negatives; config.train.positives=drawn trains"
      " on all",
      several,
      later,
    )


def _say_negatives(
  found: Sequence[negative_sampling.Candidate],
  mixture: negative_mixture.Mixture,
  from_top: int,
) -> None:
  for kind, count in mixture.parts:
    if kind == "random":
      continue
    sizes = np.array([len(candidate.pools[kind]) for candidate in found])
    few = int((sizes < count).sum())
    if few:
      logging.info(
        "train: %d of %d questions have fewer than %d %s negatives: the missing"
        " ones are padded and masked",
        few,
        len(found),
        count,
        kind,
      )
    unused = int(np.maximum(sizes - max(count, from_top), 0).sum())
    if kind == "given" and unused:
      logging.info(
        "train: %d of %d negatives of the question file are never used, only"
        " %s of each question; a larger"
        " config.train.hard_negatives_from_top draws from more",
        unused,
        sizes.sum(),
        f"the first {max(count, from_top)}",
      )
