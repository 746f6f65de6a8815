"""BM25 and dense joined: by hand, through the stage, and tuned on dev."""

import json

import numpy as np
import pytest

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.index import faiss_stage
from dpr_jax.retrieval import hybrid
from dpr_jax.retrieval import retrieve as retrieve_lib

SPARSE = (np.array([[3, 1, -1]]), np.array([[9.0, 5.0, 0.0]], np.float32))
DENSE = (np.array([[2, 3, 1]]), np.array([[0.9, 0.6, 0.5]], np.float32))


def _fuse(sparse=SPARSE, dense=DENSE, k=5, weight=2.0, **options):
  rows, scores = hybrid.fuse(sparse, dense, k, weight=weight, **options)
  return rows[0].tolist(), scores[0].tolist()


def test_linear_is_the_paper_s_sum():
  """Passage 2 is not in BM25's list: it gets the lowest score there."""
  rows, scores = _fuse(method="linear")
  assert rows == [3, 2, 1, -1, -1]
  assert scores == pytest.approx([9 + 1.2, 5 + 1.8, 5 + 1.0, 0, 0])
  assert _fuse(method="linear", k=1)[0] == [3]
  assert _fuse(method="linear", weight=0.0)[0][:3] == [3, 1, 2]  # tie by row
  assert _fuse(method="linear", weight=1e6)[0][:3] == [2, 3, 1]


def test_minmax_is_pyserini_s_range():
  rows, scores = _fuse(method="minmax", weight=1.0)
  found = dict(zip(rows, scores, strict=True))
  assert found[3] == pytest.approx(0.5 + (0.6 - 0.7) / 0.4)
  assert found[1] == pytest.approx(-0.5 - 0.5)
  assert found[2] == pytest.approx(-0.5 + 0.5)
  one = (np.array([[7]]), np.array([[3.0]], np.float32))
  assert _fuse(one, one, method="minmax")[1][0] == 0.0  # no range: the middle


def test_reciprocal_ranks_need_no_scores():
  rows, scores = _fuse(method="reciprocal", weight=1.0, rank_constant=60)
  assert rows[:3] == [3, 1, 2]
  assert scores[:3] == pytest.approx([1 / 61 + 1 / 62, 1 / 62 + 1 / 63, 1 / 61])


@pytest.mark.parametrize("method", hybrid.METHODS)
def test_one_list_alone_keeps_its_order(method):
  none = (np.full((1, 3), -1), np.zeros((1, 3), np.float32))
  assert _fuse(none, DENSE, method=method)[0][:3] == [2, 3, 1]
  assert _fuse(SPARSE, none, method=method)[0] == [3, 1, -1, -1, -1]
  assert _fuse(none, none, method=method)[0] == [-1] * 5


@pytest.fixture
def ready(world):
  world.embed()
  faiss_stage.index(world.config, world.workdir)
  world.config.fusion.depth = 5
  return world


def test_the_stage_joins_what_both_find(ready):
  ready.config.fusion.weight = 0.5
  retrieve_lib.retrieve(ready.config, ready.workdir, methods=["hybrid"])
  path = ready.workdir.results("dev", "hybrid")
  found = json.loads(path.read_text())
  ranker = retrieve_lib.retrievers.load(
    ready.config, ready.workdir, "hybrid", ready.passages
  )
  sparse, dense = ranker.search_both([found[0]["question"]], 3)
  assert sparse[0].shape == dense[0].shape == (1, 5)  # the deeper of the two
  sparse, dense = ranker.search_both([found[0]["question"]], 100)
  rows, scores = hybrid.fuse(sparse, dense, 100, method="linear", weight=0.5)
  ids = [f"p{row}" for row in rows[0] if row >= 0]
  assert [hit["id"] for hit in found[0]["ctxs"]] == ids
  assert float(found[0]["ctxs"][0]["score"]) == scores[0, 0]


def test_the_weight_is_tuned_on_dev_and_stored(ready):
  ready.config.fusion.weight = -1.0
  with pytest.raises(errors.InputError, match="--method=hybrid --tune"):
    retrieve_lib.retrieve(ready.config, ready.workdir, methods=["hybrid"])
  ready.config.fusion.weight = 1.1
  retrieve_lib.retrieve(
    ready.config, ready.workdir, methods=["hybrid"], tune=True
  )
  stored = workdir_lib.read_json(ready.workdir.root / "fusion" / "fusion.json")
  chosen = stored["linear"]
  assert chosen["questions"] == 2
  assert chosen["measure"] == max(each["measure"] for each in chosen["tried"])
  assert {0.0, 1.1} <= {each["weight"] for each in chosen["tried"]}
  manifest = workdir_lib.read_json(
    ready.workdir.results("dev", "hybrid").with_suffix(".manifest.json")
  )
  assert manifest["config"]["fusion"]["weight"] == chosen["weight"]
  ready.config.fusion.weight = -1.0  # the same, without tuning again
  assert (
    hybrid.settings(ready.config, ready.workdir)["weight"] == chosen["weight"]
  )
  ready.config.fusion.method = "minmax"
  with pytest.raises(errors.InputError, match="has none for 'minmax'"):
    hybrid.settings(ready.config, ready.workdir)
  with pytest.raises(errors.InputError, match="only --method=hybrid"):
    retrieve_lib.retrieve(
      ready.config, ready.workdir, methods=["bm25"], tune=True
    )


def test_tuning_finds_the_better_side():
  """Dense alone is right here, so the largest weight wins."""
  sparse = (np.array([[1, 2]] * 4), np.array([[2.0, 1.0]] * 4, np.float32))
  dense = (np.array([[2, 1]] * 4), np.array([[0.2, 0.1]] * 4, np.float32))
  options = {"method": "linear", "weight": 1.1, "rank_constant": 60}
  found = hybrid.tune(
    [(sparse, dense)],
    lambda rows: float(np.mean(rows[0][:, 0] == 2)),
    options,
    2,
  )
  assert found["measure"] == 1.0
  assert found["weight"] > 10  # the least one that outweighs BM25
  assert found["weight"] == min(
    each["weight"] for each in found["tried"] if each["measure"] == 1.0
  )
