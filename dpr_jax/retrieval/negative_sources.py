"""Retrieves candidates for hard negatives, with the scores of the positives.

Input: questions and the corpus rows of their positives.  Output:
`negative_filters.Hits`.  There is a source per ranker of `mined_negatives`:
BM25, the towers, both fused, and the neighbours of the gold passage in the
vector space of the passage tower, which are scored for the question like the
hits of the towers.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

from dpr_jax.data import records
from dpr_jax.index import faiss_search
from dpr_jax.retrieval import bm25, dense_rankers, hybrid, negative_filters

# Corpus rows of the positives of each question, its first positive first.
Positives = Sequence[Sequence[int]]
Source = Callable[
  [Sequence[records.Question], Positives, int], negative_filters.Hits
]


def of_bm25(index: bm25.BM25Index) -> Source:
  """The passages that BM25 ranks best."""

  def hits(questions, positives, k) -> negative_filters.Hits:
    texts = _texts(questions)
    rows, scores = index.search(texts, k)
    of_positives = [
      index.score(text, own) for text, own in zip(texts, positives, strict=True)
    ]
    best = negative_filters.best_of(of_positives)
    return negative_filters.Hits(rows, scores, best)

  return hits


def of_hybrid(ranker: hybrid.HybridRanker) -> Source:
  """The passages that BM25 and the towers together rank best."""

  def hits(questions, positives, k) -> negative_filters.Hits:
    rows, scores, of_positives = ranker.search_and_score(
      _texts(questions), k, positives
    )
    best = negative_filters.best_of(of_positives)
    return negative_filters.Hits(rows, scores, best)

  return hits


@dataclasses.dataclass(frozen=True)
class Space:
  """The vectors of a model, to search them.

  Attributes:
    encode: function from texts of questions to their vectors.
    search: function from vectors [texts, dim] and k to rows and scores.
    vectors: vectors of passages by row; None = not available.
  """

  encode: Callable[[list[str]], np.ndarray]
  search: Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
  vectors: faiss_search.Takes | None

  @classmethod
  def of(cls, ranker: dense_rankers.DenseRanker, folder) -> "Space":
    """That of a ranker; arguments as of `DenseRanker.passage_vectors`."""
    return cls(ranker.encode, ranker.search_for, ranker.passage_vectors(folder))


def of_model(space: Space) -> Source:
  """The passages that the towers rank best."""

  def hits(questions, positives, k) -> negative_filters.Hits:
    vectors = space.encode(_texts(questions))
    rows, scores = space.search(vectors, k)
    best = _best_positives(space, vectors, positives)
    return negative_filters.Hits(rows, scores, best)

  return hits


def of_passage(space: Space) -> Source:
  """The nearest neighbours of each question's first positive.

  They are ranked by their similarity to it, and scored for the question.  A
  question without a positive in the corpus has no hits.
  """

  def hits(questions, positives, k) -> negative_filters.Hits:
    vectors = space.encode(_texts(questions))
    asked = [place for place, own in enumerate(positives) if own]
    first = np.array([positives[place][0] for place in asked], np.int64)
    rows = np.full((len(questions), k), -1, np.int64)
    if asked:
      near, _ = space.search(space.vectors.take(first), k)
      rows[asked, : near.shape[1]] = near
    scores = faiss_search.score_rows(space.vectors, vectors, rows)
    best = _best_positives(space, vectors, positives)
    return negative_filters.Hits(rows, scores, best)

  return hits


# Sources of a space, by ranker of `mined_negatives`.
OF_SPACE = {"model": of_model, "passage": of_passage}


def _best_positives(
  space: Space,
  questions: Float[np.ndarray, "questions dim"],
  positives: Positives,
) -> Float[np.ndarray, " questions"]:
  """Score of each question's best positive; nan = not known."""
  if space.vectors is None:
    return np.full(len(questions), np.nan, np.float32)
  rows = _padded(positives)
  scores = faiss_search.score_rows(space.vectors, questions, rows)
  return negative_filters.best_of(
    [each[own >= 0] for each, own in zip(scores, rows, strict=True)]
  )


def _padded(lists: Positives) -> Int[np.ndarray, "lists most"]:
  """The lists as one array, padded with -1."""
  whole = np.full((len(lists), max(map(len, lists), default=0)), -1, np.int64)
  for row, own in zip(whole, lists, strict=True):
    row[: len(own)] = own
  return whole


def _texts(questions: Sequence[records.Question]) -> list[str]:
  return [question.question for question in questions]
