"""The FAISS index: right, whole, and refused where it is not."""

import faiss
import numpy as np
import pytest

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.index import faiss_build, faiss_stage


def _vectors(count, dim=8, seed=0):
  return np.random.default_rng(seed).normal(size=(count, dim))


def _build(vectors, factory, **settings):
  settings = faiss_build.Settings(factory, **settings)
  return faiss_stage.build_index(vectors, settings)


def _brute_force(passages, questions, k):
  scores = np.asarray(questions, np.float32) @ np.asarray(passages).T
  order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
  return order, np.take_along_axis(scores, order, axis=1)


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_flat_equals_brute_force(make_vectors, block):
  passages = make_vectors(_vectors(50), block=block)
  questions = _vectors(30, seed=1).astype(np.float32)
  index = _build(passages, "Flat")
  rows, scores = faiss_stage.search_index(index, questions, 10)
  expected_rows, expected = _brute_force(passages.array, questions, 10)
  assert rows.dtype == np.int64
  assert scores.dtype == np.float32
  np.testing.assert_array_equal(rows, expected_rows)
  np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)
  # The inner product, not the distance: long vectors win.
  passages.array[3] *= 100
  index = _build(passages, "Flat")
  assert faiss_stage.search_index(index, passages.array[3:4], 1)[0] == [[3]]


def test_equal_scores_stand_in_the_order_of_rows(make_vectors):
  # Whole numbers: products are exact, so equal vectors have equal scores.
  few = np.random.default_rng(2).integers(-2, 3, size=(5, 4))
  passages = make_vectors(np.tile(few, (6, 1)))
  questions = np.random.default_rng(3).integers(-2, 3, size=(40, 4))
  index = _build(passages, "Flat")
  for k in (1, 3, 10, 30):  # 3 and 10 cut between equal scores
    rows, scores = faiss_stage.search_index(index, questions, k)
    expected_rows, expected = _brute_force(passages.array, questions, k)
    np.testing.assert_array_equal(scores, expected)
    np.testing.assert_array_equal(rows, expected_rows)


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_vectors_are_searched_as_by_a_flat_index(make_vectors, block):
  """Block by block, ties too, also where there are fewer than asked for."""
  few = np.random.default_rng(2).integers(-2, 3, size=(5, 4))
  questions = np.random.default_rng(3).integers(-2, 3, size=(40, 4))
  for vectors in (few, np.tile(few, (6, 1)), _vectors(50, 4)):
    table = make_vectors(vectors, block=block)
    for k in (1, 10, 40):
      rows, scores = faiss_stage.search_vectors(table, questions, k)
      expected_rows, expected = _brute_force(table.array, questions, k)
      assert (rows.dtype, scores.dtype) == (np.int64, np.float32)
      np.testing.assert_array_equal(rows, expected_rows)
      np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)
  table.array[30] = np.inf
  with pytest.raises(errors.InputError, match="passage row 30 is not finite"):
    faiss_stage.search_vectors(table, questions, 3)


def test_no_more_columns_than_vectors(make_vectors):
  index = _build(make_vectors(_vectors(3)), "Flat")
  rows, scores = faiss_stage.search_index(index, _vectors(2), 100)
  assert rows.shape == scores.shape == (2, 3)
  assert sorted(rows[0]) == [0, 1, 2]


def test_missing_hits_stand_last(make_vectors):
  """An approximate index may find fewer than it was asked for."""
  vectors = np.repeat(np.eye(4), 30, axis=0)
  index = _build(make_vectors(vectors, block=50), "IVF4,Flat")
  assert index.ntotal == 120
  rows, scores = faiss_stage.search_index(index, np.eye(4), 100)
  found = rows >= 0
  assert not found.all()
  for row, (hits, values) in enumerate(zip(rows, scores, strict=True)):
    count = found[row].sum()
    assert count >= 30
    assert (hits[:count] >= 0).all()
    assert (hits[count:] == -1).all()
    assert (values[count:] == 0).all()
    assert (np.diff(values[:count]) <= 0).all()


@pytest.mark.parametrize("factory", ["HNSW8", "SQ8", "IVF2,Flat"])
def test_other_factories(make_vectors, factory):
  passages = make_vectors(_vectors(200), block=64)
  index = _build(passages, factory)
  assert index.metric_type == faiss.METRIC_INNER_PRODUCT
  assert index.ntotal == 200


def test_sample_is_spread_over_all_blocks(make_vectors):
  vectors = make_vectors(np.arange(10)[:, None], block=3)
  sample = faiss_build.sample(vectors, 4)
  assert sample[:, 0].tolist() == [0, 3, 6, 9]
  assert len(faiss_build.sample(vectors, 99)) == 10


@pytest.mark.parametrize(
  ("factory", "count"),
  [("nonsense", 9), ("PQ7", 9), ("", 9), ("IVF100,Flat", 9), ("Flat,", 9)],
)
def test_bad_factory_is_refused(make_vectors, factory, count):
  with pytest.raises(errors.InputError, match=r"config\.index\.factory=") as e:
    _build(make_vectors(_vectors(count)), factory)
  assert ".cpp" not in str(e.value)


@pytest.mark.parametrize("factory", ["../x", "a/b", ".", "", "a b", "x\n"])
def test_factory_that_is_no_folder_name_is_refused(world, factory):
  world.embed()
  world.config.index.factory = factory
  with pytest.raises(errors.InputError, match=r"config\.index\.factory"):
    faiss_stage.index(world.config, world.workdir)


def test_empty_and_broken_vectors_are_refused(make_vectors):
  with pytest.raises(errors.InputError, match="0 vectors"):
    _build(make_vectors(np.zeros((0, 4))), "Flat")
  vectors = _vectors(10)
  vectors[7, 2] = np.nan
  with pytest.raises(errors.InputError, match="passage row 7 is not finite"):
    _build(make_vectors(vectors), "Flat")


def _index(world, **kwargs):
  faiss_stage.index(world.config, world.workdir, **kwargs)
  return world.workdir.index("Flat", kwargs.get("model", "dense"))


def test_stage_writes_index_and_manifest(world):
  world.embed()
  folder = _index(world)
  index, manifest = faiss_stage.load_index(folder)
  assert index.ntotal == manifest["count"] == len(world.passages)
  assert manifest["factory"] == "Flat"
  assert manifest["metric"] == "inner_product"
  assert manifest["dim"] == index.d == 16
  assert manifest["model"] == "model-1"
  assert set(manifest["files"]) == {"index.faiss"}
  assert sorted(path.name for path in folder.iterdir()) == [
    "index.faiss",
    "manifest.json",
  ]


def test_stage_is_skipped_until_the_vectors_change(world):
  world.embed()
  file = _index(world) / faiss_stage.FILE
  time = file.stat().st_mtime_ns
  _index(world)
  assert file.stat().st_mtime_ns == time
  world.embed(array=_vectors(len(world.passages)))
  _index(world)
  assert faiss_stage.load_index(file.parent)[0].d == 8
  time = file.stat().st_mtime_ns
  _index(world, overwrite=True)
  assert file.stat().st_mtime_ns != time


def test_models_have_indexes_of_their_own(world):
  world.embed()
  world.embed("dense-start", "model-0")
  trained, start = _index(world), _index(world, model="dense-start")
  assert trained != start
  assert faiss_stage.load_index(trained)[1]["model"] == "model-1"
  assert faiss_stage.load_index(start)[1]["model"] == "model-0"


def test_vectors_of_other_data_are_refused(world):
  with pytest.raises(errors.InputError, match="dpr-jax embed"):
    _index(world)
  world.embed()
  world.prepare("2")
  with pytest.raises(errors.InputError, match="not of the passages"):
    _index(world)


def test_every_flipped_byte_is_noticed(world, monkeypatch):
  world.embed()
  folder = _index(world)
  path = folder / faiss_stage.FILE
  content = path.read_bytes()
  # FAISS must not see a byte of what fails the comparison.
  monkeypatch.setattr(faiss, "read_index", None)
  for place in range(0, len(content), 41):
    damaged = bytearray(content)
    damaged[place] ^= 16
    path.write_bytes(damaged)
    with pytest.raises(errors.InputError, match="index --overwrite"):
      faiss_stage.load_index(folder)
  for size in (0, 1, len(content) // 2, len(content) - 1):
    path.write_bytes(content[:size])
    with pytest.raises(errors.InputError, match="is not the file"):
      faiss_stage.load_index(folder)
  path.unlink()
  with pytest.raises(errors.InputError, match="index.faiss is missing"):
    faiss_stage.load_index(folder)


def _replace(folder, content=None, **changes):
  """Changes file and manifest together, as an attacker would."""
  path = folder / faiss_stage.FILE
  if content is not None:
    path.write_bytes(content)
  manifest = workdir_lib.read_record(folder / workdir_lib.MANIFEST)
  manifest["files"] = {path.name: workdir_lib.fingerprint_file(path)}
  workdir_lib.write_record(folder / workdir_lib.MANIFEST, manifest | changes)


def test_files_that_faiss_cannot_read_are_refused(world):
  world.embed()
  folder = _index(world)
  content = (folder / faiss_stage.FILE).read_bytes()
  limits = (
    faiss.get_deserialization_vector_byte_limit(),
    faiss.get_deserialization_loop_limit(),
  )
  # The 8 bytes before the vectors are their number: here, an absurd one.
  vectors = len(world.passages) * 16 * 4
  absurd = content[: -vectors - 8] + (1 << 36).to_bytes(8, "little")
  for damaged in (b"", b"nonsense", content[:-1], absurd + content[-vectors:]):
    _replace(folder, damaged)
    with pytest.raises(errors.InputError, match="is not a FAISS index"):
      faiss_stage.load_index(folder)
  assert limits == (
    faiss.get_deserialization_vector_byte_limit(),
    faiss.get_deserialization_loop_limit(),
  )


@pytest.mark.parametrize("key", ["count", "dim", "metric"])
def test_index_that_is_not_what_the_manifest_says_is_refused(world, key):
  world.embed()
  folder = _index(world)
  _replace(folder, **{key: 5})
  with pytest.raises(errors.InputError, match=f"{key} is .*manifest says 5"):
    faiss_stage.load_index(folder)


def test_manifest_without_the_file_is_refused(world):
  world.embed()
  folder = _index(world)
  manifest = workdir_lib.read_record(folder / workdir_lib.MANIFEST)
  workdir_lib.write_record(
    folder / workdir_lib.MANIFEST, manifest | {"files": {}}
  )
  with pytest.raises(errors.InputError, match="does not list index.faiss"):
    faiss_stage.load_index(folder)
