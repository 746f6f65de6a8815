"""Judged measures against their definitions, and files of judgements."""

import math

import pytest

from dpr_jax.core import errors
from dpr_jax.data import beir_files
from dpr_jax.evaluation import qrels_measures

RUN = """\
q1 Q0 d3 1 9.0 tag
q1 Q0 d1 2 8.0 tag
q1 Q0 d2 3 7.0 tag
q2 Q0 d9 1 5.0 tag
"""


@pytest.fixture
def run(tmp_path):
  path = tmp_path / "dev.dense.trec"
  path.write_text(RUN)
  return path


def test_measures_by_hand(run):
  found = qrels_measures.measures(
    run, {"q1": {"d1": 2, "d2": 1, "d7": 1}, "q2": {"d8": 1}}, 100
  )
  gain = (2 / math.log2(3) + 1 / math.log2(4)) / (
    2 / math.log2(2) + 1 / math.log2(3) + 1 / math.log2(4)
  )
  assert found["nDCG@10"] == pytest.approx(gain / 2)  # q2 finds nothing
  assert found["R@100"] == pytest.approx((2 / 3) / 2)
  assert found["RR@10"] == pytest.approx((1 / 2) / 2)
  assert found["AP@100"] == pytest.approx(((1 / 2 + 2 / 3) / 3) / 2)


def test_questions_that_were_not_asked_count_as_misses(run):
  found = qrels_measures.measures(run, {"q1": {"d3": 1}, "q5": {"d1": 1}}, 20)
  assert set(found) == {"nDCG@10", "R@20", "RR@10"}  # no deeper than the run
  assert found["RR@10"] == 0.5


def test_other_questions_are_refused(run, tmp_path):
  with pytest.raises(errors.InputError, match="none of its questions"):
    qrels_measures.measures(run, {"17": {"d1": 1}}, 10)
  with pytest.raises(errors.InputError, match="is not a TREC run"):
    qrels_measures.measures(tmp_path / "gone", {"17": {"d1": 1}}, 10)


def test_gold_as_judgements():
  assert qrels_measures.of_gold([["a b", "c"], [], ["d"]]) == {
    "0": {"a_b": 1, "c": 1},
    "2": {"d": 1},
  }


@pytest.mark.parametrize(
  "text",
  [
    "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\nq2\td1\t1\n",
    "q1 0 d1 2\nq1 0 d2 0\nq2 0 d1 1\n",
  ],
)
def test_files_of_judgements(tmp_path, text):
  path = tmp_path / "test.tsv"
  path.write_text(text)
  assert beir_files.read_qrels(path) == {
    "q1": {"d1": 2, "d2": 0},
    "q2": {"d1": 1},
  }


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("", "no judgements"),
    ("query-id\tcorpus-id\tscore\n", "no judgements"),
    ("q1 d1 2\nq1 d1\n", ":2:"),
    ("q1 d1 2\nq1 d1 good\n", ":2:"),
  ],
)
def test_bad_judgements_are_refused(tmp_path, text, words):
  path = tmp_path / "test.tsv"
  path.write_text(text)
  with pytest.raises(errors.InputError, match=words):
    beir_files.read_qrels(path)
