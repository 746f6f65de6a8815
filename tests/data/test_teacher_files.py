"""Files of a teacher's scores: three formats, and what is wrong with a row."""

import gzip
import json
import math

import pytest

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import teacher_files

SCORED = {"question": "q", "passages": ["a", "b"], "scores": [1, -2.5]}
MINED = {
  "question": "q",
  "hard_negatives": ["b", "c"],
  "scores": [3.5, None],
  "positive_score": 4.0,
}
RESULTS = {
  "question": "q",
  "answers": [],
  "ctxs": [{"id": "a", "score": "7.5"}, {"id": 5, "score": 2}, {"id": "c"}],
}


def _write(path, *rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def test_three_formats(tmp_path):
  """Texts are numbers, null is not known, an id may be a number."""
  path = _write(tmp_path / "scores.jsonl", SCORED, MINED, RESULTS)
  one, two, three = teacher_files.read(path)
  assert (one.question, one.ids, one.scores) == ("q", ("a", "b"), (1, -2.5))
  assert math.isnan(one.positive_score)
  assert (two.ids, two.scores[0], two.positive_score) == (("b", "c"), 3.5, 4)
  assert math.isnan(two.scores[1])
  assert (three.ids, three.scores[:2]) == (("a", "5", "c"), (7.5, 2.0))
  assert math.isnan(three.scores[2])


def test_lists_and_gzip(tmp_path):
  """A JSON list, and JSONL that is compressed."""
  path = tmp_path / "results.json"
  path.write_text(json.dumps([RESULTS, RESULTS]))
  assert [row.ids for row in teacher_files.read(path)] == [("a", "5", "c")] * 2
  path = tmp_path / "scores.jsonl.gz"
  path.write_bytes(gzip.compress(json.dumps(SCORED).encode()))
  assert [row.scores for row in teacher_files.read(path)] == [(1, -2.5)]


@pytest.mark.parametrize("name", ["scores.jsonl", "scores.jsonl.gz"])
def test_what_is_written_is_read(tmp_path, name):
  """The same bytes every time, zipped or not."""
  rows = [
    teacher_files.Scored("wo ist Köln", ("a", "b"), (1.5, -2.0)),
    teacher_files.Scored("q", (), ()),
  ]
  paths = [tmp_path / name, tmp_path / f"again-{name}"]
  for path in paths:
    teacher_files.write(path, iter(rows))
  assert paths[0].read_bytes() == paths[1].read_bytes()
  found = list(teacher_files.read(paths[0]))
  assert [(row.question, row.ids, row.scores) for row in found] == [
    ("wo ist Köln", ("a", "b"), (1.5, -2.0)),
    ("q", (), ()),
  ]
  is_gzip = paths[0].read_bytes()[:2] == b"\x1f\x8b"
  assert is_gzip == name.endswith(".gz")


def test_the_tail_of_reordered_results_is_not_scored(tmp_path):
  """Behind `rerank_depth` scores only keep the order."""
  path = tmp_path / "train.dense-reader.json"
  path.write_text(json.dumps([RESULTS]))
  workdir_lib.write_json(
    tmp_path / "train.dense-reader.manifest.json",
    {"stage": "rerank", "config": {"rerank_depth": 1}},
  )
  (row,) = teacher_files.read(path)
  assert (row.ids, row.scores) == (("a",), (7.5,))


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"question": 3}, "has no `question`"),
    ({"passages": "a"}, "must be a list of ids"),
    ({"passages": ["a", 2]}, "must be a list of ids"),
    ({"scores": [1]}, "must be a list of 2 numbers"),
    ({"scores": None}, "must be a list of 2 numbers"),
    ({"scores": [1, "x"]}, "score 'x' must be a finite number"),
    ({"scores": [1, True]}, "score 'True' must be a finite number"),
    ({"scores": [1, "inf"]}, "score 'inf' must be a finite number"),
    ({"positive_score": [1]}, r"score '\[1\]' must be a finite number"),
    ({"ctxs": [3]}, "ctxs must be objects with `id`"),
  ],
)
def test_a_wrong_row_is_named(tmp_path, changed, message):
  """By its number and line."""
  path = _write(tmp_path / "scores.jsonl", SCORED, SCORED | changed)
  with pytest.raises(errors.InputError, match=r"row 2 .*" + message):
    list(teacher_files.read(path))


def test_mined_negatives_without_scores(tmp_path):
  """As older versions wrote them: the line says what to do."""
  row = {"question": "q", "hard_negatives": ["b"]}
  with pytest.raises(errors.InputError, match="run `dpr-jax mine --overwrite`"):
    list(teacher_files.read(_write(tmp_path / "bm25.jsonl", row)))
