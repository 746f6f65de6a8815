"""Questions of a workdir and of files, each with its own id."""

import json
import pathlib

from dpr_jax.core import workdir as workdir_lib
from dpr_jax.retrieval import question_sets

NOWHERE = workdir_lib.Workdir(pathlib.Path("/nowhere"))  # not looked into


def _lines(path, *rows):
  path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
  return path


def test_beirs_questions_are_those_that_are_judged(tmp_path):
  """A file of BEIR holds the questions of all splits."""
  path = _lines(
    tmp_path / "queries.jsonl",
    *({"_id": f"q{n}", "text": f"question {n}"} for n in range(3)),
  )
  qrels = tmp_path / "test.tsv"
  qrels.write_text("query-id\tcorpus-id\tscore\nq2\td1\t1\nq0\td1\t0\n")
  every = question_sets.open_set(NOWHERE, path)
  assert [one.id for one in every] == ["q0", "q1", "q2"]
  assert every.count is None
  judged = question_sets.open_set(NOWHERE, path, qrels)
  assert [one.id for one in judged] == ["q0", "q2"]
  assert [one.question.question for one in judged] == [
    "question 0",
    "question 2",
  ]


def test_dprs_questions_lose_what_retrieval_does_not_need(tmp_path):
  gold = {"passage_id": "7", "title": "Ulm", "text": "a city"}
  row = {
    "question": "Where?",
    "answers": ["Ulm"],
    "positive_ctxs": [gold],
    "hard_negative_ctxs": [gold | {"passage_id": "8"}],
    "negative_ctxs": [],
  }
  (one,) = question_sets.open_set(NOWHERE, _lines(tmp_path / "dev.jsonl", row))
  assert one.id == ""
  assert one.question.answers == ("Ulm",)
  assert [passage.id for passage in one.question.positives] == ["7"]
  assert one.question.hard_negatives == ()


def test_a_workdirs_questions_are_counted_before_they_are_read(mined_workdir):
  dev = question_sets.open_set(mined_workdir, None)
  assert len(list(dev)) == dev.count == 24
  train = question_sets.open_set(mined_workdir, None, split="train")
  assert len(list(train)) == train.count == 64
  assert "config.data.train" in train.where
