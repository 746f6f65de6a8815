"""Builds a BM25 index in parallel, without holding the corpus in memory.

1. Units of 16,384 passages are split into words by child processes; a unit's
   words, and how often each is in each passage, go to a temporary file.
2. The vocabularies of the units are joined, and passages are counted by word:
   the scores depend on the whole corpus.
3. Parts of 8 units are scored and written (`bm25_parts.py`), in parallel.

The files depend only on the corpus and the parameters, not on the number of
processes, nor on what is reused of an earlier index (`bm25_reuse.py`); the
scores are those of the library bm25s, to the last bit.
"""

import array
import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import math
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from absl import logging
from jaxtyping import Float32, Int, UInt64

from dpr_jax.core import (
  child_processes,
  errors,
  memory,
  progress,
  sharded_output,
)
from dpr_jax.data import records
from dpr_jax.retrieval import bm25_parts, bm25_reuse, text_analysis

UNIT = 16_384  # passages split at once
PART_UNITS = 8  # units of a part
_BLOCK = 2048  # passages read at once
# Passages that one process splits in the seconds that another takes to start.
_WORTH_A_PROCESS = 20_000
_MEMORY_OF_A_PROCESS = 1 << 30  # bytes, at most
_UNITS = "units"  # folder of the temporary files
_IDF = "idf.npy"
_BEFORE = "before.npy"


@runtime_checkable
class Passages(Protocol):
  """The part of `data.datasets.PassageTable` that BM25 uses."""

  def __len__(self) -> int: ...

  def take(self, rows: Sequence[int]) -> list[records.Passage]:
    """The passages of some rows, in that order."""
    ...


def passage_text(passage: records.Passage) -> str:
  """The indexed text of a passage: `title text`."""
  return f"{passage.title} {passage.text}".strip()


@dataclasses.dataclass(frozen=True)
class _Work:
  """What every process knows.

  Attributes:
    folder: folder of the index, with the folder of the units.
    passages: the corpus.
    splitter: splits texts into words.
    k1: as in `bm25.Parameters`.
    b: the same.
    unit: passages of a unit.
    earlier: an index of which to reuse counts; the earlier row of each passage
      is in a temporary file; None = none.
  """

  folder: pathlib.Path
  passages: Passages
  splitter: text_analysis.Splitter
  k1: float
  b: float
  unit: int
  earlier: bm25_reuse.Earlier | None

  def rows(self, unit: int) -> range:
    """The rows of a unit."""
    return range(len(self.passages))[unit * self.unit : (unit + 1) * self.unit]

  def path(self, unit: int, kind: str) -> pathlib.Path:
    """A temporary file of a unit."""
    return self.folder / _UNITS / f"{kind}-{unit}.npy"

  def words(self, unit: int) -> pathlib.Path:
    """The temporary file of a unit's words, sorted."""
    return self.folder / _UNITS / f"vocabulary-{unit}"

  def load(self, unit: int, kind: str) -> np.ndarray:
    """The array of a temporary file."""
    return np.load(self.path(unit, kind), allow_pickle=False)


@dataclasses.dataclass(frozen=True)
class _Corpus:
  """What scores need to know of the whole corpus.

  Attributes:
    idf: weight of each word, by its number.
    mean_length: mean number of words of a passage.
  """

  idf: Float32[np.ndarray, " words"]
  mean_length: float


def build(
  folder: pathlib.Path,
  passages: Passages,
  splitter: text_analysis.Splitter,
  *,
  k1: float,
  b: float,
  unit: int = UNIT,
  workers: int = 0,
  digests: UInt64[np.ndarray, " rows"] | None = None,
  earlier: bm25_reuse.Earlier | None = None,
) -> int:
  """Writes the index of `title text` of every passage; row i is passage i.

  Args:
    folder: existing empty folder.
    passages: the corpus; it is pickled for the children, if there are any.
    splitter: splits texts into words.
    k1: as in `bm25.Parameters`.
    b: the same.
    unit: passages of a unit.
    workers: child processes; 0 = one per CPU, and none for a small corpus.
    digests: digest of each passage; None = the index cannot be reused.
    earlier: index to reuse, made with the same splitter; None = none.

  Returns:
    The number of passages that were split into words; the counts of the others
    are those of `earlier`.

  Raises:
    InputError: no passages, or passages without words.
  """
  if not len(passages):
    raise errors.InputError(
      "BM25: the corpus has no passages; check config.data.passages"
    )
  if digests is None:
    earlier = None
  else:
    sharded_output.write_array(folder / bm25_parts.DIGESTS, digests)
  work = _Work(folder, passages, splitter, k1, b, unit, earlier)
  (folder / _UNITS).mkdir()
  if earlier is not None:
    np.save(folder / _UNITS / _BEFORE, earlier.find(digests))
  units = range(-(-len(passages) // unit))
  split = 0
  with _processes(work, units, workers) as run:
    with progress.Progress(
      len(passages), "bm25: splitting into words", "passages"
    ) as bar:
      for rows, of_them_split in run(_count, units):
        split += of_them_split
        bar.update(rows)
    corpus, words = _join(work, units)
    logging.info(
      "bm25: computing the scores of %d distinct words in %d passages",
      words,
      len(passages),
    )
    np.save(folder / _UNITS / _IDF, corpus.idf)
    parts = range(-(-len(units) // PART_UNITS))
    score = functools.partial(_score, corpus.mean_length)
    with progress.Progress(len(parts), "bm25: scores", "parts") as bar:
      for _ in run(score, parts):
        bar.update(1)
  size = PART_UNITS * unit
  everything = range(len(passages))
  bm25_parts.write_ranges(
    folder, [everything[part * size : (part + 1) * size] for part in parts]
  )
  shutil.rmtree(folder / _UNITS)
  return split


_worker: dict[str, _Work] = {}  # of a child process


def _start_worker(work: _Work) -> None:
  _worker["work"] = work


def _in_worker(function: Callable[[_Work, int], Any], number: int) -> Any:
  return function(_worker["work"], number)


@contextlib.contextmanager
def _processes(
  work: _Work, units: Sequence[int], workers: int
) -> Iterator[Callable[[Callable, Sequence[int]], Iterator[Any]]]:
  """Gives a function that calls another one for numbers, in any order."""
  if not workers:
    workers = min(
      memory.usable_cpus(),
      len(units),
      1 + len(work.passages) // _WORTH_A_PROCESS,
      1 + (memory.available_memory() or 0) // _MEMORY_OF_A_PROCESS,
    )
  if workers <= 1:
    yield lambda function, numbers: (function(work, n) for n in numbers)
    return
  with child_processes.pool(workers, _start_worker, (work,)) as pool:

    def run(function: Callable, numbers: Sequence[int]) -> Iterator[Any]:
      futures = [pool.submit(_in_worker, function, n) for n in numbers]
      for future in concurrent.futures.as_completed(futures):
        yield future.result()

    yield run


def _count(work: _Work, unit: int) -> tuple[int, int]:
  """Writes the words of a unit.

  Returns:
    The number of its passages, and how many of them were split into words.
  """
  rows = work.rows(unit)
  counted, lengths = [], np.full(len(rows), -1, np.int32)
  if work.earlier is not None:
    before = np.load(work.folder / _UNITS / _BEFORE, mmap_mode="r")
    counted, lengths = work.earlier.take(
      np.array(before[rows.start : rows.stop])
    )
  new = np.flatnonzero(lengths < 0)
  if len(new):
    some, lengths[new] = _split(work, new + rows.start, new)
    counted.append(some)
  merged = bm25_reuse.merge(counted)
  work.words(unit).write_bytes(b"\n".join(merged.vocabulary))
  for kind, values in (
    ("words", merged.words),
    ("rows", merged.rows),
    ("counts", merged.counts),
    ("lengths", lengths),
  ):
    np.save(work.path(unit, kind), np.asarray(values, np.int32))
  return len(rows), len(new)


def _split(
  work: _Work, rows: Int[np.ndarray, " rows"], of_unit: Int[np.ndarray, " rows"]
) -> tuple[bm25_reuse.Counts, Int[np.ndarray, " rows"]]:
  """Splits passages into words.

  Args:
    work: the corpus and the splitter.
    rows: rows of the corpus, ascending.
    of_unit: their rows in the unit.

  Returns:
    The counts, and the number of words of each passage.
  """
  numbers: dict[str, int] = collections.defaultdict(lambda: len(numbers))
  tokens, lengths = array.array("i"), array.array("i")
  for first in range(0, len(rows), _BLOCK):
    for passage in work.passages.take(rows[first : first + _BLOCK]):
      words = work.splitter.words(passage_text(passage))
      tokens.extend([numbers[word] for word in words])
      lengths.append(len(words))
  encoded = sorted(word.encode() for word in numbers)
  order = {word: place for place, word in enumerate(encoded)}
  places = np.fromiter(
    (order[word.encode()] for word in numbers), np.int64, len(numbers)
  )
  ids = places[np.asarray(tokens)]
  of_row = np.repeat(of_unit, np.asarray(lengths))
  # One key for each word of each passage: sorted by word, then by passage.
  keys, counts = np.unique(ids * work.unit + of_row, return_counts=True)
  return (
    bm25_reuse.Counts(encoded, *np.divmod(keys, work.unit), counts),
    np.asarray(lengths),
  )


def _join(work: _Work, units: Sequence[int]) -> tuple[_Corpus, int]:
  """Numbers the words of all units; writes the vocabulary and the numbers.

  Returns:
    The weights, and the number of words.
  """
  vocabulary: dict[bytes, int] = {}  # in the order of first occurrence
  passages_with = np.zeros(0, np.int64)
  tokens = 0
  for unit in units:
    text = work.words(unit).read_bytes()
    seen = [
      vocabulary.setdefault(word, len(vocabulary))
      for word in (text.split(b"\n") if text else ())
    ]
    new = len(vocabulary) - len(passages_with)
    passages_with = np.append(passages_with, np.zeros(new, np.int64))
    passages_with[seen] += np.bincount(
      work.load(unit, "words"), minlength=len(seen)
    )
    tokens += int(work.load(unit, "lengths").sum(dtype=np.int64))
    np.save(work.path(unit, "numbers"), np.asarray(seen, np.int32))
  if not vocabulary:
    raise errors.InputError(
      f"BM25: none of the {len(work.passages)} passages has a word that is not"
      " a stop word; check config.data.passages and config.bm25.stopwords"
    )
  words = list(vocabulary)
  del vocabulary
  order = np.asarray(sorted(range(len(words)), key=words.__getitem__))
  words.sort()
  bm25_parts.write_vocabulary(work.folder, words)
  sorted_place = np.empty(len(order), np.int32)
  sorted_place[order] = np.arange(len(order))
  for unit in units:
    np.save(
      work.path(unit, "numbers"), sorted_place[work.load(unit, "numbers")]
    )
  return (
    _Corpus(
      weights(passages_with[order], len(work.passages)),
      tokens / len(work.passages),
    ),
    len(words),
  )


def weights(
  passages_with: Int[np.ndarray, " words"], passages: int
) -> Float32[np.ndarray, " words"]:
  """Lucene's idf of words: ln(1 + (N - n + 0.5) / (n + 0.5)).

  Args:
    passages_with: n, the number of passages with each word.
    passages: N, the number of all passages.
  """
  counts, places = np.unique(passages_with, return_inverse=True)
  # Not np.log, which may differ from the library's math.log in the last bit.
  idf = [
    math.log(1 + (passages - n + 0.5) / (n + 0.5)) for n in counts.tolist()
  ]
  return np.asarray(idf, np.float32)[places]


def _score(mean_length: float, work: _Work, part: int) -> None:
  """Writes a part, from the files of its units."""
  units = range(part * PART_UNITS, (part + 1) * PART_UNITS)
  columns: dict[str, list[np.ndarray]] = collections.defaultdict(list)
  first = 0
  for unit in units:
    length = len(work.rows(unit))
    if not length:
      break
    numbers, counts = work.load(unit, "numbers"), work.load(unit, "counts")
    columns["words"].append(numbers[work.load(unit, "words")])
    columns["rows"].append(work.load(unit, "rows") + np.int32(first))
    columns["counts"].append(counts)
    columns["lengths"].append(work.load(unit, "lengths"))
    first += length
  joined = {kind: np.concatenate(each) for kind, each in columns.items()}
  # Rows ascend in a unit and from unit to unit: stable, they ascend per word.
  order = np.argsort(joined["words"], kind="stable")
  words, rows = joined["words"][order], joined["rows"][order]
  counts = joined["counts"][order]
  starts = np.flatnonzero(np.diff(words, prepend=-1))
  share = work.b * joined["lengths"] / mean_length
  norm = work.k1 * ((1 - work.b) + share)
  idf = np.load(work.folder / _UNITS / _IDF, mmap_mode="r")
  scores = idf[words] * (counts / (norm[rows] + counts))
  bm25_parts.write_part(
    work.folder,
    part,
    {
      "words": words[starts],
      "starts": np.append(starts, len(words)),
      "rows": rows,
      "scores": scores.astype(np.float32),
      "counts": counts.astype(np.min_scalar_type(counts.max(initial=0))),
      "lengths": joined["lengths"],
    },
  )
