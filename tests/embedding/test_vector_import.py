"""Vectors of other libraries as those of a workdir's passages."""

import pickle

import numpy as np
import pytest

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import prepare, records, tfds_builders
from dpr_jax.embedding import vector_formats, vector_import, vector_shards
from dpr_jax.index import faiss_stage
from dpr_jax.models import model_settings

COUNT = 7
IDS = [f"p{row}" for row in range(COUNT)]
VECTORS = np.arange(3 * COUNT, dtype=np.float32).reshape(COUNT, 3)


@pytest.fixture
def config():
  """Three rows per shard: 3, 3 and 1."""
  config = config_lib.base_config()
  config.embed.rows_per_shard = 3
  return config


@pytest.fixture
def workdir(tmp_path):
  """A workdir with seven passages."""
  place = workdir_lib.Workdir(tmp_path / "work")
  rows = [records.Passage(i, f"title {i}", f"text {i}") for i in IDS]
  tfds_builders.write_passages(rows, place.data / "passages")
  files = {
    path.relative_to(place.data).as_posix(): workdir_lib.fingerprint_file(path)
    for path in sorted((place.data / "passages").iterdir())
  }
  stage = workdir_lib.Stage("prepare", place.data, {}, {})
  stage.finish({"passages": COUNT}, files=files)
  return place


def _dpr(folder, *shards):
  """Pickles as released: (id with its prefix, vector), a shard a file."""
  folder.mkdir(exist_ok=True)
  for number, rows in enumerate(shards):
    pairs = [(f"wiki:{IDS[row]}", VECTORS[row]) for row in rows]
    path = folder / f"wikipedia_passages_{number}.pkl"
    path.write_bytes(pickle.dumps(pairs))
  return folder


@pytest.mark.parametrize("dtype", vector_shards.DTYPES)
def test_in_any_order_of_files_and_rows(workdir, config, tmp_path, dtype):
  """Row i is passage i; numbers below 256 are exact in every dtype."""
  config.embed.dtype = dtype
  source = _dpr(tmp_path / "in", [6, 2, 0], [5, 1], [3, 4])
  assert vector_import.into_workdir(config, workdir, source) == COUNT
  vectors = vector_shards.open_vectors(workdir.embeddings())
  np.testing.assert_array_equal(vectors.take(range(COUNT)), VECTORS)
  assert vectors.ids(range(COUNT)) == IDS
  manifest = vectors.manifest
  assert [shard["rows"] for shard in manifest["shards"]] == [3, 3, 1]
  assert manifest["model"].startswith("imported ")
  assert manifest["dtype"] == dtype
  assert manifest["counts"] == {
    "passages": 7, "vectors_read": 7, "unknown_ids": 0, "repeated_ids": 0
  }  # fmt: skip
  corpus = workdir_lib.dataset_inputs(workdir, "passages")["passages"]
  assert manifest["inputs"].pop("passages") == corpus
  assert manifest["inputs"] == {
    f"from/{path.name}": workdir_lib.fingerprint_file(path)
    for path in source.iterdir()
  }


def test_a_second_import_is_skipped_and_another_refused(
  workdir, config, tmp_path
):
  source = _dpr(tmp_path / "in", range(COUNT))
  vector_import.into_workdir(config, workdir, source)
  file = workdir.embeddings() / "vectors-00000.npy"
  before = file.stat().st_mtime_ns
  vector_import.into_workdir(config, workdir, source)
  assert file.stat().st_mtime_ns == before
  (source / "wikipedia_passages_0.pkl").write_bytes(
    pickle.dumps((VECTORS + 1, IDS))
  )
  with pytest.raises(errors.InputError, match="other vectors: from/wiki.*--ov"):
    vector_import.into_workdir(config, workdir, source)
  assert file.stat().st_mtime_ns == before
  vector_import.into_workdir(config, workdir, source, overwrite=True)
  vectors = vector_shards.open_vectors(workdir.embeddings())
  np.testing.assert_array_equal(vectors.take([6]), [[19, 20, 21]])


def test_shards_of_an_interrupted_embed_are_not_replaced(
  workdir, config, tmp_path
):
  folder = workdir.embeddings()
  workdir_lib.write_record(
    folder / "part-00000.json", {"files": {}, "config": {}, "inputs": {}}
  )
  source = _dpr(tmp_path / "in", range(COUNT))
  with pytest.raises(errors.InputError, match="an unfinished `dpr-jax embed`"):
    vector_import.into_workdir(config, workdir, source)


def test_a_damaged_file_is_made_again(workdir, config, tmp_path):
  source = _dpr(tmp_path / "in", range(COUNT))
  vector_import.into_workdir(config, workdir, source)
  file = workdir.embeddings() / "vectors-00001.npy"
  file.write_bytes(file.read_bytes()[:-1] + b"?")
  with pytest.raises(errors.InputError, match="0001.npy .*`dpr-jax import`"):
    vector_shards.open_vectors(workdir.embeddings())
  vector_import.into_workdir(config, workdir, source)
  vectors = vector_shards.open_vectors(workdir.embeddings())
  np.testing.assert_array_equal(vectors.take(range(COUNT)), VECTORS)


def test_other_ids_and_equal_copies_are_counted(workdir, config, tmp_path):
  pairs = [*zip(IDS, VECTORS, strict=True)]
  pairs += [("p3", VECTORS[3]), ("elsewhere", VECTORS[0]), pairs[5]]
  path = tmp_path / "all.pkl"
  path.write_bytes(pickle.dumps(pairs))
  vector_import.into_workdir(config, workdir, path)
  vectors = vector_shards.open_vectors(workdir.embeddings())
  np.testing.assert_array_equal(vectors.take(range(COUNT)), VECTORS)
  assert vectors.manifest["counts"] == {
    "passages": 7, "vectors_read": 10, "unknown_ids": 1, "repeated_ids": 2
  }  # fmt: skip


@pytest.mark.parametrize(
  ("ids", "vectors", "message"),
  [
    (IDS[:6], VECTORS[:6], r"1 of 7 passages .* is row 6 \(id 'p6'\), and 0 v"),
    (
      [*IDS[:3], "x", "y", *IDS[5:]],
      VECTORS,
      r"2 of 7 passages .* is row 3 \(id 'p3'\), and 2 vectors have ids",
    ),
    (["x"], VECTORS[:1], r"7 of 7 passages .* row 0 \(id 'p0'\), and 1 vect"),
    (
      [*IDS, "p2"],
      np.vstack([VECTORS, VECTORS[1:2]]),
      r"all.pkl, row 7: id 'p2' has two different vectors \(1 such ids",
    ),
  ],
)
def test_ids_that_do_not_fit(workdir, config, tmp_path, ids, vectors, message):
  path = tmp_path / "all.pkl"
  path.write_bytes(pickle.dumps((ids, vectors)))
  with pytest.raises(errors.InputError, match=message):
    vector_import.into_workdir(config, workdir, path)
  assert not workdir.embeddings().exists()


def test_rows_count_from_the_start_of_the_file(
  workdir, config, tmp_path, monkeypatch
):
  """Not of the part, a row group of Parquet."""
  path = tmp_path / "all.pkl"
  path.write_bytes(b"")
  parts = [
    (IDS[:4], VECTORS[:4]),
    ([*IDS[4:], "p2"], np.vstack([VECTORS[4:], VECTORS[:1]])),
  ]
  monkeypatch.setattr(vector_formats, "read_parts", lambda _: iter(parts))
  with pytest.raises(errors.InputError, match="row 7: id 'p2' has two diff"):
    vector_import.into_workdir(config, workdir, path)


def test_an_id_with_two_vectors_in_two_files(workdir, config, tmp_path):
  source = _dpr(tmp_path / "in", range(COUNT), [4])
  (source / "wikipedia_passages_2.pkl").write_bytes(
    pickle.dumps((["p6"], VECTORS[:1]))
  )
  with pytest.raises(errors.InputError, match=r"_2.pkl, row 0: id 'p6' has"):
    vector_import.into_workdir(config, workdir, source)


def test_another_corpus_is_noticed(workdir, config, tmp_path):
  source = _dpr(tmp_path / "in", range(COUNT))
  vector_import.into_workdir(config, workdir, source)
  manifest = vector_shards.read_manifest(workdir.embeddings())
  corpus = workdir_lib.dataset_inputs(workdir, "passages")["passages"]
  faiss_stage.check_origin(manifest, corpus, workdir.embeddings())
  with pytest.raises(
    errors.InputError, match="not of .*`dpr-jax import` again"
  ):
    faiss_stage.check_origin(manifest, "another", workdir.embeddings())


def test_widths_and_float16(workdir, config, tmp_path):
  source = _dpr(tmp_path / "in", range(3))
  (source / "wikipedia_passages_1.pkl").write_bytes(
    pickle.dumps((IDS[3:], VECTORS[3:, :2]))
  )
  with pytest.raises(errors.InputError, match="_1.pkl: vectors of width 2"):
    vector_import.into_workdir(config, workdir, source)
  (source / "wikipedia_passages_1.pkl").write_bytes(
    pickle.dumps((IDS[3:], 4e4 * VECTORS[3:]))
  )
  config.embed.dtype = "float16"
  with pytest.raises(errors.InputError, match="float16 .* 65504, which .*_1.p"):
    vector_import.into_workdir(config, workdir, source)


def test_dense_is_of_the_towers_trained_there(workdir, config, tmp_path):
  workdir_lib.Stage("train", workdir.training, {}, {}).finish({})
  source = _dpr(tmp_path / "in", range(COUNT))
  with pytest.raises(errors.InputError, match="trained .*--model=dense-start"):
    vector_import.into_workdir(config, workdir, source)
  vector_import.into_workdir(config, workdir, source, model="dense-start")
  there = workdir.embeddings("dense-start")
  assert len(vector_shards.open_vectors(there)) == COUNT
  assert model_settings.of_start_in(there) is None


def test_only_one_file_is_in_memory(workdir, config, tmp_path, monkeypatch):
  """A file is read after the rows of the one before are on the disk."""
  source = _dpr(tmp_path / "in", [6, 2, 0], [5, 1], [3, 4])
  written = []
  read = vector_import.vector_formats.read_parts

  def watched(path):
    written.append(
      sum(np.count_nonzero(np.load(f)) for f in tmp_path.rglob("vectors-*.npy"))
    )
    return read(path)

  monkeypatch.setattr(vector_import.vector_formats, "read_parts", watched)
  vector_import.into_workdir(config, workdir, source)
  # Row 0 is [0, 1, 2]; all other numbers are not 0.
  assert written == [0, 8, 14]
  assert prepare.open_passages(workdir).ids([6]) == ["p6"]
