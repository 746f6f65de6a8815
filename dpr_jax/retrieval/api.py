"""`Retriever`: finds passages from Python, with any method of a workdir.

Input: a workdir of `dpr-jax run` and texts of questions.  Output: `Hit`s, best
first.  The stage `retrieve` searches with the same functions.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from dpr_jax.core import config as config_lib
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import arguments
from dpr_jax.models import model_settings
from dpr_jax.retrieval import passage_cache, retrievers
from dpr_jax.retrieval.result_files import Hit

_BATCH = 256  # questions searched at once


class Retriever:
  """`Retriever.load(workdir).search("who wrote ...", k=20)`."""

  def __init__(self, ranker: retrievers.Ranker, passages):
    """Wraps a ranker and the PassageTable of its rows; callers use `load`."""
    self._ranker = ranker
    self._passages = passages

  @classmethod
  def load(
    cls,
    workdir_path: arguments.Path,
    method: arguments.Text = "dense",
    *,
    factory: arguments.Text = "",
    config: arguments.ConfigDict = None,
  ) -> "Retriever":
    """Opens a finished workdir.

    Args:
      workdir_path: workdir of a finished `dpr-jax run`.
      method: one of `retrievers.METHODS`.
      factory: name of the FAISS index; "" = the only one in the workdir, or of
        several the one that the config names.  With a name, FAISS is searched
        even if the config names a search engine.
      config: search settings; None = the workdir's own config.

    Raises:
      InputError: an unknown method, a bad argument, or something is missing
        or belongs to another model or corpus.
    """
    from dpr_jax.data import prepare

    retrievers.check_methods([arguments.text("method", method)])
    factory = arguments.text("factory", factory)
    config = arguments.config(config)
    workdir = workdir_lib.Workdir(arguments.path("workdir_path", workdir_path))
    passages = prepare.open_passages(workdir)
    if config is None and (workdir.root / config_lib.FILE).exists():
      config = model_settings.of_workdir(workdir)
    config = copy.deepcopy(config or config_lib.base_config())
    if factory:
      config.index.backend = ""  # a FAISS index is asked for
    if method in retrievers.INDEXES and not config.index.backend:
      config.index.factory = factory or retrievers.factory_there(
        config, workdir, method
      )
    ranker = retrievers.load(config, workdir, method, passages, build=False)
    return cls(ranker, passages)

  @property
  def seconds(self) -> dict[str, float]:
    """Duration of each step of the last search; {} = a single step."""
    return getattr(self._ranker, "seconds", {})

  def search(
    self, questions: arguments.Texts, k: arguments.Count = 20
  ) -> list[list[Hit]]:
    """The best passages of each question, best first.

    Args:
      questions: texts; one string counts as a list of one.
      k: number of hits wanted; there are fewer if corpus or BM25 have fewer.

    Raises:
      InputError: k is not an integer >= 1, or a question is not a text.
    """
    questions = arguments.texts("questions", questions)
    k = min(arguments.count("k", k), len(self._passages))
    cache = passage_cache.PassageCache(self._passages)
    return [
      [hit for _, hit in ranked]
      for batch in batches_of(questions, at_once(self._ranker))
      for ranked in search_batch(self._ranker, cache, batch, k)
    ]


def search_batch(
  ranker: retrievers.Ranker,
  cache: passage_cache.PassageCache,
  questions: Sequence[str],
  k: int,
) -> Iterator[list[tuple[int, Hit]]]:
  """Yields (row, hit) pairs for every question, best first."""
  rows, scores = ranker.search(questions, k)
  for first in range(0, len(rows), _BATCH):
    block = rows[first : first + _BATCH]
    passages = cache.take(np.unique(block[block >= 0]).tolist())
    values = scores[first : first + _BATCH]
    for ranked, of_ranked in zip(block.tolist(), values.tolist(), strict=True):
      hits = []
      for row, score in zip(ranked, of_ranked, strict=True):
        if row >= 0:
          passage = passages[row]
          hit = Hit(passage.id, passage.title, passage.text, score)
          hits.append((row, hit))
      yield hits


def at_once(ranker: retrievers.Ranker) -> int:
  """Questions per batch: more if one pass over the corpus serves them all."""
  return max(_BATCH, getattr(ranker, "questions_at_once", 0))


def batches_of(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
  """Yields lists of `size` items; the last may be shorter."""
  batch = []
  for item in items:
    batch.append(item)
    if len(batch) == size:
      yield batch
      batch = []
  if batch:
    yield batch
