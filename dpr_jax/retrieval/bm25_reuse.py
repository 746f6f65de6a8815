"""Reuses the words of unchanged passages when a BM25 index is built again.

Every score depends on the whole corpus, but how often a word is in a passage
does not.  An index stores both the counts and a digest of each passage
(`data.passage_digests`); for another corpus, k1 or b, passages with the same
digest are not split into words again.  The index is that of a fresh build.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Int, UInt64

from dpr_jax.core import earlier_output, errors, manifests
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.retrieval import bm25_parameters, bm25_parts

# Reading the counts of a part takes as long as splitting some 250 passages: a
# unit is not collected from more than this many parts.
_PARTS_OF_A_UNIT = 32


@dataclasses.dataclass(frozen=True)
class Counts:
  """How often words are in some passages; of each word, rows ascend.

  Attributes:
    vocabulary: the words in UTF-8, sorted.
    words: place of a word in the vocabulary.
    rows: row of a passage that has it.
    counts: how often.
  """

  vocabulary: Sequence[bytes]
  words: Int[np.ndarray, " hits"]
  rows: Int[np.ndarray, " hits"]
  counts: Int[np.ndarray, " hits"]


def merge(counted: Sequence[Counts]) -> Counts:
  """The counts of different passages together."""
  if len(counted) == 1:
    return counted[0]
  vocabulary = sorted({word for each in counted for word in each.vocabulary})
  places = {word: place for place, word in enumerate(vocabulary)}
  words = np.concatenate(
    [
      np.array([places[word] for word in each.vocabulary], np.int64)[each.words]
      for each in counted
    ]
  )
  rows = np.concatenate([each.rows for each in counted])
  counts = np.concatenate([each.counts for each in counted])
  order = np.lexsort((rows, words))
  return Counts(vocabulary, words[order], rows[order], counts[order])


@dataclasses.dataclass(frozen=True)
class Earlier:
  """An index whose counts can be used; it is opened where it is needed."""

  folder: pathlib.Path

  @functools.cached_property
  def _index(self) -> tuple[bm25_parts.Vocabulary, list[bm25_parts.Part]]:
    return bm25_parts.open_folder(self.folder)

  def __reduce__(self):
    return Earlier, (self.folder,)

  def find(
    self, digests: UInt64[np.ndarray, " rows"]
  ) -> Int[np.ndarray, " rows"]:
    """The row of the earlier index with each digest; -1 = none."""
    return earlier_output.RowsByDigest(
      np.load(self.folder / bm25_parts.DIGESTS)
    ).find(digests)

  def take(
    self, before: Int[np.ndarray, " rows"]
  ) -> tuple[list[Counts], Int[np.ndarray, " rows"]]:
    """The counts of the passages of a unit.

    Args:
      before: earlier row of each passage; -1 = none.

    Returns:
      Counts by part, and the number of words of each passage; -1 = it must be
      split, because it is new, or because its part has too few of the unit.
    """
    _, parts = self._index
    lengths = np.full(len(before), -1, np.int32)
    firsts = [part.first_row for part in parts]
    part_of = np.searchsorted(firsts, before, side="right") - 1  # -1 = none
    least = max(1, len(before) // _PARTS_OF_A_UNIT)
    taken = []
    present, sizes = np.unique(part_of, return_counts=True)
    for number, size in zip(present.tolist(), sizes.tolist(), strict=True):
      if number < 0 or size < least:
        continue
      rows = np.flatnonzero(part_of == number)
      of_part = before[rows] - firsts[number]
      lengths[rows] = self._load("lengths", number)[of_part]
      taken.append(self._of_part(number, of_part, rows))
    return taken, lengths

  def _load(self, kind: str, number: int) -> np.ndarray:
    name = bm25_parts.names(number)[kind]
    return np.load(self.folder / name, mmap_mode="r")

  def _of_part(
    self,
    number: int,
    of_part: Int[np.ndarray, " some"],
    rows: Int[np.ndarray, " some"],
  ) -> Counts:
    """The counts of passages of a part.

    Args:
      number: number of the part.
      of_part: their rows in it; they may repeat.
      rows: their rows in the result, ascending.
    """
    vocabulary, parts = self._index
    part = parts[number]
    different, which = np.unique(of_part, return_inverse=True)
    place = np.full(part.count, -1, np.int32)
    place[different] = np.arange(len(different))
    places = place[part.rows]
    hits = np.flatnonzero(places >= 0)
    # By passage, so that each finds its hits in one piece.
    hits = hits[np.argsort(places[hits], kind="stable")]
    ends = np.cumsum(np.bincount(places[hits], minlength=len(different)))
    begins = np.append(0, ends[:-1])
    sizes = (ends - begins)[which]
    shifts = begins[which] - np.append(0, np.cumsum(sizes)[:-1])
    hits = hits[np.repeat(shifts, sizes) + np.arange(sizes.sum())]
    words = part.words[np.searchsorted(part.starts, hits, side="right") - 1]
    used, words = np.unique(words, return_inverse=True)
    return Counts(
      [vocabulary.word(number) for number in used.tolist()],
      words,
      np.repeat(rows, sizes),
      self._load("counts", number)[hits].astype(np.int32),
    )


def find(folder: pathlib.Path, splitting: Mapping[str, Any]) -> Earlier | None:
  """The index in a folder, if its counts can be used.

  Args:
    folder: folder of the index, perhaps missing.
    splitting: the parameters that say how texts are split into words.
  """
  try:
    manifest = workdir_lib.read_manifest(folder, "bm25")
    stored = workdir_lib.read_json(folder / bm25_parameters.FILE)
  except errors.InputError:  # missing, or damaged: of no use
    return None
  if (
    bm25_parts.DIGESTS not in manifest["files"]
    or not isinstance(stored, dict)
    or any(stored.get(name) != value for name, value in splitting.items())
  ):
    return None
  wrong = manifests.damaged_files(folder, manifest["files"])
  for name, what in wrong.items():
    logging.warning("bm25: not reused: %s %s", folder / name, what)
  return None if wrong else Earlier(folder)
