"""Scores of whole files of answers, by SQuAD's two protocols."""

import json

import pytest

from dpr_jax.core import errors
from dpr_jax.evaluation import answer_scores


def _scores(tmp_path, *rows):
  path = tmp_path / "dev.json"
  path.write_text(json.dumps(rows))
  return answer_scores.file_scores(path)


def _row(prediction, *answers, **fields):
  return {"answers": answers, "prediction": prediction} | fields


def test_by_number_of_passages(tmp_path):
  row = _row("Ulm", "Ulm", question="q")
  row["by_passages"] = {"1": {"prediction": "Bern"}, "10": row.copy()}
  assert _scores(tmp_path, row) == {
    **{"em": 1.0, "f1": 1.0, "em_1": 0.0, "f1_1": 0.0},
    **{"em_10": 1.0, "f1_10": 1.0},
  }


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("[]", "no questions"),
    ("{}", "no questions"),
    ('[{"a": 1}]', "not an answers file"),
    ('[{"answers": ["a"], "prediction": null}]', "not an answers file"),
  ],
)
def test_what_is_no_answers_file(tmp_path, text, words):
  path = tmp_path / "dev.json"
  path.write_text(text)
  with pytest.raises(errors.InputError, match=words):
    answer_scores.file_scores(path)


@pytest.mark.parametrize(
  ("prediction", "answers", "em", "f1"),
  [
    ("", [], 1.0, 1.0),
    ("the", [], 1.0, 1.0),  # normalises to nothing
    ("Ulm", [], 0.0, 0.0),
    ("", ["Ulm"], 0.0, 0.0),
    ("the Ulm", ["Ulm"], 1.0, 1.0),
    ("old Ulm", ["Ulm"], 0.0, 2 / 3),
    ("", ["the"], 1.0, 1.0),  # an answer of nothing is no answer
    ("", ["the", "Ulm"], 0.0, 0.0),
  ],
)
def test_rules_of_v2(prediction, answers, em, f1):
  found = answer_scores.v2_scores(prediction, answers)
  assert found == (em, pytest.approx(f1))


def test_both_kinds_of_a_file_of_v2(tmp_path):
  assert _scores(
    tmp_path,
    _row("", impossible=True),
    _row("Bern", impossible=True),
    _row("Ulm", "Ulm"),
    _row("old Ulm", "Ulm"),
    _row("x"),  # nobody knows
  ) == {
    "questions_not_scored": 1,
    "em": 0.5,
    "f1": pytest.approx((1 + 0 + 1 + 2 / 3) / 4),
    "em_impossible": 0.5,
    "em_answerable": 0.5,
    "questions_impossible": 2,
  }


def test_questions_without_answers_are_counted(tmp_path, caplog):
  found = _scores(tmp_path, _row("Ulm", "Ulm"), _row("x"))
  assert found == {"questions_not_scored": 1, "em": 1.0, "f1": 1.0}
  assert "1 of 2 questions have no accepted answers" in caplog.text


def test_which_rows_are_correct():
  """One row each: right, wrong, not known, rightly and wrongly no answer."""
  rows = [
    _row("the Ulm", "Ulm"),
    _row("Bern", "Ulm"),
    _row("Bern"),
    _row("", impossible=True),
    _row("Bern", impossible=True),
  ]
  expected = [True, False, None, True, False]
  assert answer_scores.exact_matches(rows) == expected
