"""Order of hits: by score, then by row, whatever puts them together."""

import faiss
import numpy as np
import pytest

from dpr_jax.core import errors
from dpr_jax.index import faiss_build, faiss_search
from dpr_jax.index.faiss_build import Settings
from tests.index import made


def _in_order(rows, scores, columns):
  rows, scores = faiss_search.in_order(
    np.array(rows), np.array(scores, np.float32), columns
  )
  return rows.tolist(), scores.tolist()


def test_ties_stand_by_row_and_minus_zero_is_zero():
  """Lists put together from several parts, and what is no hit, last."""
  assert _in_order([[5, 2, 7]], [[0.0, -0.0, 1.0]], 3)[0] == [[7, 2, 5]]
  assert _in_order([[9, 4, 1]], [[-0.0, 0.0, -0.0]], 2)[0] == [[1, 4]]
  rows, scores = _in_order([[3, -1, 8]], [[-2.0, 5.0, -1.0]], 3)
  assert rows == [[8, 3, -1]]
  assert scores == [[-1.0, -2.0, 0.0]]


def test_a_list_without_ties_is_left_alone():
  rows, scores = _in_order([[4, 2, 9]], [[3.0, 2.0, 1.0]], 2)
  assert (rows, scores) == ([[4, 2]], [[3.0, 2.0]])


def test_questions_of_another_width_are_refused(clustered, make_vectors):
  vectors = make_vectors(clustered[0][:50])
  index = faiss_build.build_index(vectors, Settings("Flat"))
  for search in (
    lambda questions: faiss_search.search_index(index, questions, 3),
    lambda questions: faiss_search.search_vectors(vectors, questions, 3),
  ):
    with pytest.raises(errors.InputError, match=r"\[2, 8\].*of width 16"):
      search(np.zeros((2, 8), np.float32))
  rows, scores = faiss_search.search_index(index, np.zeros((0, made.DIM)), 3)
  assert rows.shape == scores.shape == (0, 3)


def _shard(total, scores, rows):
  """An index that finds what it is told to, as FAISS returns it."""

  class Shard(faiss.IndexFlatIP):
    def search(self, questions, k):
      return np.array(scores)[:, :k], np.array(rows)[:, :k]

  index = Shard(1)
  index.add(np.zeros((total, 1), np.float32))
  return index


def test_rows_of_shards_are_numbered_through():
  """What a later shard does not find is no row of the one before it."""
  lowest = float(np.finfo(np.float32).min)
  index = faiss_search.ShardedIndex(
    [
      _shard(2, [[4.0, 1.0]], [[1, 0]]),
      _shard(3, [[5.0, 4.0, lowest]], [[2, 0, -1]]),
    ],
    first_rows=[0, 2],
    dim=1,
  )
  scores, rows = index.search(np.zeros((1, 1), np.float32), 5)
  assert rows.tolist() == [[4, 1, 2, 0, -1]]
  assert scores.tolist() == [[5.0, 4.0, 4.0, 1.0, 0.0]]
