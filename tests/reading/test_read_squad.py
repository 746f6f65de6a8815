"""Questions with their paragraph: without an answer, and without answers."""

import copy
import dataclasses
import json

import pytest

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.evaluation import evaluate as evaluate_lib
from dpr_jax.models import reader_model
from dpr_jax.reading import null_threshold
from dpr_jax.reading import read as read_lib

ULM = {"text": "Ulm", "answer_start": 0}


def _row(identifier, **fields):
  return {"id": identifier, "question": "Which city?"} | fields


def _squad(path, *paragraphs):
  article = {
    "title": "Ulm",
    "paragraphs": [{"context": c, "qas": rows} for c, rows in paragraphs],
  }
  path.write_text(json.dumps({"version": "v2.0", "data": [article]}))
  return path


@pytest.fixture(scope="module")
def config(tiny_config):
  config = copy.deepcopy(tiny_config)
  config.reader.length, config.reader.question_length = 64, 16
  config.reader.overlap = 8
  config.read.tokens_per_core, config.read.length_step = 128, 64
  return config


@pytest.fixture
def place(config, tmp_path, monkeypatch):
  reader = dataclasses.replace(reader_model.start(config), ranks=True)
  monkeypatch.setattr(read_lib, "load_reader", lambda *_: reader)
  return workdir_lib.Workdir(tmp_path / "work")


def _read(config, place, path, **options):
  read_lib.read(config, place, questions_file=path, name="squad", **options)
  return json.loads(place.answers("squad").read_text())


def test_no_answer_is_the_right_one_where_there_is_none(
  config, place, tmp_path
):
  path = _squad(
    tmp_path / "v2.json",
    ("", [_row("1", is_impossible=True, answers=[])]),
    ("   ", [_row("2", is_impossible=True, answers=[])]),
    ("Ulm", [_row("3", is_impossible=False, answers=[ULM])]),
  )
  rows = _read(config, place, path)
  assert [row["prediction"] for row in rows] == ["", "", "Ulm"]
  assert [row.get("impossible") for row in rows] == [True, True, None]
  assert evaluate_lib.evaluate(config, place, name="squad")["squad"] == {
    "em": 1.0,
    "f1": 1.0,
    "em_impossible": 1.0,
    "em_answerable": 1.0,
    "questions_impossible": 2,
  }


def test_a_test_set_is_read_and_not_scored(config, place, tmp_path, caplog):
  path = _squad(tmp_path / "test.json", ("Ulm", [_row("1")]))
  (row,) = _read(config, place, path)
  assert (row["prediction"], row["answers"]) == ("Ulm", [])
  assert evaluate_lib.evaluate(config, place, name="squad")["squad"] == {
    "questions_not_scored": 1
  }
  assert "1 of 1 questions have no accepted answers" in caplog.text


def test_a_threshold_below_which_there_is_no_answer(config, place, tmp_path):
  """Stored by --tune, used by read.null_answers=tuned."""
  path = _squad(
    tmp_path / "v2.json",
    ("Bern", [_row("1", is_impossible=True, answers=[])]),
    ("Bern", [_row("2", is_impossible=True, answers=[])]),
    ("Ulm", [_row("3", answers=[ULM])]),
  )
  tuned = copy.deepcopy(config)
  tuned.read.null_answers = "tuned"
  with pytest.raises(errors.InputError, match="has none: run `dpr-jax read"):
    _read(tuned, place, path)
  plain = _read(config, place, path)
  assert [row["prediction"] for row in plain] == ["Bern", "Bern", "Ulm"]
  found = _read(config, place, path, tune=True)
  # Ulm scores above Bern, or both kinds go without an answer: 2 of 3 or more.
  bern, ulm = plain[0]["score"], plain[2]["score"]
  stored = workdir_lib.read_json(place.root / "fusion" / null_threshold.FILE)
  if ulm > bern:
    assert [row["prediction"] for row in found] == ["", "", "Ulm"]
    assert stored["squad"]["measure"] == 1.0
    assert stored["squad"]["threshold"] == pytest.approx((ulm + bern) / 2)
  else:
    assert [row["prediction"] for row in found] == ["", "", ""]
    assert stored["squad"]["measure"] == pytest.approx(2 / 3)
  assert [row["score"] for row in found] == [row["score"] for row in plain]
  assert _read(tuned, place, path) == found
  manifest = place.answers("squad").parent / "squad.squad.manifest.json"
  record = json.loads(manifest.read_text())
  assert record["counts"]["below_null_threshold"] >= 2
  assert record["config"]["null_threshold"] == stored["squad"]["threshold"]


def test_nothing_to_tune_where_all_have_an_answer(config, place, tmp_path):
  path = _squad(tmp_path / "v1.json", ("Ulm", [_row("1", answers=[ULM])]))
  with pytest.raises(errors.InputError, match="has one passage and an answer"):
    _read(config, place, path, tune=True)


def test_numbers_of_passages_that_are_not_there(config, place, caplog):
  """No figure for 50 passages where there were two."""
  config = copy.deepcopy(config)
  config.read.methods, config.read.passages = ("bm25",), (1, 10, 50)
  path = place.results("dev", "bm25")
  path.parent.mkdir(parents=True)
  hits = [{"id": str(n), "text": "Ulm", "score": "1.0"} for n in range(2)]
  row = {"question": "Which city?", "answers": ["Ulm"], "ctxs": hits}
  path.write_text(json.dumps([row, row | {"ctxs": hits[:1]}]))
  read_lib.read(config, place)
  rows = json.loads(place.answers("dev").read_text())
  assert [list(row["by_passages"]) for row in rows] == [["1", "2"]] * 2
  assert "at most 2 passages per question: no answers from 10, 50" in (
    caplog.text
  )
  found = set(evaluate_lib.evaluate(config, place)["bm25"])
  assert {"em", "em_1", "em_2"} <= found
  assert not found & {"em_10", "em_50"}
