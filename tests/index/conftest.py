"""Vectors in clusters, and FAISS on one thread."""

import numpy as np
import pytest

from dpr_jax.index import faiss_search
from tests.index.made import COUNT, DIM


@pytest.fixture(scope="session")
def clustered():
  """Passages of unequal length that are not around the origin; questions."""
  generator = np.random.default_rng(0)
  centres = generator.normal(size=(30, DIM)) + 0.5
  passages = centres[generator.integers(0, 30, COUNT)]
  passages += 0.5 * generator.normal(size=passages.shape)
  passages *= generator.uniform(0.5, 1.5, size=(COUNT, 1))
  questions = centres[generator.integers(0, 30, 40)]
  questions += 0.5 * generator.normal(size=questions.shape)
  return passages.astype(np.float32), questions.astype(np.float32)


@pytest.fixture
def one_thread():
  """k-means of a few hundred vectors: threads would only wait."""
  with faiss_search.threads(1):
    yield
