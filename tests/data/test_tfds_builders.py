"""Tables are written: the same bytes for the same rows, or an error."""

import os
import subprocess
import sys
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpr_jax.core import errors
from dpr_jax.data import tfds_builders
from dpr_jax.data.datasets import PassageTable, QuestionTable
from dpr_jax.data.records import Passage, Question
from tests.data import made

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
ID = st.text(
  st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
  min_size=1,
  max_size=6,
)
# Plain tuples, made into records in the tests: beartype draws random numbers
# in the records' constructors, which Hypothesis forbids in strategies.
PASSAGE = st.tuples(ID, TEXT, TEXT)
PASSAGES = st.lists(PASSAGE, max_size=3)
QUESTION = st.tuples(
  TEXT, st.lists(TEXT, max_size=3), PASSAGES, PASSAGES, PASSAGES
)
WRITES_FILES = settings(max_examples=15, deadline=None)


def test_the_same_rows_are_the_same_bytes(tmp_path):
  """In every process: the columns of a row stand in the order of their names.

  A map of protobuf is else written in an order that differs by process.
  """
  from array_record.python import array_record_module
  from tensorflow_datasets.proto import tf_example_generated_pb2 as protos

  passage = Passage("1", "title", "text")
  question = Question("who", ("a", "b"), (passage,), (passage,), ())
  tfds_builders.write_questions([question] * 3, tmp_path / "questions")
  (path,) = (tmp_path / "questions").glob("*.array_record*")
  reader = array_record_module.ArrayRecordReader(os.fspath(path))
  for raw in reader.read_all():
    columns = protos.Example.FromString(raw).features.feature
    names = [name.encode() for name in sorted(columns)]
    places = [raw.index(b"\n" + bytes([len(name)]) + name) for name in names]
    assert len(places) > 5
    assert places == sorted(places)
  reader.close()


def test_several_shards(tmp_path, monkeypatch):
  monkeypatch.setattr(tfds_builders.DprPassages, "ROWS_PER_SHARD", 100)
  passages = made.corpus(301)
  assert tfds_builders.write_passages(passages, tmp_path) == 301
  table = PassageTable.open(tmp_path)
  assert len(list(tmp_path.glob("*.array_record-*"))) == 4
  assert table.take(range(301)) == passages
  (tmp_path / "dpr_passages-passages.array_record-00002").unlink()
  with pytest.raises(errors.InputError, match="00002 .* 0 records, 100 were"):
    PassageTable.open(tmp_path)


@given(rows=st.lists(PASSAGE, min_size=1, unique_by=lambda row: row[0]))
@WRITES_FILES
def test_passages_round_trip(rows):
  passages = [Passage(*row) for row in rows]
  with tempfile.TemporaryDirectory() as folder:
    tfds_builders.write_passages(passages, folder)
    table = PassageTable.open(folder)
    assert table.take(range(len(table))) == passages
    np.testing.assert_array_equal(
      table.rows_of([p.id for p in passages]), np.arange(len(passages))
    )


@given(rows=st.lists(QUESTION, min_size=1, max_size=4))
@WRITES_FILES
def test_questions_round_trip(rows):
  questions = [
    Question(
      question,
      tuple(answers),
      *(tuple(Passage(*fields) for fields in list_) for list_ in lists),
    )
    for question, answers, *lists in rows
  ]
  with tempfile.TemporaryDirectory() as folder:
    assert tfds_builders.write_questions(questions, folder) == len(questions)
    table = QuestionTable.open(folder)
    assert len(table) == len(questions)
    assert table.take(range(len(table))) == questions
    assert table[len(table) - 1] == questions[-1]


def test_folder_may_be_renamed(tmp_path):
  questions = [Question("q", ("a",))]
  tfds_builders.write_questions(questions, tmp_path / "tmp" / "train")
  os.rename(tmp_path / "tmp", tmp_path / "final")
  assert QuestionTable.open(tmp_path / "final" / "train")[0] == questions[0]
  for file in (tmp_path / "final").rglob("*"):
    if file.is_file():
      assert bytes(tmp_path) not in file.read_bytes()


def test_nothing_is_left_among_the_temporary_files(tmp_path, monkeypatch):
  scratch = tmp_path / "scratch"
  scratch.mkdir()
  monkeypatch.setattr(tempfile, "tempdir", str(scratch))
  tfds_builders.write_passages(made.corpus(3), tmp_path / "passages")
  assert len(PassageTable.open(tmp_path / "passages")) == 3
  assert not list(scratch.iterdir())


def test_anybody_can_read_the_folder_with_tfds(tmp_path):
  import tensorflow_datasets as tfds

  tfds_builders.write_passages([Passage("1", "T", "x")], tmp_path)
  builder = tfds.builder_from_directory(tmp_path)
  (row,) = builder.as_data_source("passages")
  assert row == {"id": b"1", "title": b"T", "text": b"x"}


def test_duplicate_ids_name_both_rows(tmp_path):
  passages = [Passage(i, "", "x") for i in ("5", "b", "c", "b", "5")]
  with pytest.raises(
    errors.InputError, match="passages 2 and 4 .* the id 'b', one of 2"
  ):
    tfds_builders.write_passages(passages, tmp_path)


@pytest.mark.parametrize("bad", ["", "a\0"])
def test_ids_that_cannot_be_stored(tmp_path, bad):
  passages = [Passage("a", "", "x"), Passage(bad, "", "x")]
  with pytest.raises(errors.InputError, match="passage 2: the id '") as caught:
    tfds_builders.write_passages(passages, tmp_path)
  assert repr(bad) in str(caught.value)


def test_nothing_to_write(tmp_path):
  with pytest.raises(errors.InputError, match="no passages"):
    tfds_builders.write_passages([], tmp_path)
  with pytest.raises(errors.InputError, match="no questions"):
    tfds_builders.write_questions([], tmp_path)


def test_an_error_in_the_rows_comes_through_and_leaves_nothing(tmp_path):
  def rows():
    yield Question("q")
    raise errors.InputError("file.json: row 2: is bad")

  with pytest.raises(errors.InputError, match="^file.json: row 2: is bad$"):
    tfds_builders.write_questions(rows(), tmp_path)
  assert list(tmp_path.iterdir()) == []


def test_nothing_is_printed(tmp_path, capfd):
  tfds_builders.write_questions([Question("q")], tmp_path)
  assert capfd.readouterr().out == ""


# Damage.


@pytest.mark.processes
def test_no_tensorflow(tmp_path, repository):
  """In a process of its own: other tests may have imported it."""
  code = """
import sys
from dpr_jax.data import datasets, tfds_builders
from dpr_jax.data.records import Passage, Question
tfds_builders.write_passages([Passage("1", "T", "x")], sys.argv[1] + "/p")
assert datasets.PassageTable.open(sys.argv[1] + "/p")[0].id == "1"
tfds_builders.write_questions([Question("q")], sys.argv[1] + "/q")
assert datasets.QuestionTable.open(sys.argv[1] + "/q")[0].question == "q"
assert "tensorflow" not in sys.modules
assert "torch" not in sys.modules
"""
  subprocess.run(
    [sys.executable, "-c", code, tmp_path], check=True, cwd=repository
  )
