"""Vectors with their passages in Parquet, read back by pyarrow itself."""

import json

import numpy as np
import pytest

from dpr_jax.core import errors
from dpr_jax.data import records
from dpr_jax.embedding import (
  vector_export,
  vector_formats,
  vector_parquet,
  vector_shards,
)

pyarrow = pytest.importorskip("pyarrow", reason="the extra parquet")
parquet = pytest.importorskip("pyarrow.parquet", reason="the extra parquet")

COUNT = 7
PASSAGES = [
  records.Passage(f"p{row}", f"Title {row}", f"Text é {row}")
  for row in range(COUNT)
]
VECTORS = np.arange(2 * COUNT, dtype=np.float32).reshape(COUNT, 2) / 3


class _Table(list):
  def take(self, rows):
    return [self[row] for row in rows]


@pytest.fixture
def source(tmp_path):
  """Vectors in shards of four and of three rows."""
  folder = tmp_path / "vectors"
  folder.mkdir()
  shards = []
  for number, rows in enumerate((range(4), range(4, 7))):
    file, ids = vector_shards.names(number)
    np.save(folder / file, VECTORS[rows])
    np.save(folder / ids, np.array([PASSAGES[r].id.encode() for r in rows]))
    shards.append(
      {"file": file, "ids": ids, "first_row": rows.start, "rows": len(rows)}
    )
  manifest = {
    "count": COUNT,
    "dim": 2,
    "dtype": "float32",
    "shards": shards,
    "model": "model-1",
    "model_settings": {"pooling": "cls"},
    "inputs": {"passages": "corpus-1"},
  }
  return vector_shards.Vectors(folder, manifest)


def test_columns_groups_and_metadata(source, tmp_path, monkeypatch):
  """A file per shard; row groups of three rows here."""
  monkeypatch.setattr(vector_parquet, "_GROUP", 3)
  out = tmp_path / "out"
  files = vector_export.export(source, "parquet", out, _Table(PASSAGES))
  assert [f.name for f in files] == [
    *("passages-00000.parquet", "passages-00001.parquet")
  ]
  first = parquet.ParquetFile(files[0])
  assert first.num_row_groups == 2
  assert first.metadata.row_group(0).num_rows == 3
  schema = first.schema_arrow
  assert schema.names == ["id", "title", "text", "vector"]
  assert schema.field("vector").type == pyarrow.list_(pyarrow.float32(), 2)
  assert json.loads(
    parquet.ParquetFile(files[1]).schema_arrow.metadata[b"dpr_jax"]
  ) == {
    "model": "model-1",
    "model_settings": {"pooling": "cls"},
    "passages": "corpus-1",
    "count": 7,
    "first_row": 4,
  }
  table = pyarrow.concat_tables(map(parquet.read_table, files))
  assert table.num_rows == COUNT
  assert table.to_pylist() == [
    {"id": p.id, "title": p.title, "text": p.text, "vector": vector.tolist()}
    for p, vector in zip(PASSAGES, VECTORS, strict=True)
  ]


def test_there_and_back_group_by_group(source, tmp_path, monkeypatch):
  monkeypatch.setattr(vector_parquet, "_GROUP", 3)
  out = tmp_path / "out"
  files = vector_export.export(source, "parquet", out, _Table(PASSAGES))
  parts = list(vector_formats.read_parts(files[0]))
  assert [ids for ids, _ in parts] == [["p0", "p1", "p2"], ["p3"]]
  assert vector_formats.import_(out, tmp_path / "in") == COUNT
  again = vector_shards.open_vectors(tmp_path / "in")
  np.testing.assert_array_equal(again.take(range(COUNT)), VECTORS)
  assert again.ids(range(COUNT)) == [p.id for p in PASSAGES]


def test_vectors_of_another_corpus(source, tmp_path):
  others = _Table([*PASSAGES[:5], PASSAGES[6], PASSAGES[5]])
  with pytest.raises(errors.InputError, match="of other passages than the"):
    vector_export.export(source, "parquet", tmp_path / "out", others)
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  "vectors",
  [
    pyarrow.array([[1.0, 2.0], [3.0, 4.0]], pyarrow.list_(pyarrow.float64())),
    pyarrow.array(
      [[1.0, 2.0], [3.0, 4.0]], pyarrow.large_list(pyarrow.float32())
    ),
    pyarrow.FixedSizeListArray.from_arrays(
      pyarrow.array(np.arange(1, 5, dtype=np.float16)), 2
    ),
  ],
)
def test_other_types_of_lists_and_names(vectors, tmp_path):
  """Numbers as ids; other columns are left alone."""
  path = tmp_path / "theirs.parquet"
  columns = {"_id": [1, 2], "emb": vectors, "url": ["a", "b"]}
  parquet.write_table(pyarrow.table(columns), path)
  ids, array = vector_formats.read(path)
  assert ids == ["1", "2"]
  assert array.dtype == np.float32
  np.testing.assert_array_equal(array, [[1, 2], [3, 4]])


_LISTS = pyarrow.list_(pyarrow.float32())


@pytest.mark.parametrize(
  ("columns", "message"),
  [
    ({"id": ["a"], "x": [1]}, "no column 'vector' .*only id, x"),
    ({"vector": [[1.0]]}, "no column 'id'"),
    (
      {"id": ["a", "b"], "vector": pyarrow.array([[1, 2], [1]], _LISTS)},
      "missing numbers or several widths",
    ),
    (
      {"id": ["a", "b"], "vector": pyarrow.array([[1, 2, 3], [1]], _LISTS)},
      "widths 1 to 3",
    ),
    (
      {"id": ["a", "b"], "vector": pyarrow.array([[1, 2], None], _LISTS)},
      "1 rows have no vector",
    ),
    (
      {"id": ["a", "b"], "vector": pyarrow.array([[1, 2], [1, None]], _LISTS)},
      "missing numbers",
    ),
    ({"id": ["a"], "vector": [[float("nan")]]}, "row 0 .id 'a'"),
    ({"id": [None], "vector": [[1.0]]}, "row 0: None is not a passage id"),
    ({"id": ["a"], "vector": [[1]]}, "expected floats"),
    ({"id": ["a"], "vector": ["text"]}, "its vectors are of type string"),
    ({"id": [], "vector": pyarrow.array([], _LISTS)}, "has no vectors"),
  ],
)
def test_files_that_are_refused(columns, message, tmp_path):
  path = tmp_path / "bad.parquet"
  parquet.write_table(pyarrow.table(columns), path)
  with pytest.raises(errors.InputError, match=message):
    vector_formats.read(path)


def test_rows_are_counted_over_row_groups(tmp_path):
  path = tmp_path / "bad.parquet"
  vectors = [[1.0], [2.0], [float("inf")], [4.0]]
  table = pyarrow.table({"id": list("abcd"), "vector": vectors})
  parquet.write_table(table, path, row_group_size=2)
  with pytest.raises(errors.InputError, match=r"in row 2 \(id 'c'\)"):
    vector_formats.read(path)


def test_damaged_and_cut_short(source, tmp_path):
  out = tmp_path / "out"
  files = vector_export.export(source, "parquet", out, _Table(PASSAGES))
  data = files[0].read_bytes()
  path = tmp_path / "cut.parquet"
  for damaged in (data[:-20], data[:4], b"PAR1" + bytes(30)):
    path.write_bytes(damaged)
    with pytest.raises(errors.InputError, match="cut.parquet is not a Parquet"):
      vector_formats.read(path)


def test_without_pyarrow(source, tmp_path, monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
  (tmp_path / "x.parquet").write_bytes(b"PAR1")
  with pytest.raises(errors.InputError, match="pip install 'dpr-jax.parquet"):
    vector_formats.read(tmp_path / "x.parquet")
