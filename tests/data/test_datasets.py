"""Tables that were written, read again: rows, ids, damage."""

import concurrent.futures
import io
import pickle

import numpy as np
import pytest

from dpr_jax.core import errors
from dpr_jax.data import tfds_builders
from dpr_jax.data.datasets import PassageTable
from dpr_jax.data.records import Question
from tests.data import made


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  folder = tmp_path_factory.mktemp("passages") / "new"
  passages = made.corpus(500)
  assert tfds_builders.write_passages(iter(passages), folder) == 500
  return passages, PassageTable.open(folder)


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


@pytest.fixture
def small(tmp_path):
  tfds_builders.write_passages(made.corpus(200), tmp_path)
  return tmp_path


def rejected(folder, match):
  with pytest.raises(errors.InputError, match=match) as caught:
    PassageTable.open(folder)
  assert "dpr-jax prepare" in str(caught.value)


def test_records_of_another_table(small, tmp_path_factory):
  """A whole file, with fewer rows than were written."""
  other = tmp_path_factory.mktemp("other")
  tfds_builders.write_passages(made.corpus(100), other)
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
