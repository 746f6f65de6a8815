"""Objects of JSON: one field under several names, and what nobody reads."""

import json

import pytest

from dpr_jax.core import errors
from dpr_jax.data import dpr_files, json_records
from dpr_jax.data.records import Passage, Question


@pytest.mark.parametrize(
  ("ids", "expected"),
  [
    ({"passage_id": "", "psg_id": "7"}, "7"),
    ({"passage_id": None, "psg_id": 7}, "7"),
    ({"passage_id": "wiki:", "id": "wiki:7"}, "7"),
    ({"docid": "7"}, "7"),
    ({"docid": "7", "id": "row 3"}, "7"),
    ({"_id": "7", "id": "8"}, "7"),
    ({"passage_id": " "}, ""),
    ({"key": "7"}, ""),
    ({}, ""),
  ],
)
def test_the_first_id_with_a_value_counts(ids, expected):
  row = {"question": "q", "positive_ctxs": [{"text": "t", **ids}]}
  assert json_records.question(row, "x").positives[0].id == expected


@pytest.mark.parametrize(
  ("fields", "answers"),
  [
    ({"answer": ["Ulm", "Ulm, Germany"]}, ("Ulm", "Ulm, Germany")),  # NQ-open
    ({"answer": "Ulm"}, ("Ulm",)),
    ({"answers": [], "answer": ["Ulm"]}, ("Ulm",)),
    ({"answers": ["Ulm"], "answer": "Bern"}, ("Ulm",)),
    ({"answers": None}, ()),
    ({}, ()),
  ],
)
def test_names_of_answers(fields, answers):
  assert json_records.question({"question": "q"} | fields, "x").answers == (
    answers
  )


@pytest.mark.parametrize(
  ("row", "words"),
  [
    ({"question": "q", "answer": {"value": "Ulm"}}, "answer: .* is an object"),
    ({"question": "q", "answers": "Ulm"}, "answers: 'Ulm' is not a list"),
    ({"query": "q"}, "no field question, only .*: rename query to question"),
    (
      {"version": 1, "rows": [{"question": "q"}]},
      r"only \['rows', 'version'\]: a list .*field 'rows', `jq .rows FILE`",
    ),
    (
      {"q1": {"question": "q"}},
      r"\['q1'\]: .* its values, `jq -c '.\[\]'",
    ),
  ],
)
def test_what_is_wanted_is_said(row, words):
  with pytest.raises(errors.InputError, match=f"^x.*{words}"):
    json_records.question(row, "x")


def test_passages_of_other_tools():
  ours = Passage("d1", "Ulm", "A city.")
  for row in (
    {"_id": "d1", "title": "Ulm", "text": "A city."},
    {"id": "d1", "title": "Ulm", "contents": "A city."},
    {"docid": "d1", "title": "Ulm", "text": "", "contents": "A city."},
    {"_id": "d1", "id": 5, "title": "Ulm", "text": "A city."},
    {"_id": "", "id": "wiki:d1", "title": "Ulm", "text": "A city."},
  ):
    assert json_records.passage(row, "x") == ours
  nothing = {"_id": "d1", "title": None, "text": ""}
  assert json_records.passage(nothing, "x") == Passage("d1", "", "")
  with pytest.raises(errors.InputError, match="text; a list .* field 'docs'"):
    json_records.passage({"docs": [{"_id": "d1"}]}, "x")


def test_queries_with_answers_keep_them():
  row = {"_id": "q1", "question": "Where?", "answers": ["Ulm"]}
  assert json_records.query(row, "x") == ("q1", Question("Where?", ("Ulm",)))
  row = {"query_id": "q1", "text": "Where?", "answer": "Ulm"}
  assert json_records.query(row, "x") == ("q1", Question("Where?", ("Ulm",)))


def test_unread_fields_are_counted(tmp_path):
  row = {
    "question": "q",
    "targets": ["a"],
    "positive_ctxs": [{"text": "t", "key": 1, "score": 2.0}, {"text": "u"}],
  }
  path = tmp_path / "a.json"
  path.write_text(json.dumps([row, row]))
  unread = json_records.Unread()
  assert len(list(dpr_files.read_questions(path, unread))) == 2
  assert unread == {"targets": 2, "ctx key": 2}
