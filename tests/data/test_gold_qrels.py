"""Gold passages of dev questions, as judgements that others read."""

import ir_measures
import numpy as np
import pytest

from dpr_jax.data import beir_files, datasets, gold_qrels, tfds_builders
from dpr_jax.data.records import Passage, Question
from dpr_jax.data.same_passages import Copies

CORPUS = [Passage(i, "", t) for i, t in (("a", "x"), ("b c", "y"), ("d", "x"))]
COPIES = Copies(np.array([2]), np.array([0]))  # d is a copy of a


@pytest.fixture
def write(tmp_path):
  """Writes the judgements of questions; returns the path and their number."""
  tfds_builders.write_passages(CORPUS, tmp_path / "passages")
  passages = datasets.PassageTable.open(tmp_path / "passages")

  def write(*questions):
    tfds_builders.write_questions(questions, tmp_path / "dev")
    table = datasets.QuestionTable.open(tmp_path / "dev")
    path = tmp_path / "qrels.tsv"
    return path, gold_qrels.write(path, table, passages, COPIES)

  return write


def test_gold_passages_and_their_copies_are_judged(write):
  path, count = write(
    Question("none"),
    Question("q", (), (Passage("b c", "", "y"), Passage("", "", "z"))),
    Question("q", (), (Passage("a", "", "x"), Passage("e", "", "?"))),
  )
  assert path.read_text() == (
    "1\t0\tb_c\t1\n2\t0\ta\t1\n2\t0\te\t1\n2\t0\td\t1\n"
  )
  assert count == 4
  assert beir_files.read_qrels(path) == {
    "1": {"b_c": 1},
    "2": {"a": 1, "e": 1, "d": 1},
  }
  judged = list(ir_measures.read_trec_qrels(str(path)))
  assert [(j.query_id, j.doc_id, j.relevance) for j in judged] == [
    ("1", "b_c", 1),
    ("2", "a", 1),
    ("2", "e", 1),
    ("2", "d", 1),
  ]


def test_nothing_is_written_without_gold_passages(write):
  path, count = write(Question("q"), Question("q", (), (Passage("", "", "z"),)))
  assert count == 0
  assert not path.exists()
