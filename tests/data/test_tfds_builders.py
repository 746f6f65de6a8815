"""Datasets: row i is item i, ids are found, and damage is noticed."""

import concurrent.futures
import io
import os
import pickle
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


def corpus(size):
  """Ids with holes, in an order that is not theirs."""
  return [
    Passage(str((i * 7919) % 10_007 + 1), f"title {i % 5}", f"text {i} ü")
    for i in range(size)
  ]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  folder = tmp_path_factory.mktemp("passages") / "new"
  passages = corpus(500)
  assert tfds_builders.write_passages(iter(passages), folder) == 500
  return passages, PassageTable.open(folder)


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


def test_rows_are_in_the_order_written(written):
  passages, table = written
  assert len(table) == 500
  assert [table[i] for i in (0, 7, 499)] == [passages[i] for i in (0, 7, 499)]
  rows = [499, 3, 3, 0, 250]
  expected = [passages[i] for i in rows]
  assert table.take(rows) == expected
  assert table.take(np.array(rows, np.int32)) == expected
  assert table.take([]) == []


def test_blocks_cover_the_table(written):
  passages, table = written
  blocks = list(table.blocks(150))
  assert [first for first, _ in blocks] == [0, 150, 300, 450]
  assert [p for _, block in blocks for p in block] == passages


def test_ids_and_rows(written):
  passages, table = written
  order = np.random.default_rng(0).permutation(500)
  ids = [passages[i].id for i in order]
  assert table.ids(order) == ids
  rows = table.rows_of(ids)
  assert rows.dtype == np.int64
  np.testing.assert_array_equal(rows, order)
  assert table.ids([]) == []
  assert table.rows_of([]).shape == (0,)


def test_unknown_ids_are_minus_one(written):
  passages, table = written
  known = passages[3].id
  # One that sorts last, one that begins like a known id, and "".
  unknown = ["zz", known + "0000000", known + "\0", "", "999999999"]
  np.testing.assert_array_equal(
    table.rows_of([*unknown, known]), [-1] * len(unknown) + [3]
  )


@pytest.mark.parametrize("row", [-1, 500])
def test_rows_outside_raise(written, row):
  _, table = written
  for read in (lambda: table[row], lambda: table.ids([0, row])):
    with pytest.raises(IndexError, match=f"row {row} of .* 0 to 499"):
      read()
  with pytest.raises(IndexError, match="integers"):
    table.take(np.array([0.5]))


def test_threads_and_pickle(written):
  passages, table = written
  copy = pickle.loads(pickle.dumps(table))
  rows = np.random.default_rng(1).integers(0, 500, size=(40, 16))
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    for found, wanted in zip(pool.map(copy.take, rows), rows, strict=True):
      assert found == [passages[i] for i in wanted]


def test_several_shards(tmp_path, monkeypatch):
  monkeypatch.setattr(tfds_builders.DprPassages, "ROWS_PER_SHARD", 100)
  passages = corpus(301)
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
  tfds_builders.write_passages(corpus(3), tmp_path / "passages")
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


@pytest.fixture
def small(tmp_path):
  tfds_builders.write_passages(corpus(200), tmp_path)
  return tmp_path


def rejected(folder, match):
  with pytest.raises(errors.InputError, match=match) as caught:
    PassageTable.open(folder)
  assert "dpr-jax prepare" in str(caught.value)


def test_records_of_another_table(small, tmp_path_factory):
  """A whole file, with fewer rows than were written."""
  other = tmp_path_factory.mktemp("other")
  tfds_builders.write_passages(corpus(100), other)
  (name,) = (path.name for path in small.glob("*.array_record*"))
  (small / name).write_bytes((other / name).read_bytes())
  rejected(small, "it holds 100 records, 200 were written")


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.9])
def test_truncated_array_record(small, keep):
  (shard,) = small.glob("*.array_record-*")
  data = shard.read_bytes()
  shard.write_bytes(data[: int(len(data) * keep)])
  rejected(small, "array_record-00000 is damaged")


def test_a_flipped_bit_in_a_record(small):
  (shard,) = small.glob("*.array_record-*")
  data = bytearray(shard.read_bytes())
  data[data.index(b"text 50 ")] ^= 1
  shard.write_bytes(data)
  table = PassageTable.open(small)
  assert table[49].text == "text 49 ü"
  with pytest.raises(
    errors.InputError, match="array_record-[0-9]{5} is damaged: .*hash mismatch"
  ):
    table.take(range(200))


@pytest.mark.parametrize("name", ["ids.npy", "id_order.npy"])
def test_damaged_id_files(small, name):
  path = small / name
  data = path.read_bytes()
  path.write_bytes(data[:-4])
  rejected(small, f"{name} is damaged")
  path.write_bytes(b"")
  rejected(small, f"{name} is damaged")
  np.save(path, np.load(io.BytesIO(data))[:-1])
  rejected(small, rf"{name} is damaged: shape \(199,\) for 200 passages")
  path.unlink()
  rejected(small, f"{name} is damaged")


def test_damaged_descriptions(small):
  info = small / "dataset_info.json"
  text = info.read_text()
  info.write_text(text[:-20])
  rejected(small, "dataset_info.json is damaged")
  info.write_text(text)
  (small / "features.json").unlink()
  rejected(small, "features.json is damaged")
  info.unlink()
  rejected(small, "dataset_info.json is missing")


def test_questions_are_not_passages(tmp_path):
  tfds_builders.write_questions([Question("q")], tmp_path)
  with pytest.raises(errors.InputError, match="'dpr_questions', not"):
    PassageTable.open(tmp_path)


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
