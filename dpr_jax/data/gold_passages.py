"""Finds the corpus ids of users' positive passages.

Input: the positives of a question file.  Output: their ids in the corpus.  A
positive without an id, or with an id that the corpus does not have, gets the id
of the row with the same title and text (`same_passages`).  Passages that are
only ids get their texts from the corpus.
"""

import dataclasses
import hashlib
import itertools
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from dpr_jax.data import datasets, records, same_passages, tfds_builders

_BLOCK = 1000  # rows in memory at once


@dataclasses.dataclass(slots=True)
class Gold:
  """The hashes of a kept question's positive: all that a comparison needs.

  Attributes:
    id: id in the file, or found by its text; "" = none.
    digest: hash of the text.
    same: hash of title and text, see `same_passages.digest`.
  """

  id: str
  digest: bytes
  same: int

  @classmethod
  def of(cls, passage: records.Passage) -> "Gold":
    """Hashes a positive."""
    return cls(passage.id, _digest(passage.text), same_passages.digest(passage))


def _digest(text: str) -> bytes:
  return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()


def name_by_text(
  split: str,
  folder: pathlib.Path,
  gold: Sequence[Gold],
  table: datasets.PassageTable,
  ids: Mapping[int, str],
) -> dict[str, int]:
  """Finds positives by their text where their id names no row, or another's.

  Args:
    split: split of the questions, for the name of the count.
    folder: folder of its dataset, rewritten if any positive is found.
    gold: positives of all its questions, in order; their ids are changed.
    table: the corpus.
    ids: ids of the corpus's passages, by `same_passages.digest`.

  Returns:
    {"<split>_gold_found_by_text": number of positives found}.
  """
  rows = table.rows_of([positive.id for positive in gold])
  named = set()
  for place, positive in enumerate(gold):
    name = ids.get(positive.same)
    # With a made id, another text of the corpus has the positive's own id.
    is_made = name == same_passages.made_id(positive.same)
    if name not in (None, positive.id) and (rows[place] < 0 or is_made):
      positive.id = name
      named.add(place)
  if named:
    _write_again(folder, gold, named)
  return {f"{split}_gold_found_by_text": len(named)}


def _write_again(
  folder: pathlib.Path, gold: Sequence[Gold], named: set[int]
) -> None:
  """Rewrites the questions with the ids that were found by text."""

  def questions() -> Iterator[records.Question]:
    place = 0
    for _, block in datasets.QuestionTable.open(folder).blocks(_BLOCK):
      for question in block:
        positives = [
          dataclasses.replace(passage, id=gold[place + number].id)
          if place + number in named
          else passage
          for number, passage in enumerate(question.positives)
        ]
        place += len(positives)
        yield dataclasses.replace(question, positives=tuple(positives))

  rewrite(folder, questions())


def rewrite(
  folder: pathlib.Path, questions: Iterable[records.Question]
) -> None:
  """Replaces the questions in a folder, from which they may be read."""
  again = folder.with_name(f"{folder.name}.named")
  tfds_builders.write_questions(questions, again)
  shutil.rmtree(folder)
  again.rename(folder)


def with_texts(
  questions: Iterable[records.Question], table: datasets.PassageTable
) -> Iterator[records.Question]:
  """Yields questions whose passages by id have the corpus's titles and texts.

  A passage that the corpus does not have stays as it is.
  """
  lists = ("positives", "hard_negatives", "negatives")
  waiting = iter(questions)
  while block := list(itertools.islice(waiting, _BLOCK)):
    ids = {p.id for q in block for name in lists for p in getattr(q, name)}
    ordered = sorted(ids)
    rows = table.rows_of(ordered)
    known = [i for i, row in zip(ordered, rows, strict=True) if row >= 0]
    texts = dict(zip(known, table.take(rows[rows >= 0]), strict=True))
    for question in block:
      yield dataclasses.replace(
        question,
        **{
          name: tuple(texts.get(p.id, p) for p in getattr(question, name))
          for name in lists
        },
      )


def compare(
  split: str, gold: Sequence[Gold], table: datasets.PassageTable
) -> dict[str, int]:
  """Counts positives without id, not in the corpus, or with another text."""
  named = [positive for positive in gold if positive.id]
  rows = table.rows_of([positive.id for positive in named])
  differs = 0
  known = np.flatnonzero(rows >= 0)
  for first in range(0, len(known), _BLOCK):
    block = known[first : first + _BLOCK]
    passages = table.take(rows[block])
    differs += sum(
      _digest(passage.text) != named[i].digest
      for i, passage in zip(block, passages, strict=True)
    )
  return {
    f"{split}_gold_without_id": len(gold) - len(named),
    f"{split}_gold_not_in_corpus": len(named) - len(known),
    f"{split}_gold_text_differs": differs,
  }
