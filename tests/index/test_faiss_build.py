"""Every kind of index: inner products, through the disk and the memory map."""

import faiss
import numpy as np
import pytest

from dpr_jax.core import errors
from dpr_jax.index import (
  faiss_build,
  faiss_search,
  faiss_shards,
  faiss_stage,
  faiss_tune,
)
from dpr_jax.index.faiss_build import Settings
from tests.index import made


@pytest.mark.parametrize("factory", made.FACTORIES)
def test_every_factory(clustered, make_vectors, one_thread, tmp_path, factory):
  """Right order, scores that are inner products, the same from the disk."""
  vectors = make_vectors(clustered[0], block=400)
  settings = Settings(factory, train_sample=1000)
  faiss_shards.write_part(
    made.stage(tmp_path / "index"), settings, vectors, range(made.COUNT)
  )
  found = []
  for mmap in (False, True):
    index, manifest = faiss_stage.load_index(tmp_path / "index", mmap=mmap)
    assert manifest["parameters"]["factory"] == factory
    faiss_search.set_parameters(index, {"nprobe": 12, "ef_search": 64})
    found.append(faiss_stage.search_index(index, clustered[1], 20))
  np.testing.assert_array_equal(found[0][0], found[1][0])
  np.testing.assert_array_equal(found[0][1], found[1][1])
  rows, scores = found[0]
  every = clustered[1] @ clustered[0].T
  best = np.argsort(-every, axis=1)[:, :20]
  assert faiss_tune.recall(rows, best, 20) >= made.FACTORIES[factory]
  true = np.take_along_axis(every, rows, axis=1)
  if faiss_search.scores_are_exact(index):
    np.testing.assert_allclose(scores, true, rtol=1e-4, atol=1e-4)
  else:  # estimates, around the true ones
    assert np.abs(scores - true).mean() < 1.2 * every.std()
    assert np.corrcoef(scores.ravel(), true.ravel())[0, 1] > 0.8
  again, exact = faiss_search.score_again(vectors, clustered[1], rows, 20)
  np.testing.assert_allclose(
    exact, np.take_along_axis(every, again, axis=1), rtol=1e-4, atol=1e-4
  )
  assert sorted(again[0]) == sorted(rows[0])


@pytest.mark.parametrize(
  ("factory", "words"),
  [
    ("L2norm,Flat", "NormalizationTransform"),
    ("PCAW8,Flat", "whitening"),
    ("HNSW8_2+PQ4", "for L2 distances"),
    ("IDMap,Flat", "IDMap is not needed"),
    ("LSH", "config.index.factory='LSH'"),
    ("HNSW8_RaBitQ4", "config.index.factory='HNSW8_RaBitQ4'"),
  ],
)
def test_what_gives_no_inner_products_is_refused(make_vectors, factory, words):
  vectors = make_vectors(np.random.default_rng(0).normal(size=(60, made.DIM)))
  with pytest.raises(errors.InputError) as error:
    faiss_build.build_index(vectors, Settings(factory))
  assert words in str(error.value)


def test_the_paper_s_index_has_a_name():
  from dpr_jax.core import config as config_lib

  config = config_lib.base_config()
  config.index.factory = "dpr"
  settings = Settings.of(config)
  index = faiss_build.make_index(made.DIM, settings)
  assert (settings.factory, settings.ef_construction) == ("HNSW512", 200)
  assert index.hnsw.efConstruction == 200
  assert index.hnsw.nb_neighbors(1) == 512
  chosen = faiss_search.set_parameters(index, {})
  assert chosen == {"ef_search": 128}
  assert index.hnsw.efSearch == 128


def test_a_build_needs_little_more_than_the_index(make_vectors, one_thread):
  """Arrays have their final size from the beginning."""
  from dpr_jax.benchmarking import cells
  from dpr_jax.core import memory

  if memory.status("RssAnon") is None:
    pytest.skip("no /proc here")
  generator = np.random.default_rng(0)
  array = generator.normal(size=(60_000, 64)).astype(np.float32)
  vectors = make_vectors(array, block=4096)
  for factory in ("Flat", "IVF64,Flat"):
    settings = Settings(factory, train_sample=4000)
    with cells.PeakMemory() as peak:
      index = faiss_build.build_index(vectors, settings)
    # 8 MB for blocks, the sample and the lists' numbers.
    assert peak.grown < 1.2 * array.nbytes + 8e6, factory
    assert index.ntotal == len(array)


def test_one_thread_gives_the_same_graph_again(clustered, make_vectors):
  vectors = make_vectors(clustered[0][:300], block=100)
  with faiss_search.threads(1):
    one, other = (
      faiss.serialize_index(faiss_build.build_index(vectors, Settings("HNSW8")))
      for _ in range(2)
    )
  np.testing.assert_array_equal(one, other)


def test_a_part_is_read_by_rows_where_that_can_be_done(tmp_path):
  """Not all the vectors before it."""
  from dpr_jax.benchmarking import clusters

  path, _ = clusters.write(tmp_path, 300, 8, 5)
  vectors = clusters.FileVectors(path)
  blocks = list(faiss_build.finite_blocks(vectors, range(100, 250)))
  assert [first for first, _ in blocks] == [100]
  np.testing.assert_array_equal(blocks[0][1], np.load(path)[100:250])
  whole = list(faiss_build.finite_blocks(vectors))
  np.testing.assert_array_equal(whole[0][1], np.load(path))


def test_pca_leaves_the_origin_where_it_is(make_vectors):
  """Along the only direction in which these differ nothing is lost.

  A PCA that kept its bias would subtract the mean, (3, 0), from passages and
  question alike: scores 4, 0 and -4, the order turned round.
  """
  vectors = make_vectors(np.array([[1, 0], [3, 0], [5, 0]]))
  index = faiss_build.build_index(vectors, Settings("PCA1,Flat"))
  question = np.array([[1, 0]], np.float32)
  rows, scores = faiss_search.search_index(index, question, 3)
  assert rows.tolist() == [[2, 1, 0]]
  np.testing.assert_allclose(scores, [[5, 3, 1]], rtol=1e-5)
