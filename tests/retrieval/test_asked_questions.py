"""Which questions of a set are asked, and what is counted of the others."""

import json

import pytest

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import records
from dpr_jax.retrieval import question_sets


def _lines(path, *rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def _asked(tmp_path, path, qrels=None):
  found = question_sets.open_set(
    workdir_lib.Workdir(tmp_path / "work"), path, qrels
  )
  return [(a.id, a.question.question, a.question.answers) for a in found], (
    found.left_out
  )


NOTHING = {
  "questions_not_judged": 0,
  "questions_without_text": 0,
  "answers_without_tokens": 0,
}


def test_empty_questions_are_left_out_and_counted(tmp_path, caplog):
  """As `prepare` does, in every format."""
  caplog.set_level("INFO", logger="absl")
  path = _lines(
    tmp_path / "queries.jsonl",
    {"_id": "q1", "text": "where"},
    {"_id": "q2", "text": " "},
    {"_id": "q3", "text": ""},
  )
  assert _asked(tmp_path, path) == (
    [("q1", "where", ())],
    NOTHING | {"questions_without_text": 2},
  )
  assert "2 questions without text, left out" in caplog.text
  path = tmp_path / "a.qa.csv"
  path.write_text("where\t['Ulm', '']\n\" \"\t['x']\n")
  assert _asked(tmp_path, path) == (
    [("", "where", ("Ulm",))],
    NOTHING | {"questions_without_text": 1, "answers_without_tokens": 1},
  )


def test_questions_that_are_not_judged(tmp_path, caplog):
  path = _lines(
    tmp_path / "queries.jsonl",
    {"id": "q1", "text": "where"},
    {"id": "q 2", "text": "who"},
    {"id": "q3", "text": ""},
  )
  qrels = tmp_path / "qrels.tsv"
  qrels.write_text("q 2\td1\t1\n")
  assert _asked(tmp_path, path, qrels) == (
    [("q 2", "who", ())],
    NOTHING | {"questions_not_judged": 2},
  )
  path = tmp_path / "a.qa.csv"
  path.write_text("where\t['Ulm']\n")
  asked, left_out = _asked(tmp_path, path, qrels)
  assert (len(asked), left_out) == (1, NOTHING)
  assert "have no ids, so --qrels selects all of them" in caplog.text


def test_one_id_for_two_questions_is_refused(tmp_path):
  """In a run they would be one question."""
  for other in ("q 1", "q_1"):
    path = _lines(
      tmp_path / "queries.jsonl",
      {"_id": "q 1", "text": "where"},
      {"_id": other, "text": "who"},
    )
    with pytest.raises(errors.InputError, match="two questions have the id"):
      _asked(tmp_path, path)


def test_ids_of_queries_with_answers_and_positives(tmp_path):
  row = {"_id": "q1", "question": "where", "answers": ["Ulm"]}
  row["positive_ctxs"] = [{"passage_id": "7", "text": "Ulm"}]
  path = _lines(tmp_path / "dev.jsonl", row)
  (asked,) = question_sets.open_set(workdir_lib.Workdir(tmp_path), path)
  assert asked.id == "q1"
  assert asked.question == records.Question(
    "where", ("Ulm",), (records.Passage("7", "", "Ulm"),)
  )
