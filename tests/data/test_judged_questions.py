"""Questions whose passages are judgements: BEIR, MS MARCO, ir_datasets."""

import gzip
import json
import sys
import types

import pytest

from dpr_jax.core import errors
from dpr_jax.data import (
  dpr_files,
  judged_questions,
  passage_sources,
  question_sources,
)
from dpr_jax.data.records import Passage, Question


def read(path, split="train"):
  notes = question_sources.Notes()
  source = question_sources.open_source(path, split)
  return source, list(source.read(notes)), dict(notes.dropped)


def ids(*names):
  return tuple(Passage(name, "", "") for name in names)


@pytest.fixture
def beir(tmp_path):
  """A folder of BEIR, without judgements for dev."""
  queries = [{"_id": f"q{i}", "text": f"Question’s {i}?"} for i in (1, 2, 3)]
  (tmp_path / "queries.jsonl").write_text(
    "".join(json.dumps(row) + "\n" for row in queries)
  )
  (tmp_path / "corpus.jsonl").write_text(
    '{"_id": "d1", "title": "Ulm", "text": "x"}\n{"_id": "d2", "text": "y"}\n'
  )
  (tmp_path / "qrels").mkdir()
  header = "query-id\tcorpus-id\tscore\n"
  (tmp_path / "qrels" / "train.tsv").write_text(
    header + "q3\td1\t1\nq3\td2\t2\nq1\td2\t1\nq1\td1\t0\nq9\td1\t1\n"
  )
  (tmp_path / "qrels" / "test.tsv").write_text(header + "q2\td1\t1\n")
  return tmp_path


def test_a_folder_of_beir(beir):
  source, questions, dropped = read(beir)
  assert source.format == "BEIR folder, qrels/train.tsv"
  assert source.by_id
  assert questions == [
    Question("Question's 1?", (), ids("d2"), ids("d1")),
    Question("Question's 3?", (), ids("d2", "d1")),  # the best first
  ]
  assert dropped == {"without_judgement": 1, "judged_without_query": 1}
  assert source.files == (
    beir / "queries.jsonl",
    beir / "qrels" / "train.tsv",
  )


def test_what_retrieval_leaves_out_is_logged(beir, monkeypatch):
  lines = []
  monkeypatch.setattr(
    dpr_files.logging, "info", lambda text, *args: lines.append(text % args)
  )
  assert len(list(dpr_files.read_questions(beir))) == 1
  assert lines == [f"{beir}: 2 without judgement"]


def test_dev_is_test_where_beir_has_no_dev(beir):
  source, questions, _ = read(beir, "dev")
  assert source.format == "BEIR folder, qrels/test.tsv"
  assert questions == [Question("Question's 2?", (), ids("d1"))]
  (beir / "qrels" / "train.tsv").unlink()
  with pytest.raises(
    errors.InputError,
    match=r"data.train: one of qrels/train.tsv is read; there are test.tsv",
  ):
    read(beir)


def test_the_corpus_of_a_folder_of_beir(beir):
  source = passage_sources.open_source(beir)
  assert source.format == "BEIR JSONL"
  assert list(dpr_files.read_passages(beir)) == [
    Passage("d1", "Ulm", "x"),
    Passage("d2", "", "y"),
  ]


def test_judgements_of_other_queries_are_refused(beir):
  (beir / "qrels" / "train.tsv").write_text("q8\td1\t1\nq9\td1\t1\n")
  with pytest.raises(errors.InputError, match="none of its 2 questions .q8, q"):
    read(beir)


@pytest.fixture
def ms_marco(tmp_path):
  """A folder of MS MARCO."""
  (tmp_path / "collection.tsv").write_text('0\tUlm: "Danube\n1\tBern: Aare\n')
  (tmp_path / "queries.train.tsv").write_text("11\twhere's ulm\n12\tbern\n")
  (tmp_path / "queries.dev.small.tsv").write_text("13\tdanube\n")
  (tmp_path / "queries.dev.tsv").write_text("13\tdanube\n14\tx\n")
  (tmp_path / "qrels.train.tsv").write_text("11\t0\t0\t1\n12\t0\t1\t1\n")
  (tmp_path / "qrels.dev.small.tsv").write_text("13\t0\t0\t1\n")
  (tmp_path / "qrels.dev.tsv").write_text("13\t0\t0\t1\n14\t0\t1\t1\n")
  return tmp_path


def test_a_folder_of_ms_marco(ms_marco):
  source, questions, dropped = read(ms_marco)
  assert source.format == "MS MARCO folder, qrels.train.tsv"
  assert questions == [
    Question("where's ulm", (), ids("0")),
    Question("bern", (), ids("1")),
  ]
  assert dropped == {"judged_without_query": 0}
  source, questions, _ = read(ms_marco, "dev")
  assert source.format == "MS MARCO folder, qrels.dev.small.tsv"
  assert questions == [Question("danube", (), ids("0"))]


@pytest.mark.parametrize("whole", [True, False])
def test_the_collection_of_ms_marco(ms_marco, whole):
  path = ms_marco if whole else ms_marco / "collection.tsv"
  source = passage_sources.open_source(path)
  assert source.format == "MS MARCO collection"
  assert source.table is None  # its quotation marks are text
  assert list(dpr_files.read_passages(path)) == [
    Passage("0", "", 'Ulm: "Danube'),
    Passage("1", "", "Bern: Aare"),
  ]


def test_triples_of_ids_are_grouped_by_question(ms_marco, monkeypatch):
  monkeypatch.setattr(judged_questions, "MOST_NEGATIVES", 2)
  path = ms_marco / "qidpidtriples.train.full.2.tsv.gz"
  lines = "12 5 6, 11 0 1, 12 5 7, 11 2 1, 12 5 8, 99 0 1"
  text = lines.replace(" ", "\t").replace(",\t", "\n") + "\n"
  path.write_bytes(gzip.compress(text.encode()))
  source, questions, dropped = read(path)
  assert source.format == "MS MARCO triples of ids"
  assert questions == [
    Question("where's ulm", (), ids("0", "2"), ids("1")),
    Question("bern", (), ids("5"), ids("6", "7")),
  ]
  assert dropped == {"negatives_beyond_most": 1, "triples_without_query": 1}
  (ms_marco / "queries.train.tsv").unlink()
  with pytest.raises(errors.InputError, match="need queries.train.tsv beside"):
    read(path)


def test_a_header_counts_more_than_the_name_of_the_file(tmp_path):
  path = tmp_path / "triples.tsv"
  path.write_text("anchor\tpositive\tnegative\na\tb\tc\n", encoding="utf-8")
  source, rows, _ = read(path)
  assert [row.question for row in rows] == ["a"]
  assert not source.format.startswith("MS MARCO")


def test_triples_of_texts_are_a_question_a_line(tmp_path):
  path = tmp_path / "triples.train.small.tsv"
  path.write_text("where’s ulm\tat the Danube\tno\nwhere's ulm\tx\ty\n")
  source, questions, _ = read(path)
  assert source.format == "MS MARCO triples of texts"
  assert not source.by_id
  (first, second) = questions
  assert first.question == second.question == "where's ulm"
  assert first.positives == (Passage("", "", "at the Danube"),)
  assert second.hard_negatives == (Passage("", "", "y"),)


@pytest.mark.parametrize(
  ("name", "text", "words"),
  [
    ("triples.train.small.tsv", "a\tb\tc\na\tb\n", ":2: 2 tab-separated field"),
    ("qidpidtriples.tsv", "1\t2\n", ":1: 2 tab-separated fields instead of 3"),
    ("collection.tsv", "1\tx\n2\tx\ty\n", ":2: '2.tx.ty': must be an id, a ta"),
    ("collection.tsv", "1\tx\n\tx\n", ":2: .*must be an id, a tab and a pass"),
  ],
)
def test_bad_lines_are_refused(ms_marco, name, text, words):
  (ms_marco / name).write_text(text)
  reader = read if "triples" in name else dpr_files.read_passages
  with pytest.raises(errors.InputError, match=f"{name}{words}"):
    list(reader(ms_marco / name))


@pytest.fixture
def library(monkeypatch):
  """A stand-in for `ir_datasets`, with one dataset."""
  row = types.SimpleNamespace
  dataset = row(
    has_docs=lambda: True,
    has_queries=lambda: True,
    has_qrels=lambda: True,
    docs_iter=lambda: iter(
      [
        row(doc_id="d1", title="Ulm", text="At the Danube."),
        row(doc_id="d2", default_text=lambda: "Bern."),
      ]
    ),
    queries_iter=lambda: iter(
      [row(query_id="1", text="ulm’s"), row(query_id="2", text="x")]
    ),
    qrels_iter=lambda: iter(
      [
        row(query_id="1", doc_id="d2", relevance=0),
        row(query_id="1", doc_id="d1", relevance=1),
      ]
    ),
  )
  module = types.ModuleType("ir_datasets")
  module.load = {"ours/train": dataset}.__getitem__
  monkeypatch.setitem(sys.modules, "ir_datasets", module)
  return dataset


@pytest.mark.usefixtures("library")
def test_ir_datasets():
  source, questions, dropped = read("ir_datasets:ours/train")
  assert (source.format, source.files) == ("ir_datasets", ())
  assert questions == [Question("ulm's", (), ids("d1"), ids("d2"))]
  assert dropped == {"without_judgement": 1}
  assert list(dpr_files.read_passages("ir_datasets:ours/train")) == [
    Passage("d1", "Ulm", "At the Danube."),
    Passage("d2", "", "Bern."),
  ]


def test_what_ir_datasets_lacks_is_said(library, monkeypatch):
  def fails():
    raise OSError("no route to host")

  with pytest.raises(errors.InputError, match="has no dataset 'other'"):
    read("ir_datasets:other")
  library.queries_iter = fails
  with pytest.raises(errors.InputError, match="OSError: no route to host"):
    read("ir_datasets:ours/train")
  library.has_qrels = lambda: False
  with pytest.raises(errors.InputError, match="the dataset has no qrels: name"):
    read("ir_datasets:ours/train")
  monkeypatch.setitem(sys.modules, "ir_datasets", None)
  with pytest.raises(errors.InputError, match=r"'dpr-jax\[ir-datasets\]'"):
    read("ir_datasets:ours/train")
