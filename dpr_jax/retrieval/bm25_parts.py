"""The files of a BM25 index: row ranges of the corpus, opened memory-mapped.

A part holds the scores of the words in its rows, by word:

  words-00000.npy    int32 [w]: numbers of the part's words, ascending
  starts-00000.npy   int64 [w + 1]: where the passages of each word begin in
  rows-00000.npy     int32 [n]: rows from the part's first, ascending per word
  scores-00000.npy   float32 [n]: the word's share of the row's BM25 score
  counts-00000.npy   uint8 [n], or wider: how often the row has the word
  lengths-00000.npy  int32 [rows]: words of each row

The last two are for `bm25_reuse.py` alone, as is `digests.npy`, uint64 [all
rows]: the digest of each passage.  `words.npy` and `word_ends.npy` hold the
vocabulary in the order of its UTF-8 bytes, where a word's place is its number;
`parts.json` the rows of each part.  An index of an older version, which is that
of the library bm25s, is one part with all words.
"""

import bisect
import collections.abc
import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int, Int32, UInt8

from dpr_jax.core import sharded_output
from dpr_jax.core import workdir as workdir_lib

PARTS = "parts.json"
_VOCABULARY = ("words.npy", "word_ends.npy")
DIGESTS = "digests.npy"
_KINDS = ("words", "starts", "rows", "scores")
_COUNTS = ("counts", "lengths")
_OLD = {  # files of bm25s; it has no "words": all words, in order
  "starts": "indptr.csc.index.npy",
  "rows": "indices.csc.index.npy",
  "scores": "data.csc.index.npy",
}
_CACHED = 1 << 16  # words whose number is remembered


@dataclasses.dataclass(frozen=True)
class Part:
  """A range of rows of the corpus and their scores by word.

  Attributes:
    first_row: first row of the corpus.
    count: number of rows.
    words: numbers of its words, ascending; None = all words.
    starts: begin of each word's passages, and the end of the last.
    rows: rows from `first_row`, by word.
    scores: scores of these rows for the word.
  """

  first_row: int
  count: int
  words: Int32[np.ndarray, " words"] | None
  starts: Int[np.ndarray, " starts"]
  rows: Int32[np.ndarray, " hits"]
  scores: Float[np.ndarray, " hits"]

  def hits(self, words: Sequence[int]) -> list[slice]:
    """Where the passages of each of these words are, for those it has."""
    places = np.asarray(words, np.int64)
    if self.words is not None:
      if not len(self.words):
        return []
      # Of the same type: otherwise NumPy would convert all words of the part.
      wanted = places.astype(self.words.dtype)
      places = np.searchsorted(self.words, wanted)
      places = np.minimum(places, len(self.words) - 1)
      places = places[self.words[places] == wanted]
    begins, ends = self.starts[places], self.starts[places + 1]
    return [
      slice(begin, end)
      for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)
    ]

  def sums(self, hits: Sequence[slice]) -> Float[np.ndarray, " rows"]:
    """BM25 scores of all rows, summed in the order of `hits`."""
    sums = np.zeros(self.count, np.float32)
    for some in hits:
      np.add.at(sums, self.rows[some], self.scores[some])
    return sums

  def score(self, hits: Sequence[slice], row: int) -> np.float32:
    """BM25 score of one row of the part; the value of `sums`, to the bit."""
    total = np.float32(0)
    for some in hits:
      rows = self.rows[some]
      place = int(np.searchsorted(rows, row))
      if place < len(rows) and rows[place] == row:
        total += self.scores[some][place]
    return total


def rarest(hits: Sequence[slice], k: int) -> slice:
  """The fewest passages of one word that are at least k; of none if fewer."""
  enough = [some for some in hits if some.stop - some.start >= k]
  return min(enough, key=lambda some: some.stop - some.start, default=slice(0))


def best_rows(
  scores: Float[np.ndarray, " rows"],
  k: int,
  above: float | np.float32 = 0.0,
  among: Int[np.ndarray, " some"] | None = None,
) -> tuple[Int[np.ndarray, " hits"], Float[np.ndarray, " hits"]]:
  """At most k rows with a score above a limit, best first, ties by row.

  A partition finds the k-th best score in linear time; of the rows with exactly
  this score the first ones fill the list.

  Args:
    scores: scores of all rows.
    k: number of rows wanted.
    above: the limit.
    among: different rows, k or more, of which many are among the best: the
      k-th best of them is a limit that leaves few rows.  None or [] = unknown.
  """
  if among is not None and len(among) >= k:
    some = scores[among]
    least = np.partition(some, len(some) - k)[len(some) - k]
    kept = scores >= least if least > above else scores > above
  else:
    kept = scores > above
  rows = np.flatnonzero(kept)
  values = scores[rows]
  if len(rows) > k:
    threshold = np.partition(values, len(values) - k)[len(values) - k]
    keep = values > threshold
    ties = np.flatnonzero(values == threshold)
    keep[ties[: k - int(keep.sum())]] = True
    rows, values = rows[keep], values[keep]
  order = np.argsort(-values, kind="stable")  # rows ascend: ties by row
  return rows[order], values[order]


class Vocabulary(collections.abc.Mapping):
  """Numbers by word, from sorted words in a memory-mapped file."""

  def __init__(
    self,
    text: UInt8[np.ndarray, " bytes"],
    ends: Int[np.ndarray, " words"],
  ):
    """Words in UTF-8, joined; `ends` are their ends in `text`."""
    self._text = memoryview(text)
    self._ends = ends
    self._number = functools.lru_cache(_CACHED)(self._search)

  def __len__(self) -> int:
    return len(self._ends)

  def __iter__(self) -> Iterator[str]:
    return (self.word(number).decode() for number in range(len(self)))

  def __getitem__(self, word: str) -> int:
    number = self._number(word)
    if number is None:
      raise KeyError(word)
    return number

  def __contains__(self, word: object) -> bool:
    return isinstance(word, str) and self._number(word) is not None

  def _search(self, word: str) -> int | None:
    wanted = word.encode()
    number = bisect.bisect_left(range(len(self)), wanted, key=self.word)
    found = number < len(self) and self.word(number) == wanted
    return number if found else None

  def word(self, number: int) -> bytes:
    """The word with a number, in UTF-8."""
    begin = self._ends[number - 1] if number else 0
    return bytes(self._text[begin : self._ends[number]])


def names(number: int) -> dict[str, str]:
  """Names of a part's files by kind."""
  return {kind: f"{kind}-{number:05d}.npy" for kind in (*_KINDS, *_COUNTS)}


def write_part(
  folder: pathlib.Path, number: int, arrays: Mapping[str, np.ndarray]
) -> None:
  """Writes a part's arrays by kind."""
  for kind, name in names(number).items():
    sharded_output.write_array(folder / name, arrays[kind])


def write_vocabulary(folder: pathlib.Path, words: Sequence[bytes]) -> None:
  """Writes the vocabulary, which must be sorted."""
  text = np.frombuffer(b"".join(words), np.uint8)
  ends = np.cumsum(np.fromiter(map(len, words), np.int64, len(words)))
  for name, array in zip(_VOCABULARY, (text, ends), strict=True):
    sharded_output.write_array(folder / name, array)


def write_ranges(folder: pathlib.Path, ranges: Sequence[range]) -> None:
  """Writes the rows of each part."""
  rows = [{"first_row": r.start, "rows": len(r)} for r in ranges]
  workdir_lib.write_json(folder / PARTS, {"parts": rows})


def open_folder(
  folder: pathlib.Path,
) -> tuple[Mapping[str, int], list[Part]]:
  """The vocabulary and the parts of an index, also of an older version.

  Raises:
    OSError, ValueError, TypeError, KeyError: it is not an index.
  """
  if not (folder / PARTS).exists():
    return _open_old(folder)
  text, ends = (_array(folder / name) for name in _VOCABULARY)
  parts = [
    Part(
      stored["first_row"],
      stored["rows"],
      **{kind: _array(folder / names(number)[kind]) for kind in _KINDS},
    )
    for number, stored in enumerate(
      workdir_lib.read_json(folder / PARTS)["parts"]
    )
  ]
  return Vocabulary(text, ends), parts


def _open_old(
  folder: pathlib.Path,
) -> tuple[Mapping[str, int], list[Part]]:
  arrays = {kind: _array(folder / name) for kind, name in _OLD.items()}
  vocabulary, stored = (
    workdir_lib.read_json(folder / name)
    for name in ("vocab.index.json", "params.index.json")
  )
  return vocabulary, [Part(0, int(stored["num_docs"]), None, **arrays)]


def _array(path: pathlib.Path) -> np.ndarray:
  return np.load(path, mmap_mode="r").view(np.ndarray)
