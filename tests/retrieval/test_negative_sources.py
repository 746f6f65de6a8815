"""Candidates of every ranker and the scores of positives, by plain NumPy."""

import shutil

import faiss
import numpy as np
import pytest

from dpr_jax.core import errors
from dpr_jax.data import mined_negatives, records
from dpr_jax.index import faiss_search, faiss_stage
from dpr_jax.retrieval import bm25, hybrid, mine
from tests import retrieval_world

PARIS = "What is the capital of France?"


def _rows(world, ranker, split="train"):
  mine.mine(world.config, world.workdir, ranker=ranker)
  name = mined_negatives.files(ranker)[split]
  return mined_negatives.read_rows(world.workdir.negatives / name)


def _vectors(world):
  """Of questions (train) and of passages."""
  questions = [question.question for question in world.questions["train"]]
  passages = [f"{p.title} {p.text}" for p in world.passages]
  return retrieval_world.encode(questions), retrieval_world.encode(passages)


def _answered(world, number, row):
  """Whether a passage is a positive or has an answer, in this small world."""
  answers = world.questions["train"][number].answers
  text = world.passages[row].text
  return any(answer in text for answer in answers)


@pytest.fixture
def indexed(world):
  """With an index of the trained model."""
  world.embed()
  faiss_stage.index(world.config, world.workdir)
  return world


def test_bm25_scores_and_those_of_positives(world):
  """Also of a positive that is no hit, or is below the depth."""
  far, none = world.passages[8], world.passages[6]  # few words, no word
  world.questions["train"][3] = records.Question(PARIS + "?", ("x",), (far,))
  world.questions["train"][1] = records.Question(PARIS + "!", ("x",), (none,))
  world.prepare("2")
  world.config.mine.depth = 2
  index = bm25.build_or_load(world.config, world.workdir)
  ranked, scores = index.search([PARIS], 9)
  by_row = dict(zip(ranked[0].tolist(), scores[0].tolist(), strict=True))
  assert by_row[8] < scores[0, 1]  # not among the first two
  found = _rows(world, "bm25")
  for row in (found[0], found[1], found[3]):
    assert row.scores == [
      float(str(np.float32(by_row[int(i[1:])]))) for i in row.ids
    ]
  assert [row.positive_score for row in found] == [
    pytest.approx(by_row[0], rel=1e-7),
    0.0,
    None,  # it has no positive
    pytest.approx(by_row[8], rel=1e-7),
  ]
  np.testing.assert_array_equal(
    index.score(PARIS, list(range(9))), [by_row.get(n, 0.0) for n in range(9)]
  )


def test_the_model_s_scores_and_a_margin(indexed):
  """Brute force; without margin, and 20 % below the best positive."""
  world = indexed
  both = (world.passages[4], world.passages[0])
  world.questions["train"][0] = records.Question(PARIS, ("Paris",), both)
  world.prepare("2")
  world.embed()
  faiss_stage.index(world.config, world.workdir)
  questions, passages = _vectors(world)
  scores = questions @ passages.T
  best = max(scores[0, 4], scores[0, 0])
  for margin in ("none", 0.2):
    world.config.mine.relative_margin = margin
    found = _rows(world, "model")
    limit = np.inf if margin == "none" else best - 0.2 * abs(best)
    wanted = [
      row
      for row in np.argsort(-scores[0], kind="stable").tolist()
      if not _answered(world, 0, row) and row != 4 and scores[0, row] <= limit
    ]
    assert found[0].ids == [f"p{row}" for row in wanted]
    assert found[0].scores == pytest.approx(scores[0, wanted], rel=1e-5)
    assert found[0].positive_score == pytest.approx(best, rel=1e-5)
    assert found[1].positive_score is None
  assert 0 < len(wanted) < 6  # the margin leaves out some, not all


def test_neighbours_of_the_gold_passage(indexed, caplog):
  """By their similarity to it, with the scores of the question."""
  world = indexed
  questions, passages = _vectors(world)
  near = np.argsort(-(passages @ passages[0]), kind="stable").tolist()
  wanted = [row for row in near if not _answered(world, 0, row)]
  with caplog.at_level("INFO"):
    found = _rows(world, "passage")
  assert "mine: 3 questions have no positive in the corpus" in caplog.text
  assert "share no word" not in caplog.text
  assert found[0].ids == [f"p{row}" for row in wanted]
  assert found[0].ids != _rows(world, "model")[0].ids
  scores = passages @ questions[0]
  assert found[0].scores == pytest.approx(scores[wanted], rel=1e-5)
  assert found[0].positive_score == pytest.approx(scores[0], rel=1e-5)
  assert [row.ids for row in found[1:]] == [[]] * 3  # they have no positive


@pytest.mark.parametrize("factory", ["Flat", "HNSW8"])
def test_an_index_alone_has_the_vectors(indexed, factory):
  """Its vectors are read if `embeddings/` is gone."""
  world = indexed
  world.config.index.factory = factory
  faiss_stage.index(world.config, world.workdir)
  questions, passages = _vectors(world)
  shutil.rmtree(world.workdir.embeddings("dense"))
  world.vectors.clear()
  found = _rows(world, "passage")
  assert found[0].positive_score == pytest.approx(
    float(questions[0] @ passages[0]), rel=1e-5
  )


def test_a_compressed_index_needs_the_embeddings(indexed, caplog):
  world = indexed
  world.config.index.factory = "SQ8"
  faiss_stage.index(world.config, world.workdir)
  questions, passages = _vectors(world)
  assert _rows(world, "model")[0].positive_score == pytest.approx(
    float(questions[0] @ passages[0]), rel=1e-5
  )
  shutil.rmtree(world.workdir.embeddings("dense"))
  mine.mine(world.config, world.workdir, ranker="model", overwrite=True)
  path = world.workdir.negatives / "model.jsonl.gz"
  assert mined_negatives.read_rows(path)[0].positive_score is None
  assert "no vectors, and the index does not keep them" in caplog.text
  with pytest.raises(errors.InputError, match="--from=passage needs the vec"):
    mine.mine(world.config, world.workdir, ranker="passage")


def test_rows_of_a_sharded_index():
  """Each from its shard; not if some shards are in another process."""
  vectors = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
  parts = []
  for first, end in ((0, 3), (3, 7)):
    parts.append(faiss.IndexFlatIP(4))
    parts[-1].add(vectors[first:end])
  index = faiss_search.ShardedIndex(parts, [0, 3], 4)
  assert faiss_search.keeps_all(index)
  rows = np.array([6, 2, 3, 2])
  taken = faiss_search.IndexVectors(index).take(rows)
  np.testing.assert_array_equal(taken, vectors[rows])
  index.ntotal = 9
  assert not faiss_search.keeps_all(index)


class _Ranker:
  """Returns fixed hits."""

  def __init__(self, rows, scores):
    self._hits = np.array(rows), np.array(scores, np.float32)

  def search(self, questions, k):
    return self._hits


def test_the_fused_scores_of_any_rows():
  """BM25 has rows 1 and 3 (5, 3), the model 2 and 3 (2 x 0.5, 2 x 0.25).

  Row 7 is in no list, row 2 in one: a missing score is the list's lowest.
  """
  ranker = hybrid.HybridRanker(
    _Ranker([[1, 3, -1]], [[5, 3, 0]]),
    _Ranker([[2, 3, -1]], [[0.5, 0.25, 0]]),
    method="linear",
    weight=2.0,
    depth=3,
    rank_constant=60,
  )
  rows, scores, wanted = ranker.search_and_score(["q"], 3, [[7, 2, 3]])
  assert rows.tolist() == [[1, 2, 3]]
  assert scores.tolist() == [[5.5, 4.0, 3.5]]
  assert wanted[0].tolist() == [3.5, 4.0, 3.5]


def test_the_hybrid_mines(indexed):
  """BM25 + 1.1 x the inner product, with the positive's."""
  world = indexed
  questions, passages = _vectors(world)
  dense = passages @ questions[0]
  index = bm25.build_or_load(world.config, world.workdir)
  rows, scores = index.search([PARIS], 9)
  hits = {r: s for r, s in zip(rows[0], scores[0], strict=True) if r >= 0}
  lowest = min(hits.values())
  fused = [hits.get(n, lowest) + 1.1 * float(dense[n]) for n in range(9)]
  order = np.argsort(-np.array(fused), kind="stable").tolist()
  wanted = [row for row in order if not _answered(world, 0, row)]
  found = _rows(world, "hybrid")
  assert found[0].ids == [f"p{row}" for row in wanted]
  assert found[0].scores == pytest.approx([fused[n] for n in wanted], rel=1e-5)
  assert found[0].positive_score == pytest.approx(fused[0], rel=1e-5)
  manifest = mined_negatives.manifest_of(
    world.workdir.negatives / "hybrid.jsonl.gz"
  )
  assert manifest["stage"] == "mine --from=hybrid"
  assert manifest["config"]["fusion"]["weight"] == 1.1
  assert manifest["config"]["bm25"]["k1"] == 0.9
  assert {"index", "model", "training"} <= set(manifest["inputs"])
