"""Made-up vectors."""

import numpy as np

from dpr_jax.benchmarking import clusters


def test_made_up_vectors_are_clustered_and_the_same_again(tmp_path):
  paths = [tmp_path / "one", tmp_path / "two"]
  for path in paths:
    path.mkdir()
  one, other = (clusters.write(path, 1200, 24, 30) for path in paths)
  vectors, questions = (np.load(path) for path in one)
  np.testing.assert_array_equal(vectors, np.load(other[0]))
  np.testing.assert_array_equal(questions, np.load(other[1]))
  assert vectors.shape == (1200, 24)
  np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
  products = vectors @ vectors.T
  np.fill_diagonal(products, -1)
  # Every passage has far nearer ones than chance would give.
  assert np.median(products.max(axis=1)) > 0.75
  assert abs(np.median(products)) < 0.2
  opened = clusters.FileVectors(one[0])
  assert (len(opened), opened.dim) == (1200, 24)
  assert [len(block) for _, block in opened.blocks(500)] == [500, 500, 200]


def test_blocks_begin_at_their_first_row(tmp_path):
  """Five rows by two: rows 0, 2 and 4, the last block alone."""
  rows = np.arange(10, dtype=np.float32).reshape(5, 2)
  np.save(tmp_path / "vectors.npy", rows)
  vectors = clusters.FileVectors(tmp_path / "vectors.npy")
  assert (len(vectors), vectors.dim) == (5, 2)
  assert [(first, block.tolist()) for first, block in vectors.blocks(2)] == [
    (0, [[0, 1], [2, 3]]),
    (2, [[4, 5], [6, 7]]),
    (4, [[8, 9]]),
  ]
  assert vectors.take(np.array([4, 0, 4])).tolist() == [[8, 9], [0, 1], [8, 9]]
