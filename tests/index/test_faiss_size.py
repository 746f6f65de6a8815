"""How large an index will be, and how long it takes to build."""

import faiss
import pytest

from dpr_jax.index import (
  faiss_build,
  faiss_size,
)
from dpr_jax.index.faiss_build import Settings
from tests.index import made

SLOW_OR_PADDED = ("Panorama", "fs", "OPQ")


@pytest.mark.parametrize(
  "factory",
  [f for f in made.FACTORIES if not any(part in f for part in SLOW_OR_PADDED)],
)
def test_size_is_predicted(
  clustered, make_vectors, one_thread, tmp_path, factory
):
  """Within 3 %; types that pad their lists, or learn long, are left out."""
  vectors = make_vectors(clustered[0], block=made.COUNT)
  settings = Settings(factory, train_sample=1000)
  index = faiss_build.build_index(vectors, settings)
  faiss.write_index(index, str(tmp_path / "file"))
  size = (tmp_path / "file").stat().st_size
  plan = faiss_size.plan(settings, made.COUNT, made.DIM, 1e11)
  assert abs(plan.index_bytes - size) < 0.03 * size + 2000
  assert plan.build_bytes >= plan.index_bytes
  assert plan.seconds > 0
