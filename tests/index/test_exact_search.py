"""Exact search on 8 cores equals a sort of all scores, ties included."""

import dataclasses

import numpy as np
import pytest

from dpr_jax.benchmarking import cells
from dpr_jax.core import config as config_lib
from dpr_jax.core import errors, memory
from dpr_jax.index import exact_search


def _brute_force(vectors, questions, k):
  scores = questions @ vectors.T
  order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
  return order, np.take_along_axis(scores, order, axis=1)


def _whole_numbers(count, dim=4, seed=0):
  """Products are exact, so equal vectors have equal scores."""
  generator = np.random.default_rng(seed)
  return generator.integers(-2, 3, size=(count, dim)).astype(np.float32)


SETTINGS = {
  "resident": exact_search.Settings(block=4),
  "one block": exact_search.Settings(),
  "streamed": exact_search.Settings(block=2, core_bytes=64),
  "bfloat16": exact_search.Settings(storage="bfloat16", block=8),
  "approximate": exact_search.Settings(approximate=True, recall_target=1.0),
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("count", [1, 7, 203])
def test_equals_brute_force_with_ties(make_vectors, name, count):
  vectors = make_vectors(_whole_numbers(count), block=50)
  questions = _whole_numbers(20, seed=1)
  search = exact_search.ExactSearch(vectors, SETTINGS[name])
  assert search.streams == (name == "streamed" and count > 7)
  for k in (1, 30):
    rows, scores = search.search(questions, k)
    expected_rows, expected = _brute_force(vectors.array, questions, k)
    assert (rows.dtype, scores.dtype) == (np.int64, np.float32)
    np.testing.assert_array_equal(scores, expected)
    if name != "approximate":  # it promises no order of equal scores
      np.testing.assert_array_equal(rows, expected_rows)
    assert all(len(set(row)) == len(row) for row in rows.tolist())


def test_real_numbers_in_many_batches(make_vectors):
  generator = np.random.default_rng(2)
  vectors = make_vectors(generator.normal(size=(500, 24)), block=64)
  questions = generator.normal(size=(300, 24)).astype(np.float32)
  expected_rows, expected = _brute_force(vectors.array, questions, 10)
  for storage in exact_search.STORAGES:
    search = exact_search.ExactSearch(
      vectors, exact_search.Settings(storage=storage, block=16)
    )
    rows, scores = search.search(questions, 10)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(
  ("process", "processes", "rows"),
  [
    # 203 rows on 24 devices: 9 each, 8 devices a process.
    (0, 3, range(0, 72)),
    (1, 3, range(72, 144)),
    (2, 3, range(144, 203)),
    # On 1,600: 1 each, and none is left for the last.
    (199, 200, range(203, 203)),
  ],
)
def test_a_process_searches_its_share(
  make_vectors, name, process, processes, rows
):
  vectors = make_vectors(_whole_numbers(203), block=50)
  questions = _whole_numbers(20, seed=1)
  settings = dataclasses.replace(SETTINGS[name], block=9)
  search = exact_search.ExactSearch(
    vectors, settings, process=process, processes=processes
  )
  assert search.rows == rows
  found, scores = search.search(questions, 7)
  part = vectors.array[rows.start : rows.stop]
  expected_rows, expected = _brute_force(part, questions, 7)
  np.testing.assert_array_equal(scores, expected)
  if name != "approximate":
    np.testing.assert_array_equal(found, expected_rows + rows.start)


def test_bfloat16_alone_would_not_do(make_vectors):
  """Scoring again is what makes it exact."""
  generator = np.random.default_rng(3)
  base = generator.normal(size=24)
  near = base + 1e-3 * generator.normal(size=(60, 24))
  vectors = make_vectors(near, block=64)
  questions = base[None].astype(np.float32)
  search = exact_search.ExactSearch(
    vectors, exact_search.Settings(storage="bfloat16")
  )
  expected, _ = _brute_force(vectors.array, questions, 20)
  np.testing.assert_array_equal(search.search(questions, 20)[0], expected)
  alone, _ = search._search(questions, 20)
  assert (alone != expected).any()


def test_no_questions_and_broken_vectors(make_vectors):
  vectors = make_vectors(_whole_numbers(10))
  search = exact_search.ExactSearch(vectors)
  rows, scores = search.search(np.zeros((0, 4), np.float32), 3)
  assert rows.shape == scores.shape == (0, 3)
  vectors.array[7, 1] = np.nan
  with pytest.raises(errors.InputError, match="passage row 7 is not finite"):
    search.search(np.ones((1, 4), np.float32), 3)


def test_settings_of_a_config():
  config = config_lib.base_config()
  settings = exact_search.Settings.of(config)
  assert settings.core_bytes == 4_000_000_000
  config.exact.storage = "float16"
  with pytest.raises(errors.InputError, match=r"config\.exact\.storage="):
    exact_search.Settings.of(config)


def test_placing_holds_the_vectors_once(make_vectors):
  """And what a search takes; with a second copy it would be more than twice."""
  if memory.status("RssAnon") is None:
    pytest.skip("nobody says here how much memory a process has taken")
  vectors = make_vectors(np.ones((131_072, 768), np.float32), block=10_000)
  search = exact_search.ExactSearch(vectors)
  with cells.PeakMemory() as peak:
    rows, _ = search.search(np.ones((1, 768), np.float32), 3)
  assert rows.tolist() == [[0, 1, 2]]
  assert peak.grown < 1.7 * vectors.array.nbytes


@pytest.mark.parametrize("name", ["resident", "streamed", "approximate"])
def test_minus_zero_is_zero(make_vectors, name):
  """A product of 0 and a negative number ties with one of 0 and a positive.

  JAX's own order puts -0 behind 0, which would give row 1 before row 0.
  """
  vectors = make_vectors(np.array([[-1], [1], [-1], [1], [1]]))
  search = exact_search.ExactSearch(vectors, SETTINGS[name])
  rows, scores = search.search(np.zeros((1, 1), np.float32), 4)
  assert rows.tolist() == [[0, 1, 2, 3]]
  assert scores.tolist() == [[0.0] * 4]
  assert not np.signbit(scores).any()
