"""BEIR's files: read as they are, refused where they are not."""

import gzip
import json

import pytest

from dpr_jax.core import errors
from dpr_jax.data import beir_files, dpr_files, records


def _write(path, *rows):
  text = "".join(json.dumps(row) + "\n" for row in rows)
  if path.name.endswith(".gz"):
    path.write_bytes(gzip.compress(text.encode()))
  else:
    path.write_text(text)
  return path


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_corpus_and_queries(tmp_path, suffix):
  corpus = _write(
    tmp_path / f"corpus.jsonl{suffix}",
    {"_id": "d1", "title": "Ulm", "text": "A city.", "metadata": {}},
    {"_id": "d2", "text": "No title."},
  )
  expected = [
    records.Passage("d1", "Ulm", "A city."),
    records.Passage("d2", "", "No title."),
  ]
  assert beir_files.is_beir(corpus)
  assert list(dpr_files.read_passages(corpus)) == expected
  queries = _write(
    tmp_path / f"queries.jsonl{suffix}",
    {"_id": "q1", "text": "What\u2019s up?"},
  )
  question = records.Question("What's up?")
  assert list(beir_files.read_queries(queries)) == [("q1", question)]
  assert list(dpr_files.read_questions(queries)) == [question]


def test_dpr_s_lines_are_not_beir_s(tmp_path):
  path = _write(tmp_path / "dev.jsonl", {"question": "Why?", "answers": ["a"]})
  assert not beir_files.is_beir(path)
  assert not beir_files.is_beir(tmp_path / "dev.json")
  (question,) = dpr_files.read_questions(path)
  assert question.answers == ("a",)


@pytest.mark.parametrize(
  ("row", "words"),
  [
    (
      {"_id": 3, "text": "x"},
      'the field _id is 3, not a string: .*, in quotation marks: "_id": "3"',
    ),
    (
      {"_id": "", "text": "x"},
      "no id: _id is ''; .* in one of _id, passage_id",
    ),
    ({"_id": "d2"}, "no field text or contents, only \\['_id'\\]"),
    ({"text": "x"}, "no id: only \\['text'\\]"),
    ({"id": " ", "docid": 1.5, "text": "x"}, "the field docid is 1.5, not a"),
    ({"_id": "d2", "text": "\ud800"}, "surrogate"),
    ([1], "is not a JSON object"),
  ],
)
def test_bad_rows_are_refused(tmp_path, row, words):
  path = _write(tmp_path / "corpus.jsonl", {"_id": "d1", "text": "x"}, row)
  with pytest.raises(
    errors.InputError, match=rf"jsonl: row 2 \(line 2\).*{words}"
  ):
    list(dpr_files.read_passages(path))


@pytest.mark.parametrize(
  "text",
  [
    "query-id\tcorpus-id\tscore\nq1\td7\t2\nq1\td8\t0\nq2\td7\t1\n",
    "q1 0 d7 2\nq1 0 d8 0\nq2 0 d7 1\n",  # TREC
  ],
)
def test_judgements_are_by_question_then_passage(tmp_path, text):
  (tmp_path / "test.tsv").write_text(text)
  assert beir_files.read_qrels(tmp_path / "test.tsv") == {
    "q1": {"d7": 2, "d8": 0},
    "q2": {"d7": 1},
  }
