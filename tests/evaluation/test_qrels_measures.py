"""Judged measures against their definitions, and files of judgements."""

import math

import pytest

from dpr_jax.core import errors
from dpr_jax.data import beir_files
from dpr_jax.evaluation import qrels_measures, trec_runs
from dpr_jax.evaluation.qrels_measures import Asked

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
    run, {"q1": {"d1": 2, "d2": 1, "d7": 1}, "q2": {"d8": 1}}, Asked(depth=100)
  )
  gain = (2 / math.log2(3) + 1 / math.log2(4)) / (
    2 / math.log2(2) + 1 / math.log2(3) + 1 / math.log2(4)
  )
  assert found["nDCG@10"] == pytest.approx(gain / 2)  # q2 finds nothing
  assert found["R@100"] == pytest.approx((2 / 3) / 2)
  assert found["RR@10"] == pytest.approx((1 / 2) / 2)
  assert found["AP@100"] == pytest.approx(((1 / 2 + 2 / 3) / 3) / 2)


def test_questions_that_were_not_asked_are_counted(run):
  """The mean is over those asked, unless all are wanted."""
  judgements = {"q1": {"d3": 1}, "q5": {"d1": 1}, "q6": {"d1": 1}}
  found = qrels_measures.measures(run, judgements, Asked(depth=20))
  assert found == dict.fromkeys(("nDCG@10", "R@20", "RR@10"), 1.0) | {
    "judged_questions": 1,
    "judged_not_asked": 2,
    "asked_not_judged": 1,  # q2
  }  # no measure is deeper than the run
  found = qrels_measures.measures(run, judgements, Asked(depth=20, every=True))
  assert found["RR@10"] == pytest.approx(1 / 3)
  assert found["judged_questions"] == 3
  assert found["judged_not_asked"] == 2


def test_questions_without_a_hit_were_asked(run):
  """A run does not have them; they count as misses."""
  asked = Asked(questions=["q1", "q2", "q3"])
  found = qrels_measures.measures(
    run, {"q1": {"d3": 1}, "q3": {"d1": 1}}, asked
  )
  assert found["RR@10"] == found["nDCG@10"] == found["R@100"] == 0.5
  assert found["judged_questions"] == 2
  assert (found["judged_not_asked"], found["asked_not_judged"]) == (0, 1)


@pytest.mark.parametrize(("relevant", "value"), [("a", 1.0), ("b", 0.5)])
@pytest.mark.parametrize("lines", [(0, 1), (1, 0)])
def test_equal_scores_are_ordered_by_rank(tmp_path, relevant, value, lines):
  """For every measure, whatever the ids and the order of the lines are."""
  path = tmp_path / "x.trec"
  rows = ["q Q0 a 1 1.0 t\n", "q Q0 b 2 1.0 t\n"]
  path.write_text("".join(rows[line] for line in lines))
  found = qrels_measures.measures(path, {"q": {relevant: 1}}, Asked())
  assert found["RR@10"] == found["AP@100"] == value
  assert found["R@20"] == 1.0
  gain = 1.0 if relevant == "a" else 1 / math.log2(3)
  assert found["nDCG@10"] == pytest.approx(gain)


def test_ids_with_spaces_are_one_id_on_both_sides(tmp_path):
  path = tmp_path / "x.trec"
  path.write_text("my_q Q0 my_file.pdf 1 1.0 t\n")
  qrels = tmp_path / "qrels.tsv"
  qrels.write_text("my q\tmy file.pdf\t1\n")
  judgements = beir_files.read_qrels(qrels)
  assert judgements == {"my q": {"my file.pdf": 1}}
  asked = Asked(questions=["my q"], in_corpus=lambda ids: [True] * len(ids))
  found = qrels_measures.measures(path, judgements, asked)
  assert found["nDCG@10"] == 1.0
  path.write_text("my q\tQ0\tmy file.pdf\t1\t1.0\tt\n")  # with tabs
  assert qrels_measures.measures(path, judgements, asked) == found
  judgements["my q"]["my_file.pdf"] = 0
  with pytest.raises(errors.InputError, match="both my_file.pdf in a TREC run"):
    qrels_measures.measures(path, judgements, asked)


def test_passages_that_the_corpus_does_not_have(run):
  """Nothing can find d7: it is counted, and left out unless all are wanted."""
  judgements = {"q1": {"d3": 1, "d7": 1}, "q2": {"d7": 1}}

  def in_corpus(ids):
    assert ids == ["d3", "d7"]
    return [True, False]

  found = qrels_measures.measures(run, judgements, Asked(in_corpus=in_corpus))
  assert found["judged_passages_not_in_corpus"] == 1
  assert found["judged_questions"] == 2  # q2 has nothing left, and counts as 0
  assert found["nDCG@10"] == found["R@20"] == 0.5
  found = qrels_measures.measures(
    run, judgements, Asked(in_corpus=in_corpus, every=True)
  )
  assert found["R@20"] == (1 / 2 + 0) / 2


def test_a_question_that_is_a_passage(tmp_path):
  path = tmp_path / "x.trec"
  path.write_text(
    "q1 Q0 q1 1 3 t\nq1 Q0 d1 2 2 t\nq2 Q0 d1 1 9 t\nq2 Q0 q2 2 8 t\n"
  )
  judgements = {"q1": {"d1": 2, "q1": -1}, "q2": {"d1": 1}}
  found = qrels_measures.measures(path, judgements, Asked())
  assert found["RR@10"] == 0.75
  assert "own_hits_dropped" not in found
  found = qrels_measures.measures(path, judgements, Asked(drop_self=True))
  assert found["RR@10"] == found["nDCG@10"] == 1.0
  assert found["own_hits_dropped"] == 2


def test_other_questions_are_refused(run, tmp_path):
  with pytest.raises(errors.InputError, match="none of its questions"):
    qrels_measures.measures(run, {"17": {"d1": 1}}, Asked())
  with pytest.raises(errors.InputError, match="cannot read .*gone"):
    qrels_measures.measures(tmp_path / "gone", {"17": {"d1": 1}}, Asked())


@pytest.mark.parametrize(
  ("line", "words"),
  [
    ("q1 Q0 d3 1 9.0", ":2 is not a line of a TREC run"),
    ("q1 Q0 d3 one 9.0 tag", ":2 .* the rank 'one'"),
    ("q1 Q0 d3 1 nan tag", ":2 .* the score 'nan'"),
  ],
)
def test_lines_that_are_no_run(tmp_path, line, words):
  path = tmp_path / "x.trec"
  path.write_text(f"q1 Q0 d3 1 9.0 tag\n{line}\n")
  with pytest.raises(errors.InputError, match=words):
    trec_runs.read(path)


def test_runs_that_contradict_themselves(tmp_path, caplog):
  path = tmp_path / "x.trec"
  path.write_text(
    "q1 Q0 a 1 1.0 t\nq1 Q0 b 2 5.0 t\nq1 Q0 a 3 0.5 t\n\n"
    "q2 Q0 c 0 1.0 t\nq2 Q0 d 0 2.0 t\n"
  )
  assert trec_runs.read(path) == {"q1": ["a", "b"], "q2": ["d", "c"]}
  assert "1 passages are repeated for one question" in caplog.text
  assert "the scores of 1 of 2 questions contradict" in caplog.text


def test_gold_as_judgements():
  gold = [["a b", "c"], [], ["d"]]
  first, last = {"a b": 1, "c": 1}, {"d": 1}
  assert qrels_measures.of_gold(gold) == {"0": first, "2": last}
  assert qrels_measures.of_gold(gold, ["x", "y", "z"]) == {
    "x": first,
    "z": last,
  }


def test_the_note_below_a_table():
  counts = {
    "judged_questions": 9,
    "judged_not_asked": 1,
    "asked_not_judged": 0,
    "own_hits_dropped": 2,
  }
  measured = {
    "bm25": {"nDCG@10": 0.5, **counts},
    "dense": {"nDCG@10": 0.25, **counts},
    "exact": {"top1": 0.5},
  }
  assert qrels_measures.note(measured) == [
    "bm25, dense: 9 questions in the judged measures; 1 judged but not asked;"
    " 2 hits dropped that are the question itself"
  ]


@pytest.mark.parametrize(
  "text",
  [
    "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\nq2\td1\t1\n",
    "q1 0 d1 2\nq1 0 d2 0\nq2 0 d1 1\n",
    "q1 Q0 d1 2\nq1\t0\td2\t0\n\nq2 3 d1 1\n",
    "\ufeffq1\td1\t2.0\nq1\td2\t-0.0\nq2\td1\t1e0\n",  # no header
    "qid\tdocno\trelevance\nq1\td1\t2\r\nq1\td2\t0\r\nq2\td1\t1\r\n",
    "q1 d1 2\nq1 d2 0\nq2 d1 1\nq1 d1 2\n",  # one twice, and the same
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
    ("q1 d1 2\nq1 d1 good\n", ":2: the grade 'good' is not a whole number"),
    ("q1\td1\tgood\nq1\td2\t1\n", ":1: the grade 'good'"),  # no header
    ("q1 d1 0.5\n", ":1: the grade '0.5' is not a whole number"),
    ("q1 d1 inf\n", ":1: the grade 'inf'"),
    ("q1 d1 1_0\n", ":1: the grade '1_0'"),
    ("q1 d1 \u0661\n", ":1: the grade"),
    ("q1 d1 3000000\n", ":1: the grade 3000000 is out of range"),
    ("q1 d1 -3000000\n", "out of range: -1000000 to 1000000"),
    ("q1 d1 1\nq2 d1 1\nq1 0 d1 2\n", ":3: .* the grade 2 here and 1 before"),
    ("q1 my file.pdf 1\n", ":1: .*ids with spaces need tabs"),
    ("q1\t\t1\n", ":1:"),
  ],
)
def test_bad_judgements_are_refused(tmp_path, text, words):
  path = tmp_path / "test.tsv"
  path.write_text(text)
  with pytest.raises(errors.InputError, match=words):
    beir_files.read_qrels(path)
