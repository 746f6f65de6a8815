"""Retrieval from question to results file, with a stand-in encoder."""

import json

import numpy as np
import pytest

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import records, same_passages
from dpr_jax.evaluation import evaluate as evaluate_lib
from dpr_jax.evaluation import significance
from dpr_jax.index import faiss_stage
from dpr_jax.retrieval import api, bm25, passage_cache, retrievers
from dpr_jax.retrieval.result_files import Hit


def _results(world, method, name="dev"):
  path = world.workdir.results(name, method)
  return json.loads(path.read_text(encoding="utf-8"))


def _sidecar(world, method, name="dev"):
  path = world.workdir.results(name, method)
  return json.loads(path.with_suffix(".manifest.json").read_text())


@pytest.mark.parametrize("method", retrievers.METHODS)
def test_results_are_in_the_field_s_format(ready, method):
  ready.retrieve()
  results = _results(ready, method)
  assert len(results) == 2
  by_id = {passage.id: passage for passage in ready.passages}
  for entry, question in zip(results, ready.questions["dev"], strict=True):
    assert list(entry) == ["question", "answers", "ctxs"]
    assert entry["question"] == question.question
    assert entry["answers"] == list(question.answers)
    assert entry["ctxs"]
    scores = []
    for hit in entry["ctxs"]:
      assert list(hit) == ["id", "title", "text", "score", "has_answer"]
      passage = by_id[hit["id"]]
      assert (hit["title"], hit["text"]) == (passage.title, passage.text)
      assert isinstance(hit["score"], str)
      scores.append(float(hit["score"]))
      assert hit["has_answer"] is (question.answers[0] in hit["text"])
    assert scores == sorted(scores, reverse=True)
    ids = [hit["id"] for hit in entry["ctxs"]]
    assert len(set(ids)) == len(ids)
    # BM25 gives no passage that shares no word; dense gives them all.
    assert ("p6" in ids) == (method != "bm25")


def test_bm25_results_are_those_of_the_index(ready):
  ready.retrieve(methods=["bm25"])
  index = bm25.build_or_load(ready.config, ready.workdir)
  texts = [question.question for question in ready.questions["dev"]]
  rows, scores = index.search(texts, 100)
  for entry, ranked, values in zip(
    _results(ready, "bm25"), rows, scores, strict=True
  ):
    hits = [(hit["id"], np.float32(hit["score"])) for hit in entry["ctxs"]]
    assert hits == [
      (f"p{row}", value)
      for row, value in zip(ranked, values, strict=True)
      if row >= 0
    ]


def test_trec_run_says_the_same(ready):
  ready.retrieve()
  for method in retrievers.METHODS:
    path = ready.workdir.results("dev", method).with_suffix(".trec")
    lines = [line.split(" ") for line in path.read_text().splitlines()]
    expected = [
      [str(row), "Q0", hit["id"], str(rank), hit["score"], method]
      for row, entry in enumerate(_results(ready, method))
      for rank, hit in enumerate(entry["ctxs"], start=1)
    ]
    assert lines == expected


def test_sidecar_holds_what_evaluation_needs(ready):
  ready.retrieve()
  sidecar = _sidecar(ready, "dense")
  assert sidecar["gold"] == [["p0"], []]
  assert sidecar["depth"] == len(ready.passages)  # less than 100
  assert sidecar["match"] == "string"
  assert sidecar["counts"] == {
    "questions": 2,
    "hits": 18,
    "no_hits": 0,
    "no_answers": 0,
    "ids_with_space": 0,
    "ids_alike_in_run": 0,
    "questions_not_judged": 0,
    "questions_without_text": 0,
    "answers_without_tokens": 0,
    "passages": 9,
    "with_gold": 1,
  }
  workdir_lib.check_files(ready.workdir.root / "results", sidecar)
  measures = evaluate_lib.evaluate(ready.config, ready.workdir)
  assert set(measures) == set(retrievers.METHODS)
  assert set(measures["bm25"]) == {
    "top1",
    "top5",
    "gold_top1",
    "gold_top5",
  }
  assert measures["bm25"]["gold_top5"] == 1.0


def test_a_copy_of_a_gold_passage_is_gold(ready, monkeypatch):
  """BM25's first is p7, whose copy p0 is the positive and is second."""
  question = records.Question(
    "seine paris capital", ("x",), (ready.passages[0],)
  )
  other = records.Question("yellow bananas", ("x",), (ready.passages[6],))
  outside = records.Question("Milan", ("x",), (records.Passage("q", "", "y"),))
  ready.questions["dev"][:] = [question, other, outside]
  ready.prepare("2")
  before = ready.passages[0]
  ready.passages[0] = records.Passage("p0", "", before.text + " So it is now.")
  ready.retrieve(methods=["bm25"])
  assert _sidecar(ready, "bm25")["gold"] == [["p0"], ["p6"], ["q"]]
  assert [hit["id"] for hit in _results(ready, "bm25")[0]["ctxs"]][0] == "p7"
  measures = evaluate_lib.evaluate(ready.config, ready.workdir)["bm25"]
  assert measures["gold_top1"] == pytest.approx(1 / 3)
  copies = same_passages.Copies(np.array([7]), np.array([0]))
  monkeypatch.setattr(same_passages, "open_copies", lambda place: copies)
  ready.retrieve(methods=["bm25"], overwrite=True)
  assert _sidecar(ready, "bm25")["gold"] == [["p0", "p7"], ["p6"], ["q"]]
  measures = evaluate_lib.evaluate(ready.config, ready.workdir)["bm25"]
  assert measures["gold_top1"] == pytest.approx(2 / 3)


def test_depth(ready):
  ready.config.retrieve.depth = 3
  ready.retrieve()
  for method in retrievers.METHODS:
    assert [len(entry["ctxs"]) for entry in _results(ready, method)] == [3, 3]
    assert _sidecar(ready, method)["depth"] == 3


def test_batches_do_not_matter(ready, monkeypatch):
  ready.questions["dev"] = ready.questions["train"]
  ready.retrieve()
  whole = [_results(ready, method) for method in retrievers.METHODS]
  monkeypatch.setattr(api, "_BATCH", 3)
  ready.retrieve(overwrite=True)
  assert [_results(ready, method) for method in retrievers.METHODS] == whole
  assert _results(ready, "bm25")[2]["ctxs"] == []  # no word is known
  assert _sidecar(ready, "bm25")["counts"]["no_hits"] == 1
  assert _sidecar(ready, "bm25")["counts"]["no_answers"] == 1


def test_any_question_file(ready, tmp_path):
  path = tmp_path / "mine.qa.csv"
  path.write_text("1")
  ready.files[path] = [records.Question("Bananas?", ("yellow",))]
  ready.retrieve(questions_file=path, name="fruit", methods=["bm25"])
  (entry,) = _results(ready, "bm25", "fruit")
  assert [hit["id"] for hit in entry["ctxs"]] == ["p6"]
  assert entry["ctxs"][0]["has_answer"] is True
  assert _sidecar(ready, "bm25", "fruit")["gold"] == [[]]
  path.write_text("2")  # another file: done again
  ready.files[path] = [records.Question("Rome?")]
  ready.retrieve(questions_file=path, name="fruit", methods=["bm25"])
  assert _results(ready, "bm25", "fruit")[0]["ctxs"][0]["id"] == "p2"
  ready.files[path] = []
  with pytest.raises(errors.InputError, match="mine.qa.csv has no questions"):
    ready.retrieve(questions_file=path, name="none", methods=["bm25"])
  with pytest.raises(errors.InputError, match="gone.csv"):
    ready.retrieve(questions_file=tmp_path / "gone.csv", name="none")


def test_skipped_when_done_and_again_when_changed(ready, monkeypatch):
  ready.retrieve()
  paths = [ready.workdir.results("dev", m) for m in retrievers.METHODS]

  def times():
    return [path.stat().st_mtime_ns for path in paths]

  before = times()
  ready.retrieve()
  assert times() == before
  ready.config.bm25.k1 = 2.0
  ready.retrieve()
  assert [a == b for a, b in zip(before, times(), strict=True)] == [
    False,
    True,
    True,
    True,
    False,
  ]
  before = times()
  ready.config.model.question_prefix = "query: "
  ready.retrieve()
  assert [a == b for a, b in zip(before, times(), strict=True)] == [
    True,
    False,
    False,
    False,
    False,
  ]
  before = times()
  ready.config.evaluate.match = "regex"
  ready.retrieve()
  assert all(a != b for a, b in zip(before, times(), strict=True))


def test_a_failure_leaves_no_half_results(ready, monkeypatch):
  ready.retrieve(methods=["bm25"])
  folder = ready.workdir.root / "results"
  before = _results(ready, "bm25")

  def fail(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(api, "_BATCH", 1)
  monkeypatch.setattr(passage_cache.PassageCache, "take", fail)
  with pytest.raises(KeyboardInterrupt):
    ready.retrieve(methods=["bm25"], overwrite=True)
  assert _results(ready, "bm25") == before
  assert sorted(path.name for path in folder.iterdir()) == [
    "dev.bm25.json",
    "dev.bm25.manifest.json",
    "dev.bm25.trec",
  ]
  name = "dev.bm25.manifest.json"
  with pytest.raises(errors.InputError, match="the stage was not finished"):
    workdir_lib.read_manifest(folder, "retrieve", name)


def test_ids_with_white_space_do_not_break_the_run(ready):
  ready.passages[6] = records.Passage("p 6", "Bananas", "Bananas")
  ready.questions["dev"][0] = records.Question("Bananas")
  ready.retrieve(methods=["bm25"])
  assert _results(ready, "bm25")[0]["ctxs"][0]["id"] == "p 6"
  run = ready.workdir.results("dev", "bm25").with_suffix(".trec")
  assert run.read_text().splitlines()[0].split(" ")[:4] == [
    "0",
    "Q0",
    "p_6",
    "1",
  ]
  assert _sidecar(ready, "bm25")["counts"]["ids_with_space"] == 1


def test_the_index_does_not_need_the_vectors(ready):
  (ready.workdir.embeddings("dense") / "manifest.json").unlink()
  ready.retrieve(methods=["dense"])
  assert _results(ready, "dense")


def test_retriever(ready):
  questions = [question.question for question in ready.questions["dev"]]
  ready.retrieve()
  workdir_lib.write_json(
    ready.workdir.root / "config.json", {"index": {"factory": "Flat"}}
  )
  for method in retrievers.METHODS:
    retriever = api.Retriever.load(str(ready.workdir.root), method)
    found = retriever.search(questions, k=4)
    expected = [
      [
        Hit(hit["id"], hit["title"], hit["text"], float(hit["score"]))
        for hit in entry["ctxs"][:4]
      ]
      for entry in _results(ready, method)
    ]
    for hits, entries in zip(found, expected, strict=True):
      assert [hit[:3] for hit in hits] == [hit[:3] for hit in entries]
      np.testing.assert_allclose(
        [hit.score for hit in hits], [hit.score for hit in entries], rtol=1e-5
      )
    assert retriever.search(questions[0], k=4) == retriever.search(
      questions[:1], k=4
    )
    assert retriever.search([]) == []
    with pytest.raises(errors.InputError, match="k=0"):
      retriever.search(questions, k=0)


def test_pyserini_s_format_says_the_same(ready):
  ready.config.retrieve.pyserini = True
  ready.retrieve(methods=["bm25", "dense"])
  for method in ("bm25", "dense"):
    path = ready.workdir.results("dev", method).with_suffix(".pyserini.json")
    found = json.loads(path.read_text(encoding="utf-8"))
    assert list(found) == ["0", "1"]
    for entry, ours in zip(
      found.values(), _results(ready, method), strict=True
    ):
      assert entry["question"] == ours["question"]
      assert entry["answers"] == ours["answers"]
      assert entry["contexts"] == [
        {
          "docid": hit["id"],
          "score": hit["score"],
          "has_answer": hit["has_answer"],
          "text": f"{hit['title']}\n{hit['text']}",
        }
        for hit in ours["ctxs"]
      ]
    assert path.name in _sidecar(ready, method)["files"]
  measures = evaluate_lib.evaluate(ready.config, ready.workdir)
  assert set(measures) == {"bm25", "dense"}  # it is no method of its own


def test_beir_s_questions_keep_their_ids(ready, tmp_path):
  """From queries and judgements to nDCG; answers there are none."""
  path = tmp_path / "queries.jsonl"
  rows = [{"_id": "q-7", "text": "capital of Italy"}]
  rows.append({"_id": "q-8", "text": "yellow bananas"})
  rows.append({"_id": "q-9", "text": "of another split"})
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  qrels = tmp_path / "test.tsv"
  qrels.write_text("query-id\tcorpus-id\tscore\nq-7\tp2\t1\nq-8\tp6\t1\n")
  ready.retrieve(
    questions_file=path, name="beir", methods=["bm25"], qrels=qrels
  )
  run = ready.workdir.results("beir", "bm25").with_suffix(".trec")
  assert {line.split()[0] for line in run.read_text().splitlines()} == {
    "q-7",
    "q-8",
  }
  with pytest.raises(errors.InputError, match="needs --questions"):
    ready.retrieve(qrels=qrels)
  found = evaluate_lib.evaluate(
    ready.config, ready.workdir, name="beir", qrels=qrels
  )
  names = ("nDCG@10", "R@20", "R@100", "RR@10", "AP@100")
  assert found == {
    "bm25": dict.fromkeys(names, 1.0)
    | {
      "judged_questions": 2,
      "judged_not_asked": 0,
      "asked_not_judged": 0,
      "judged_passages_not_in_corpus": 0,
      "own_hits_dropped": 0,
    }
  }


def test_judgements_by_gold_and_the_test_of_two_methods(ready, capsys):
  ready.retrieve(methods=["bm25", "dense"])
  found = evaluate_lib.evaluate(
    ready.config, ready.workdir, qrels="gold", compare=["dense", "bm25"]
  )
  assert found["bm25"]["RR@10"] == 1.0
  printed = capsys.readouterr().out
  assert "nDCG@10" in printed
  assert significance.NOTE in printed
  path = ready.workdir.evaluation("dev").with_name("dev.dense-vs-bm25.json")
  compared = workdir_lib.read_json(path)
  assert compared["questions"] == 2
  assert set(compared["disagreements"]) == {"top1", "top5"}
  for test in compared["tests"].values():
    assert 0 <= test["p"] <= 1
  for pair in (["dense"], ["dense", "dense"], ["dense", "hybrid"]):
    with pytest.raises(errors.InputError, match="--compare="):
      evaluate_lib.evaluate(ready.config, ready.workdir, compare=pair)
  with pytest.raises(errors.InputError, match="gone.tsv"):
    evaluate_lib.evaluate(ready.config, ready.workdir, qrels="gone.tsv")


def test_hits_of_a_compressed_index_are_scored_again(ready):
  """Scores are inner products, as of the Flat index; estimates without."""
  ready.config.index.factory = "SQ4"
  faiss_stage.index(ready.config, ready.workdir)
  ready.retrieve(methods=["dense", "exact"])
  for ours, exact in zip(
    _results(ready, "dense"), _results(ready, "exact"), strict=True
  ):
    assert [hit["id"] for hit in ours["ctxs"]] == [
      hit["id"] for hit in exact["ctxs"]
    ]
    np.testing.assert_allclose(
      [float(hit["score"]) for hit in ours["ctxs"]],
      [float(hit["score"]) for hit in exact["ctxs"]],
      rtol=1e-4,
      atol=1e-4,
    )
  (ready.workdir.embeddings("dense") / "manifest.json").unlink()
  ready.retrieve(methods=["dense"], overwrite=True)
  estimated = [
    float(hit["score"]) for hit in _results(ready, "dense")[0]["ctxs"]
  ]
  exact = [float(hit["score"]) for hit in _results(ready, "exact")[0]["ctxs"]]
  assert not np.allclose(estimated, exact, rtol=1e-4)


def test_more_hits_than_passages_and_one_question(ready):
  found = api.Retriever.load(ready.workdir.root, "dense", factory="Flat")
  (hits,) = found.search("Paris", k=1000)
  assert len(hits) == len(ready.passages)
  ready.config.retrieve.depth = 1000
  ready.retrieve()
  for method in retrievers.METHODS:
    assert _sidecar(ready, method)["depth"] == len(ready.passages)
