"""Joins the kept questions of a split's sources, and completes them.

Input: a `KeptQuestions` per source.  Output: the questions of all sources, one
source after the other; after the corpus is written, the texts of passages by
id, the ids of positives by text, and the counts of the manifest.  With several
sources, `train/sources.json` has the number of questions of each.
"""

import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import logging

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import (
  datasets,
  gold_passages,
  kept_rows,
  records,
)

SOURCES = "sources.json"  # in the folder of a split with several sources
_BLOCK = 1000  # questions in memory at once


class KeptSplit:
  """Iterates over the questions of a split.

  Attributes:
    parts: the sources of the split.
  """

  def __init__(self, split: str, parts: Sequence[kept_rows.KeptQuestions]):
    self.parts = parts
    self._split = split
    self._counts: list[dict[str, int]] = []  # per source, see `complete`

  def __iter__(self) -> Iterator[records.Question]:
    for part in self.parts:
      yield from part

  @property
  def gold(self) -> list[gold_passages.Gold]:
    """Positives of all questions, in order."""
    return [gold for part in self.parts for gold in part.gold]

  def complete(
    self,
    folder: pathlib.Path,
    table: datasets.PassageTable,
    ids: Mapping[int, str],
  ) -> dict[str, int]:
    """Completes the written questions with what the corpus has.

    Args:
      folder: folder of the written questions, rewritten if needed.
      table: the corpus.
      ids: ids of the corpus's passages, by `same_passages.digest`.

    Returns:
      The counts of the split for the manifest.
    """
    if any(part.source.by_id for part in self.parts):
      gold_passages.rewrite(folder, self._filled(folder, table))
    found = gold_passages.name_by_text(
      self._split, folder, self.gold, table, ids
    )
    self._counts = [
      {
        **part.counts,
        **gold_passages.compare(self._split, part.gold, table),
      }
      for part in self.parts
    ]
    if len(self.parts) > 1:
      workdir_lib.write_json(
        folder / SOURCES,
        [
          {"from": part.source.where, "questions": part.kept}
          for part in self.parts
        ],
      )
    totals: dict[str, int] = {}
    for counts in self._counts:
      for key, count in counts.items():
        totals[key] = totals.get(key, 0) + count
    return {**totals, **found}

  def _filled(
    self, folder: pathlib.Path, table: datasets.PassageTable
  ) -> Iterator[records.Question]:
    """The written questions, those of sources with ids filled with texts."""
    written = datasets.QuestionTable.open(folder)
    rows = itertools.chain.from_iterable(
      block for _, block in written.blocks(_BLOCK)
    )
    for part in self.parts:
      own = itertools.islice(rows, part.kept)
      yield from part.filled(own, table) if part.source.by_id else own

  def manifest(self) -> list[dict[str, Any]]:
    """Where the questions come from: per source its format and counts."""
    return [
      {"from": part.source.where, "format": part.source.format} | counts
      for part, counts in zip(self.parts, self._counts, strict=True)
    ]

  def warn(self) -> None:
    """Warns about fields that are missing in all rows of a source."""
    for part, counts in zip(self.parts, self._counts, strict=True):
      part.warn(counts)

  def log(self) -> None:
    """Logs a line per source: its format, and all counts above 0."""
    for part, counts in zip(self.parts, self._counts, strict=True):
      log_counts(self._split, part.source.format, part.source.where, counts)


def log_counts(
  role: str, form: str, where: str, counts: Mapping[str, int]
) -> None:
  """Logs the format of a source, the number of kept rows, and other counts.

  Args:
    role: "passages", "train" or "dev", and the prefix of the counts.
    form: name of the format.
    where: path or name of the source.
    counts: counts by name.
  """
  notes = [
    f"{count} {key.removeprefix(f'{role}_').replace('_', ' ')}"
    for key, count in counts.items()
    if key.startswith(f"{role}_") and key != f"{role}_read" and count
  ]
  logging.info(
    "prepare: %s: %s, %d kept of %d in %s%s",
    role,
    form,
    counts[role],
    counts[f"{role}_read"],
    where,
    f" ({', '.join(notes)})" if notes else "",
  )


def read_sources(folder: pathlib.Path, questions: int) -> list[tuple[str, int]]:
  """(source, number of questions) of each source of a split, in order.

  Args:
    folder: folder of the split; without `sources.json` it has one source.
    questions: number of questions in it.

  Raises:
    InputError: the file is damaged.
  """
  path = folder / SOURCES
  if not path.is_file():
    return [("", questions)]
  rows = workdir_lib.read_json(path)
  try:
    sources = [(str(row["from"]), int(row["questions"])) for row in rows]
  except (KeyError, TypeError, ValueError) as error:
    raise _damaged(path, repr(error)) from error
  if sum(count for _, count in sources) != questions:
    raise _damaged(path, f"its sources do not have {questions} questions")
  return sources


def _damaged(path: pathlib.Path, what: str) -> errors.InputError:
  return errors.InputError(
    f"{path} is damaged: {what}; run `dpr-jax prepare --overwrite`"
  )
