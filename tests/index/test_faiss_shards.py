"""Several parts are one index."""

import dataclasses
import json

import faiss
import numpy as np
import pytest

from dpr_jax.core import errors
from dpr_jax.index import (
  faiss_build,
  faiss_search,
  faiss_shards,
  faiss_stage,
)
from dpr_jax.index.faiss_build import Settings
from tests.index import made


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
  stage = made.stage(tmp_path / "index")
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
    errors.InputError, match="has part .*, the manifest of .* names"
  ):
    faiss_stage.load_index(tmp_path / "index")


def test_faiss_alone_opens_the_shards_by_their_manifest(
  clustered, make_vectors, one_thread, tmp_path
):
  """As docs/workdir.md says: the first row of a shard is added to its rows."""
  vectors = make_vectors(clustered[0][:700], block=300)
  stage = made.stage(tmp_path / "index")
  settings = Settings("IVF8,Flat", train_sample=700)
  assert faiss_shards.write_shards(stage, settings, vectors, 3, only=None)
  folder, questions = tmp_path / "index", clustered[1]
  manifest = json.loads((folder / "manifest.json").read_text())
  rows, scores, next_row = [], [], 0
  for shard in manifest["shards"]:
    assert shard["first_row"] == next_row
    next_row += shard["rows"]
    index = faiss.read_index(str(folder / shard["folder"] / "index.faiss"))
    assert index.ntotal == shard["rows"]
    faiss.extract_index_ivf(index).nprobe = 3
    scored, numbers = index.search(questions, 10)
    rows.append(np.where(numbers < 0, -1, numbers + shard["first_row"]))
    scores.append(scored)
  assert next_row == manifest["count"] == 700
  rows, scores = np.hstack(rows), np.hstack(scores)
  best = np.argsort(-scores, axis=1, kind="stable")[:, :10]
  ours, _ = faiss_stage.load_index(folder)
  faiss_search.set_parameters(ours, {"nprobe": 3})
  expected = faiss_stage.search_index(ours, questions, 10)
  np.testing.assert_array_equal(
    np.take_along_axis(rows, best, axis=1), expected[0]
  )
  np.testing.assert_array_equal(
    np.take_along_axis(scores, best, axis=1), expected[1]
  )
