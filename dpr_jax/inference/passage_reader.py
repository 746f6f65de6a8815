"""Questions and passages become answers: the reader at work.

`PassageReader` reads any passages with any questions on all cores, and gives
every passage a rank and its best answer, as characters of the original text.
`choose` picks a question's answer among its first n passages.  It stands in
this room because retrieval reranks with it, and imports go down only.
"""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from dpr_jax.core import config as config_lib
from dpr_jax.core import devices as devices_lib
from dpr_jax.core import forks
from dpr_jax.data import reader_tokenization, records
from dpr_jax.inference import length_tiles
from dpr_jax.models import reader_model, span_reader

_FIELDS = ("ids", "lengths", "question_ends", "passages", "counts")


class Reading(NamedTuple):
  """What the reader makes of one passage.

  Attributes:
    rank: the rank head's score of the passage; of a reader whose rank head was
      not trained, the score of its span.
    span: start + end score of the answer.
    start: character of the passage's text where the answer starts.
    end: character behind it; equal to `start` where there is no answer.
  """

  rank: float
  span: float
  start: int
  end: int


NOTHING = Reading(float("-inf"), float("-inf"), 0, 0)


@dataclasses.dataclass(frozen=True)
class _Job:
  """One window of one passage with one question."""

  place: tuple[int, int]  # question, passage
  input: reader_tokenization.ReaderInput
  tokens: reader_tokenization.Tokens
  text: str  # of the passage


class PassageReader:
  """Reads on all cores of this process, in tiles of fixed shapes."""

  def __init__(
    self,
    reader: reader_model.Reader,
    *,
    tokens_per_core: int = 0,
    length_step: int = 32,
    span_tokens: int = 10,
    params: Any = None,
  ):
    """Prepares reading; programs compile when they are first needed.

    Args:
      reader: structure and tokenizer.
      tokens_per_core: that a core reads at once; 0 = what its cache holds on a
        CPU, 32,768 elsewhere.
      length_step: inputs are padded to a multiple of it.
      span_tokens: of an answer at most, before it is widened to whole words
        and graphemes (a letter with its marks).
      params: replicated parameters to use in place of the reader's own.
    """
    config_lib.at_least("read.tokens_per_core", tokens_per_core, 0)
    config_lib.at_least("read.length_step", length_step, 1)
    config_lib.at_least("read.span_tokens", span_tokens, 1)
    self.reader = reader
    self._home = forks.Home()
    self._devices = jax.local_devices()
    if params is None:
      params = devices_lib.replicate(reader.params, self._devices)
    self._fuse = jax.jit(reader.structure.fuse)
    self._params = self._fuse(params)
    self._tokens = tokens_per_core or length_tiles.usual_tokens(self._devices)
    self._length_step = length_step
    structure = dataclasses.replace(
      reader.structure, chunk_size=0, remat="none"
    )
    self._best = lambda params, columns: structure.best_spans(
      params, span_reader.Rows(*columns), span_tokens
    )
    self._programs = length_tiles.Programs()

  @classmethod
  def load(cls, folder: str | os.PathLike, **options: Any) -> "PassageReader":
    """The reader of a workdir or of a Hugging Face folder."""
    return cls(reader_model.from_folder(folder), **options)

  def with_params(self, params: Any) -> "PassageReader":
    """The same reader, nothing recompiled, with other parameters."""
    other = object.__new__(PassageReader)
    other.__dict__ |= self.__dict__ | {"_params": self._fuse(params)}
    return other

  def read(
    self,
    questions: Sequence[str],
    passages: Sequence[Sequence[records.Passage]],
  ) -> list[list[Reading]]:
    """One `Reading` for every passage of every question.

    A passage that does not fit is read in windows, and the window of the best
    rank speaks for it.
    """
    self._home.check(self)
    best = [[NOTHING] * len(some) for some in passages]
    for job, reading in self._run(self._jobs(questions, passages)):
      question, passage = job.place
      if reading.rank > best[question][passage].rank:
        best[question][passage] = reading
    return best

  def _jobs(self, questions, passages) -> list[_Job]:
    tokenizer = self.reader.tokenizer
    texts = {p.text: None for some in passages for p in some}
    titles = {p.title: None for some in passages for p in some}
    for found in (texts, titles):
      tokens = tokenizer.tokenize(list(found))
      found.update(zip(list(found), tokens, strict=True))
    jobs = []
    for number, (ids, some) in enumerate(
      zip(tokenizer.question_ids(questions), passages, strict=True)
    ):
      for place, passage in enumerate(some):
        tokens = texts[passage.text]
        head, end = tokenizer.head(ids, titles[passage.title].ids)
        for window in tokenizer.windows(len(head), len(tokens.ids)):
          composed = tokenizer.compose(head, end, tokens.ids, window)
          jobs.append(_Job((number, place), composed, tokens, passage.text))
    return jobs

  def _run(self, jobs: list[_Job]) -> Iterator[tuple[_Job, Reading]]:
    if not jobs:
      return
    lengths = np.array([len(job.input.ids) for job in jobs], np.int64)
    widths = length_tiles.stepped_widths(
      lengths, self._length_step, self.reader.tokenizer.length
    )
    tiles = length_tiles.plan(lengths, widths, self._tokens)
    for some, result in length_tiles.run(
      tiles, len(self._devices), lambda some: self._call(jobs, some)
    ):
      for tile, found in zip(some, zip(*result, strict=True), strict=False):
        yield from self._fetch([jobs[row] for row in tile.rows], found)

  def _call(
    self, jobs: list[_Job], tiles: list[length_tiles.Tile]
  ) -> tuple[list[length_tiles.Tile], list[np.ndarray]]:
    """Reads a tile on each core; results are [cores, rows]."""
    inputs = []
    for core in range(len(self._devices)):
      tile = tiles[core % len(tiles)]
      some = [jobs[row].input for row in tile.rows]
      inputs += some + some[:1] * (tile.size - len(some))
    batch = self.reader.tokenizer.pad(inputs, tiles[0].width)
    columns = devices_lib.split_over_cores(
      tuple(getattr(batch, name) for name in _FIELDS), self._devices
    )
    program = self._programs.get(
      "best", self._best, self._params, columns, self._devices
    )
    found = program(self._params, columns)
    return tiles, [
      np.asarray(x) for x in (found.rank, found.score, found.first, found.last)
    ]

  def _fetch(
    self, jobs: list[_Job], found: tuple[np.ndarray, ...]
  ) -> Iterator[tuple[_Job, Reading]]:
    """Readings of a tile's jobs, of which it may have more rows."""
    columns = [x[: len(jobs)].tolist() for x in found]
    for job, rank, score, first, last in zip(jobs, *columns, strict=True):
      rank = rank if self.reader.ranks else score
      start = end = 0
      if score > span_reader.IMPOSSIBLE / 2:
        shift = job.input.window.first
        words = self.reader.tokenizer.whole_words(
          job.tokens.ids, first + shift, last + shift
        )
        start, end = reader_tokenization.whole_graphemes(
          job.text,
          int(job.tokens.starts[words[0]]),
          int(job.tokens.ends[words[1]]),
        )
      yield job, Reading(rank, score, start, end)


def mixed_scores(
  readings: Sequence[Reading],
  retriever_scores: Sequence[float],
  weight: float,
) -> np.ndarray:
  """How good each passage of a question is, reader and retriever together.

  Args:
    readings: of one question, in the order of retrieval.
    retriever_scores: of the same passages; used with a weight.
    weight: the score is rank + weight * the retriever's score, which is scaled
      to 0 (the least of them) to 1 (the greatest).
  """
  scores = np.array([reading.rank for reading in readings], np.float64)
  if weight and len(readings):
    given = np.asarray(retriever_scores, np.float64)
    spread = given.max() - given.min()
    scores = scores + weight * (given - given.min()) / (spread or 1.0)
  return scores


def choose(
  readings: Sequence[Reading],
  retriever_scores: Sequence[float] = (),
  weight: float = 0.0,
) -> tuple[int, float]:
  """The passage whose answer is given, and its score, of `mixed_scores`.

  Returns:
    (index, score); the earlier one of equals; (-1, -inf) where no passage has
    an answer.
  """
  scores = mixed_scores(readings, retriever_scores, weight)
  answered = [reading.end > reading.start for reading in readings]
  scores = np.where(answered, scores, -np.inf)
  if not any(answered):
    return -1, float("-inf")
  best = int(np.argmax(scores))
  return best, float(scores[best])
