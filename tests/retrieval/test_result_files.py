"""Two questions and their hits in all three formats, to the letter."""

import json

import pytest

from dpr_jax.data import answer_matching, records
from dpr_jax.retrieval import result_files

HITS = [
  result_files.Hit("p 7", "Ulm", "A city in Ulm", 2.5),
  result_files.Hit("p9", "", "elsewhere", 0.1),
]


def _write(folder):
  paths = [folder / name for name in ("dev.json", "dev.trec", "dev.pyserini")]
  matcher = answer_matching.AnswerMatcher()
  with result_files.ResultsWriter(
    paths[0], paths[1], "bm25", matcher, paths[2]
  ) as writer:
    writer.write(records.Question("Where?", ("Ulm",)), [4, 8], HITS)
    writer.write(records.Question("Who?"), [], [], "q 2")
    writer.write(records.Question("What?", ("x",)), [8], HITS[1:], "q3")
  return writer, paths


def test_all_formats_say_the_same(tmp_path):
  writer, (results, run, pyserini) = _write(tmp_path)
  found = json.loads(results.read_text())
  assert [row["question"] for row in found] == ["Where?", "Who?", "What?"]
  assert found[0]["answers"] == ["Ulm"]
  assert found[0]["ctxs"] == [
    {
      "id": "p 7",
      "title": "Ulm",
      "text": "A city in Ulm",
      "score": "2.5",
      "has_answer": True,
    },
    {
      "id": "p9",
      "title": "",
      "text": "elsewhere",
      "score": "0.1",  # the shortest that gives the same float32
      "has_answer": False,
    },
  ]
  assert run.read_text().splitlines() == [
    "0 Q0 p_7 1 2.5 bm25",
    "0 Q0 p9 2 0.1 bm25",
    "q3 Q0 p9 1 0.1 bm25",
  ]
  found = json.loads(pyserini.read_text())
  assert list(found) == ["0", "q_2", "q3"]
  assert found["0"]["contexts"][0] == {
    "docid": "p 7",
    "score": "2.5",
    "has_answer": True,
    "text": "Ulm\nA city in Ulm",
  }
  assert found["q_2"] == {"question": "Who?", "answers": [], "contexts": []}


def test_what_is_counted(tmp_path):
  writer, _ = _write(tmp_path)
  assert writer.counts == {
    "questions": 3,
    "hits": 3,
    "no_hits": 1,
    "no_answers": 1,
    "ids_alike_in_run": 0,
    "ids_with_space": 1,
  }


def test_after_an_error_nothing_is_whole(tmp_path):
  paths = [tmp_path / name for name in ("a.json", "a.trec")]
  matcher = answer_matching.AnswerMatcher()

  def write():
    with result_files.ResultsWriter(*paths, "x", matcher) as writer:
      writer.write(records.Question("Where?"), [4, 8], HITS)
      raise RuntimeError

  with pytest.raises(RuntimeError):
    write()
  with pytest.raises(ValueError, match="delimiter"):
    json.loads(paths[0].read_text())
