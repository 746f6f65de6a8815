"""Several parts are one index."""

import dataclasses

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
