"""BEIR's exact search takes an `Encoder` as it is."""

import pytest

from tests.peers.conftest import DEPTH, QUESTIONS, RELEVANT

pytestmark = pytest.mark.compiles


def test_hits_and_ndcg(world, library, tmp_path):
  search = library("beir.retrieval.search.dense.exact_search")
  evaluation = library("beir.retrieval.evaluation")
  retriever = evaluation.EvaluateRetrieval(
    search.DenseRetrievalExactSearch(world.encoder, batch_size=2),
    score_function="dot",
    k_values=[10],
  )
  results = retriever.retrieve(world.corpus, QUESTIONS)
  ranked = [
    sorted(results[question], key=results[question].get, reverse=True)[:DEPTH]
    for question in QUESTIONS
  ]
  assert ranked == world.hits()
  for question, row in zip(QUESTIONS, world.scores(titles=True), strict=True):
    wanted = dict(zip(world.ids, row.tolist(), strict=True))
    assert results[question] == pytest.approx(wanted, abs=1e-6)
  grades = {
    question: dict.fromkeys(passages, 1)
    for question, passages in RELEVANT.items()
  }
  ndcg, _, _, _ = retriever.evaluate(grades, results, [10])
  assert ndcg["NDCG@10"] == pytest.approx(world.ndcg(tmp_path), abs=1e-5)
  assert 0.3 < ndcg["NDCG@10"] < 1
