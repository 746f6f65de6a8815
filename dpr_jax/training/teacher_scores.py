"""The scores of a teacher for the passages of training batches.

Input: a file of scores (`data.teacher_files`), the training questions, and the
keys of their passages.  Output: `TeacherScores`, which gives for the questions
of a batch which of their passages the teacher scored, and how.  A row of the
file is of the question with its number if that has its text, else of all
questions with its text.
"""

import collections
import dataclasses
import itertools
import os
from collections.abc import Iterator, Sequence

import numpy as np
from absl import logging
from jaxtyping import Float, Int

from dpr_jax.core import errors
from dpr_jax.data import (
  batches,
  datasets,
  negative_sampling,
  same_passages,
  teacher_files,
)

_BLOCK = 4096  # questions or rows in memory at once


@dataclasses.dataclass(frozen=True)
class TeacherScores:
  """Scores by question and key of the passage, see `negative_sampling`.

  Attributes:
    places: question * span + key of every score, ascending.
    scores: the scores, in the same order.
    span: larger than every key.
  """

  places: Int[np.ndarray, " scores"]
  scores: Float[np.ndarray, " scores"]
  span: int

  @classmethod
  def of(
    cls,
    questions: Int[np.ndarray, " scores"],
    keys: Int[np.ndarray, " scores"],
    scores: Float[np.ndarray, " scores"],
  ) -> "TeacherScores":
    """From triples in any order; of several scores of a passage the last."""
    span = 1 + int(keys.max(initial=0))
    # `unique` keeps the first of equal ones: the last of the reversed order.
    places, first = np.unique(
      (questions.astype(np.int64) * span + keys)[::-1], return_index=True
    )
    return cls(places, scores[::-1][first].astype(np.float32), span)

  def find(
    self,
    questions: Int[np.ndarray, " questions"],
    keys: Int[np.ndarray, "questions columns"],
  ) -> Float[np.ndarray, "questions columns"]:
    """Scores of passages, by key; NaN = not known."""
    wanted = np.asarray(questions, np.int64)[:, None] * self.span + keys
    at = np.searchsorted(self.places, wanted)
    at = np.minimum(at, len(self.places) - 1)
    known = (keys >= 0) & (keys < self.span) & (self.places[at] == wanted)
    return np.where(known, self.scores[at], np.nan)

  def columns(
    self,
    question_indexes: Int[np.ndarray, " questions"],
    keys: Int[np.ndarray, "questions columns"],
    places: Int[np.ndarray, "questions columns"],
  ) -> dict[str, np.ndarray]:
    """The fields `candidates` and `teacher_scores` of a batch.

    Args:
      question_indexes: numbers of training questions.
      keys: keys of the passages of each, the positive first.
      places: index of each passage in the global batch.
    """
    scores = self.find(question_indexes, keys)
    unknown = np.isnan(scores)
    return {
      "candidates": np.where(unknown, -1, places).astype(np.int32),
      "teacher_scores": np.where(unknown, 0, scores).astype(np.float32),
    }


def load(
  path: str | os.PathLike,
  questions: datasets.QuestionTable,
  passages: datasets.PassageTable,
  sampler: negative_sampling.Sampler,
) -> TeacherScores:
  """Reads a file of scores.

  Args:
    path: path of the file.
    questions: the training questions.
    passages: the corpus.
    sampler: chooses their passages; its candidates are of these questions.

  Raises:
    InputError: the file is malformed, or has no passage of these questions.
  """
  numbers = _Numbers(questions)
  indexes, keys, scores = [], [], []
  rows = others = unknown = 0
  for first, block in _blocks(teacher_files.read(path)):
    rows += len(block)
    found = passages.rows_of([i for row in block for i in row.ids])
    ends = np.cumsum([len(row.ids) for row in block])[:-1]
    by_row = np.split(sampler.copies.first(found), ends)
    for number, (row, known) in enumerate(
      zip(block, by_row, strict=True), first
    ):
      own = numbers.of(number, row.question)
      others += not own
      for index in own:
        candidate = sampler.candidates[index]
        row_keys = known.copy()
        if (known < 0).any():
          _find_own(row_keys, row.ids, questions, candidate, index)
        unknown += int((row_keys < 0).sum())
        # The gold passage, of which mined negatives have the score beside.
        row_keys = np.append(row_keys, candidate.positive)
        row_scores = np.array([*row.scores, row.positive_score])
        kept = (row_keys >= 0) & ~np.isnan(row_scores)
        indexes.append(np.full(int(kept.sum()), index, np.int64))
        keys.append(row_keys[kept])
        scores.append(row_scores[kept])
  if not sum(map(len, keys)):
    raise errors.InputError(
      f"config.train.distill_scores={str(path)!r}: none of its {rows} rows"
      " scores a passage of a training question by its id: name a file that was"
      " made from the same data"
    )
  if others or unknown:
    logging.warning(
      "train: teacher: %d of %d rows are of no training question, and %d"
      " passages are not in the corpus: they are not used",
      others,
      rows,
      unknown,
    )
  return TeacherScores.of(*map(np.concatenate, (indexes, keys, scores)))


def _blocks(
  rows: Iterator[teacher_files.Scored],
) -> Iterator[tuple[int, list[teacher_files.Scored]]]:
  """Blocks of rows, each with the number of its first."""
  first = 0
  while block := list(itertools.islice(rows, _BLOCK)):
    yield first, block
    first += len(block)


class _Numbers:
  """Finds the training questions that a row is of."""

  def __init__(self, questions: datasets.QuestionTable):
    """Reads all questions once."""
    self._digests: list[int] = []
    for _, block in questions.blocks(_BLOCK):
      self._digests += [
        same_passages.text_digest(question.question) for question in block
      ]
    self._by_digest: dict[int, list[int]] = collections.defaultdict(list)
    for index, digest in enumerate(self._digests):
      self._by_digest[digest].append(index)

  def of(self, number: int, text: str) -> Sequence[int]:
    """Indexes of the questions of row `number`, which has this question."""
    digest = same_passages.text_digest(text)
    if number < len(self._digests) and self._digests[number] == digest:
      return [number]
    return self._by_digest.get(digest, [])


def _find_own(
  keys: np.ndarray,
  ids: Sequence[str],
  questions: datasets.QuestionTable,
  candidate: negative_sampling.Candidate,
  index: int,
) -> None:
  """Fills in the keys of passages that only the question's record has."""
  (question,) = questions.take([index])
  given = candidate.pools.get("given", ())
  lists = (
    (question.positives, candidate.own),
    ((*question.hard_negatives, *question.negatives), given),
  )
  by_id = {
    passage.id: int(key)
    for passages, own in lists
    for passage, key in zip(passages, own, strict=False)
    if passage.id
  }
  for place in np.flatnonzero(keys < 0).tolist():
    keys[place] = by_id.get(ids[place], -1)


def check(source: batches.BatchSource, round_number: int = 0) -> None:
  """Logs how many questions the teacher scored, in the first epoch.

  Args:
    source: batches of a round.
    round_number: number of the round.  From 1 on, the run itself has mined the
      negatives, and a teacher that scored none of them is a warning: hours of
      training are not ended by it.

  Raises:
    InputError: it scored two passages of none, in round 0.
  """
  sampler, count = source.sampler, len(source.questions)
  keys, _ = sampler.chosen(np.arange(count), np.zeros(count, np.int64))
  scores = source.teacher_scores.find(np.arange(count), keys)
  known = (~np.isnan(scores)).sum(axis=1)
  taught = int((known >= 2).sum())
  if not taught:
    why = (
      "config.train.distill_scores: the teacher scored two passages of no"
      f" question: of {count} positives it scored"
      f" {int((~np.isnan(scores[:, 0])).sum())}, of their negatives"
      f" {int((~np.isnan(scores[:, 1:])).sum())}: name a file with the scores"
      " of the negatives that are drawn (config.train.negatives)"
    )
    if not round_number:
      raise errors.InputError(why)
    logging.warning("train: round %d: %s", round_number + 1, why)
    return
  logging.info(
    "train: teacher: %d of %d questions have scores of two passages or more"
    " (%.1f of %d on average, in the first epoch); the others have the in-batch"
    " loss alone",
    taught,
    count,
    known.mean(),
    sampler.per_question,
  )
