"""Pickles of vectors that old and new NumPy read."""

import io
import pickle
import pickletools

import numpy as np
import pytest

from dpr_jax.embedding import pickle_writer, vector_formats

# 300 bytes of id, and 70 floats, take the long forms of their opcodes.
IDS = ["wiki:1", "é" * 150, *map(str, range(2, 2101))]
VECTORS = (
  np.random.default_rng(0).normal(size=(len(IDS), 70)).astype(np.float32)
)


def _written(form: str) -> bytes:
  file = io.BytesIO()
  if form == "dpr":
    pickle_writer.write_pairs(file, IDS, VECTORS)
  else:
    ids_first = form == "contriever"
    pickle_writer.write_pair(file, IDS, VECTORS, ids_first=ids_first)
  return file.getvalue()


@pytest.mark.parametrize("form", ["dpr", "tevatron", "contriever"])
def test_python_reads_it_and_it_names_the_old_modules(form):
  """Without a warning: pytest makes errors of those."""
  data = _written(form)
  value = pickle.loads(data)
  if form == "dpr":
    ids, vectors = [i for i, _ in value], np.stack([v for _, v in value])
    assert type(value[0]) is tuple
    assert value[3][1].shape == (70,)
  else:
    ids, vectors = value if form == "contriever" else value[::-1]
  assert ids == IDS
  assert vectors.dtype == np.float32
  np.testing.assert_array_equal(vectors, VECTORS)
  opcodes = [(code.name, arg) for code, arg, _ in pickletools.genops(data)]
  named = [arg for name, arg in opcodes if name == "GLOBAL"]
  assert named == [
    *("numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype")
  ]
  assert b"_core" not in data
  assert "STACK_GLOBAL" not in {name for name, _ in opcodes}


@pytest.mark.parametrize("form", ["dpr", "tevatron", "contriever"])
def test_our_own_reader_accepts_it(form, tmp_path):
  path = tmp_path / "passages_0.pkl"
  path.write_bytes(_written(form))
  ids, vectors = vector_formats.read(path)
  assert ids == [i.removeprefix("wiki:") for i in IDS]
  np.testing.assert_array_equal(vectors, VECTORS)


def test_no_rows_and_a_row_of_one():
  file = io.BytesIO()
  pickle_writer.write_pairs(file, [], VECTORS[:0])
  assert pickle.loads(file.getvalue()) == []
  file = io.BytesIO()
  pickle_writer.write_pairs(file, ["7"], np.full((1, 1), -2.5, np.float32))
  ((name, vector),) = pickle.loads(file.getvalue())
  assert (name, vector.tolist()) == ("7", [-2.5])
