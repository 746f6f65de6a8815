"""Rows of three small shards, numbered through."""

import numpy as np
import pytest

from dpr_jax.core import errors
from dpr_jax.embedding import vector_shards

SIZES = (3, 1, 2)
ALL = np.arange(12, dtype=np.float32).reshape(6, 2)  # row i: [2 i, 2 i + 1]


@pytest.fixture
def opened(tmp_path):
  """Six vectors of width 2 whose ids are a to f."""
  shards, first = [], 0
  for number, rows in enumerate(SIZES):
    file, ids = vector_shards.names(number)
    np.save(tmp_path / file, ALL[first : first + rows])
    np.save(tmp_path / ids, np.array(list(b"abcdef"), "u1").view("S1")[first:])
    shards.append({"file": file, "ids": ids, "first_row": first, "rows": rows})
    first += rows
  manifest = {"count": 6, "dim": 2, "dtype": "float32", "shards": shards}
  return vector_shards.Vectors(tmp_path, manifest)


def test_blocks_are_numbered_through_and_end_with_their_shard(opened):
  found = list(opened.blocks(2))
  assert [(first, len(block)) for first, block in found] == [
    *((0, 2), (2, 1), (3, 1), (4, 2))
  ]
  np.testing.assert_array_equal(np.concatenate([b for _, b in found]), ALL)


def test_any_rows_in_any_order(opened):
  rows = [5, 0, 3, 5]
  np.testing.assert_array_equal(opened.take(rows), ALL[rows])
  assert opened.ids(rows) == ["f", "a", "d", "f"]
  assert opened.take([]).shape == (0, 2)
  for row in (-1, 6):
    with pytest.raises(IndexError, match=f"row {row} .* rows 0 to 5"):
      opened.take([0, row])


@pytest.mark.parametrize(
  ("rows", "shards"),
  [
    (None, (0, 1, 2)),
    (range(6), (0, 1, 2)),
    (range(3), (0,)),
    (range(2, 4), (0, 1)),
    (range(3, 4), (1,)),
    (range(5, 6), (2,)),
    (range(3, 3), ()),
  ],
)
def test_only_files_with_wanted_rows_are_checked(
  opened, monkeypatch, rows, shards
):
  opened.manifest["files"] = {
    name: str(number)
    for number in range(3)
    for name in vector_shards.names(number)
  }
  asked = []
  monkeypatch.setattr(
    vector_shards.sharded_output,
    "check_whole",
    lambda folder, files, command: asked.extend(files),
  )
  opened.check("dpr-jax embed", rows)
  assert {int(number) for _, number in asked} == set(shards)
  assert len(asked) == 2 * len(shards)


def test_an_array_that_is_not_what_the_manifest_says(opened):
  opened.manifest["shards"][1]["rows"] = 2
  with pytest.raises(errors.InputError, match=r"\(1, 2\), .* \(2, 2\)"):
    opened.take([3])


def test_bfloat16_is_stored_as_the_bits_that_it_is():
  values = np.array([[1.0, -2.5]], np.float32)
  stored = vector_shards.as_stored(
    values.astype(vector_shards.storage("bfloat16"))
  )
  assert stored.dtype == np.uint16
  assert stored.tolist() == [[0x3F80, 0xC020]]
  assert vector_shards.as_stored(values) is values
