"""Runs the reader: finds the best answer in each passage of a question.

`PassageReader` reads passages with questions on all devices and returns for
every passage a rank score and its best answer, as characters of the original
text.  `choose` selects a question's answer among its passages.  The module is
in `inference` because retrieval reranks with it.
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
  """The reader's result for one passage.

  Attributes:
    rank: score of the passage from the rank head; the span score if the rank
      head was not trained.
    span: start + end score of the answer.
    start: index of the answer's first character in the passage's text.
    end: index after its last character; equal to `start` = no answer.
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
  """Reads passages on all devices of this process, in few fixed shapes."""

  def __init__(
    self,
    reader: reader_model.Reader,
    *,
    tokens_per_core: int = 0,
    length_step: int = 32,
    span_tokens: int = 10,
    params: Any = None,
  ):
    """Prepares reading; programs are compiled when they are first needed.

    Args:
      reader: structure and tokenizer.
      tokens_per_core: tokens that a device reads at once; 0 = as many as fit
        into the cache of a CPU core, 32,768 on other devices.
      length_step: padded lengths are multiples of it, in tokens.
      span_tokens: maximum tokens of an answer, before it is widened to whole
        words and graphemes (a letter with its marks).
      params: replicated parameters; None = the reader's own.
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
    """This reader with other parameters; nothing is recompiled."""
    other = object.__new__(PassageReader)
    other.__dict__ |= self.__dict__ | {"_params": self._fuse(params)}
    return other

  def read(
    self,
    questions: Sequence[str],
    passages: Sequence[Sequence[records.Passage]],
  ) -> list[list[Reading]]:
    """Returns one `Reading` for every passage of every question.

    A passage that does not fit is read in windows; the window with the best
    rank counts.
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
    for by_text in (texts, titles):
      tokens = tokenizer.tokenize(list(by_text))
      by_text.update(zip(list(by_text), tokens, strict=True))
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
      for tile, columns in zip(some, zip(*result, strict=True), strict=False):
        yield from self._fetch([jobs[row] for row in tile.rows], columns)

  def _call(
    self, jobs: list[_Job], tiles: list[length_tiles.Tile]
  ) -> tuple[list[length_tiles.Tile], list[np.ndarray]]:
    """Reads one tile on each device; results are [devices, rows]."""
    inputs = []
    for device in range(len(self._devices)):
      tile = tiles[device % len(tiles)]
      some = [jobs[row].input for row in tile.rows]
      inputs += some + some[:1] * (tile.size - len(some))
    batch = self.reader.tokenizer.pad(inputs, tiles[0].width)
    columns = devices_lib.split_over_cores(
      tuple(getattr(batch, name) for name in _FIELDS), self._devices
    )
    program = self._programs.get(
      "best", self._best, self._params, columns, self._devices
    )
    best = program(self._params, columns)
    return tiles, [
      np.asarray(x) for x in (best.rank, best.score, best.first, best.last)
    ]

  def _fetch(
    self, jobs: list[_Job], found: tuple[np.ndarray, ...]
  ) -> Iterator[tuple[_Job, Reading]]:
    """Yields the readings of a tile's jobs; further rows are padding."""
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
  """Scores of a question's passages from the reader and the retriever.

  Args:
    readings: readings of one question, in the order of retrieval.
    retriever_scores: the retriever's scores of the passages; only used with a
      weight.
    weight: the score is rank + weight * the retriever's score, which is scaled
      to 0 (the least) to 1 (the greatest); 0 = the reader's rank only.
  """
  scores = np.array([reading.rank for reading in readings], np.float64)
  if weight and len(readings):
    retrieved = np.asarray(retriever_scores, np.float64)
    spread = retrieved.max() - retrieved.min()
    above = retrieved - retrieved.min()
    scores = scores + weight * above / (spread or 1.0)
  return scores


def choose(
  readings: Sequence[Reading],
  retriever_scores: Sequence[float] = (),
  weight: float = 0.0,
) -> tuple[int, float]:
  """The passage with the best answer, and its score from `mixed_scores`.

  Returns:
    (index, score); of equal scores the first; (-1, -inf) if no passage has an
    answer.
  """
  scores = mixed_scores(readings, retriever_scores, weight)
  answered = [reading.end > reading.start for reading in readings]
  scores = np.where(answered, scores, -np.inf)
  if not any(answered):
    return -1, float("-inf")
  best = int(np.argmax(scores))
  return best, float(scores[best])
