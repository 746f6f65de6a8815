"""Every kind of index: inner products, through the disk and the memory map."""

import dataclasses

import faiss
import numpy as np
import pytest

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.index import (
  faiss_build,
  faiss_files,
  faiss_search,
  faiss_shards,
  faiss_size,
  faiss_stage,
  faiss_tune,
)
from dpr_jax.index.faiss_build import Settings

DIM, COUNT = 16, 1500
# Factory string, and the recall@20 it must have here.
FACTORIES = {
  "Flat": 1.0,
  "HNSW16": 0.95,
  "HNSW16_SQ8": 0.95,
  "HNSW8_PQ8x4": 0.4,
  "IVF16,Flat": 0.99,
  "IVF16_HNSW8,Flat": 0.99,
  "IVF16,SQ8": 0.95,
  "IVF16,PQ8x4": 0.4,
  "IVF16,PQ8x4fs": 0.4,
  "IVF16,PQ8x4fs,RFlat": 0.9,
  "IVF16,PQ8x4,Refine(SQ8)": 0.9,
  "SQ8": 0.95,
  "SQfp16": 0.99,
  "PQ8x4": 0.4,
  "RaBitQ4": 0.85,
  "IVF16,RaBitQfs4": 0.85,
  "IVF16,FlatPanorama4": 0.99,
  "PCA12,Flat": 0.5,
  "RR16,SQ8": 0.95,
  "OPQ4_8,IVF8,PQ4x4": 0.2,
}
SLOW_OR_PADDED = ("Panorama", "fs", "OPQ")


@pytest.fixture(scope="module")
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


def _stage(folder):
  return workdir_lib.Stage("index", folder, {}, {})


@pytest.mark.parametrize("factory", FACTORIES)
def test_every_factory(clustered, make_vectors, one_thread, tmp_path, factory):
  """Right order, scores that are inner products, the same from the disk."""
  vectors = make_vectors(clustered[0], block=400)
  settings = Settings(factory, train_sample=1000)
  faiss_shards.write_part(
    _stage(tmp_path / "index"), settings, vectors, range(COUNT)
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
  assert faiss_tune.recall(rows, best, 20) >= FACTORIES[factory]
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
  "factory",
  [f for f in FACTORIES if not any(part in f for part in SLOW_OR_PADDED)],
)
def test_size_is_predicted(
  clustered, make_vectors, one_thread, tmp_path, factory
):
  """Within 3 %; types that pad their lists, or learn long, are left out."""
  vectors = make_vectors(clustered[0], block=COUNT)
  settings = Settings(factory, train_sample=1000)
  index = faiss_build.build_index(vectors, settings)
  faiss.write_index(index, str(tmp_path / "file"))
  size = (tmp_path / "file").stat().st_size
  plan = faiss_size.plan(settings, COUNT, DIM, 1e11)
  assert abs(plan.index_bytes - size) < 0.03 * size + 2000
  assert plan.build_bytes >= plan.index_bytes
  assert plan.seconds > 0


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
  vectors = make_vectors(np.random.default_rng(0).normal(size=(60, DIM)))
  with pytest.raises(errors.InputError) as error:
    faiss_build.build_index(vectors, Settings(factory))
  assert words in str(error.value)


def test_the_paper_s_index_has_a_name():
  from dpr_jax.core import config as config_lib

  config = config_lib.base_config()
  config.index.factory = "dpr"
  settings = Settings.of(config)
  index = faiss_build.make_index(DIM, settings)
  assert (settings.factory, settings.ef_construction) == ("HNSW512", 200)
  assert index.hnsw.efConstruction == 200
  assert index.hnsw.nb_neighbors(1) == 512
  chosen = faiss_search.set_parameters(index, {})
  assert chosen == {"ef_search": 128}
  assert index.hnsw.efSearch == 128


@pytest.mark.parametrize(
  "factory",
  [
    "Flat",
    "IVF8,Flat",
    "IVF8,SQ8",
    "IVF8,PQ4x4,RFlat",
    "IVF32,PQ8x4fs,RFlat",  # its tables are larger than what was learnt
  ],
)
def test_shards_equal_one_index(
  clustered, make_vectors, one_thread, tmp_path, factory
):
  """Hits and scores, whichever part a passage is in."""
  whole = np.concatenate([clustered[0][:500]] * 2)  # ties between the parts
  vectors = make_vectors(whole, block=300)
  settings = Settings(factory, train_sample=800)
  stage = _stage(tmp_path / "index")
  assert not faiss_shards.write_shards(stage, settings, vectors, 3, only=1)
  assert not faiss_shards.write_shards(stage, settings, vectors, 3, only=0)
  assert faiss_shards.write_shards(stage, settings, vectors, 3, only=None)
  sharded, manifest = faiss_stage.load_index(tmp_path / "index")
  assert [shard["rows"] for shard in manifest["shards"]] == [333, 333, 334]
  one = faiss_build.build_index(vectors, settings)
  for index in (sharded, one):
    chosen = faiss_search.set_parameters(index, {"nprobe": 4})
    assert set(chosen) == set(faiss_search.searchable_by(one))
  found = faiss_stage.search_index(sharded, clustered[1], 10)
  expected = faiss_stage.search_index(one, clustered[1], 10)
  if "RFlat" in factory:  # each part refines hits of its own: no fewer
    assert (found[1] >= expected[1] - 1e-4).all()
  else:
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
  # A part that is not the one that was built.
  part = tmp_path / "index" / "shard-00001-of-00003"
  faiss_shards.write_part(
    dataclasses.replace(stage, folder=part), settings, vectors, range(333)
  )
  with pytest.raises(
    errors.InputError, match="is part .*, the manifest of .* names"
  ):
    faiss_stage.load_index(tmp_path / "index")


def test_a_build_needs_little_more_than_the_index(make_vectors, one_thread):
  """Arrays have their final size from the beginning."""
  from dpr_jax.benchmarking import search_cell
  from dpr_jax.core import memory

  if memory.status("RssAnon") is None:
    pytest.skip("no /proc here")
  generator = np.random.default_rng(0)
  array = generator.normal(size=(60_000, 64)).astype(np.float32)
  vectors = make_vectors(array, block=4096)
  for factory in ("Flat", "IVF64,Flat"):
    settings = Settings(factory, train_sample=4000)
    with search_cell.PeakMemory() as peak:
      index = faiss_build.build_index(vectors, settings)
    # 8 MB for blocks, the sample and the lists' numbers.
    assert peak.bytes < 1.2 * array.nbytes + 8e6, factory
    assert index.ntotal == len(array)


def test_questions_of_another_width_are_refused(clustered, make_vectors):
  vectors = make_vectors(clustered[0][:50])
  index = faiss_build.build_index(vectors, Settings("Flat"))
  for search in (
    lambda questions: faiss_stage.search_index(index, questions, 3),
    lambda questions: faiss_stage.search_vectors(vectors, questions, 3),
  ):
    with pytest.raises(errors.InputError, match=r"\[2, 8\].*of width 16"):
      search(np.zeros((2, 8), np.float32))
  rows, scores = faiss_stage.search_index(index, np.zeros((0, DIM)), 3)
  assert rows.shape == scores.shape == (0, 3)


def test_limits_hold_while_a_foreign_file_is_parsed(tmp_path, monkeypatch):
  """As large as the file, and never without the comparison before."""
  seen = []
  folder = tmp_path / "index"
  folder.mkdir()
  (folder / faiss_stage.FILE).write_bytes(b"x" * 1000)
  _stage(folder).finish(
    {},
    files={
      faiss_stage.FILE: workdir_lib.fingerprint_file(folder / faiss_stage.FILE)
    },
  )

  def read_index(path, flags):
    seen.append(faiss.get_deserialization_vector_byte_limit())
    raise RuntimeError("Error in f at g.cpp:1: no index")

  monkeypatch.setattr(faiss, "read_index", read_index)
  with pytest.raises(errors.InputError, match="is not a FAISS index: no index"):
    faiss_files.load_index(folder)
  assert seen == [1000]


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
