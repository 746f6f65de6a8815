"""Other libraries' files: there and back, and nothing that runs code."""

import os
import pickle

import numpy as np
import pytest

from dpr_jax.core import errors
from dpr_jax.embedding import (
  embed,
  vector_export,
  vector_formats,
  vector_shards,
)


@pytest.fixture(scope="module")
def opened(tiny_config, mined_workdir, tmp_path_factory):
  """Vectors of the sample, three shards."""
  import shutil

  from dpr_jax.core import workdir as workdir_lib

  folder = tmp_path_factory.mktemp("formats") / "w"
  shutil.copytree(mined_workdir.root, folder)
  place = workdir_lib.Workdir(folder)
  embed.embed(tiny_config, place, model="dense-start")
  return vector_shards.open_vectors(place.embeddings("dense-start"))


# Parquet needs the passages: test_vector_parquet.py.
@pytest.mark.parametrize("form", vector_formats.FORMATS[:-1])
def test_there_and_back(opened, form, tmp_path):
  """The same ids and vectors, also from one file."""
  files = vector_export.export(opened, form, tmp_path / "out")
  assert len(files) == (6 if form == "npy" else 3)
  assert vector_formats.import_(tmp_path / "out", tmp_path / "in") == 120
  found = vector_shards.open_vectors(tmp_path / "in")
  rows = np.arange(120)
  np.testing.assert_array_equal(found.take(rows), opened.take(rows))
  assert found.ids(rows) == opened.ids(rows)
  ids, array = vector_formats.read(files[0])
  assert ids == opened.ids(range(50))
  assert array.dtype == np.float32


def test_as_the_libraries_lay_them_out(opened, tmp_path):
  """Ids with their prefix in DPR's; the order reversed in Contriever's."""
  first = {}
  for form in ("dpr", "tevatron", "contriever"):
    files = vector_export.export(opened, form, tmp_path / form)
    first[form] = pickle.loads(files[0].read_bytes())
  ids, array = opened.ids(range(50)), opened.take(range(50))
  assert first["dpr"][0][0] == f"wiki:{ids[0]}"
  np.testing.assert_array_equal(first["dpr"][7][1], array[7])
  np.testing.assert_array_equal(first["tevatron"][0], array)
  assert first["tevatron"][1] == first["contriever"][0] == ids
  np.testing.assert_array_equal(first["contriever"][1], array)


class _Evil:
  def __reduce__(self):
    return os.system, ("echo harm",)


@pytest.mark.parametrize(
  ("value", "message"),
  [
    (_Evil(), "asks for posix.system"),
    ([("a", _Evil())], "asks for posix.system"),
    ({"a": 1}, "neither a list"),
    ([("a", np.zeros(3)), ("b", np.zeros(4))], "neither a list"),
    ((np.zeros((2, 3)), ["a"]), "1 ids with an array"),
    ((np.zeros((1, 3), int), ["a"]), "expected floats"),
    ((np.zeros((1, 3)), [None]), "None is not a passage id"),
  ],
)
def test_bad_files_are_refused(value, message, tmp_path):
  """Code, other shapes, other types."""
  path = tmp_path / "passages_0.pkl"
  path.write_bytes(pickle.dumps(value))
  with pytest.raises(errors.InputError, match=message):
    vector_formats.import_(path, tmp_path / "in")


def test_more_bad_files(opened, tmp_path):
  """Cut short, of two widths, an unknown format, nothing there."""
  data = pickle.dumps((np.zeros((2, 3), np.float32), ["a", "b"]))
  (tmp_path / "passages_0.pkl").write_bytes(data[:-9])
  with pytest.raises(errors.InputError, match="passages_0.pkl is refused"):
    vector_formats.import_(tmp_path, tmp_path / "in")
  (tmp_path / "passages_0.pkl").write_bytes(data)
  wide = pickle.dumps((np.zeros((1, 4), np.float32), ["c"]))
  (tmp_path / "passages_10.pkl").write_bytes(wide)
  with pytest.raises(errors.InputError, match="passages_10.pkl.*width 4"):
    vector_formats.import_(tmp_path, tmp_path / "in")
  (tmp_path / "empty").mkdir()
  with pytest.raises(errors.InputError, match="has no .pkl"):
    vector_formats.import_(tmp_path / "empty", tmp_path / "in2")
  with pytest.raises(errors.InputError, match="--format=hdf5"):
    vector_export.export(opened, "hdf5", tmp_path / "out")


def test_files_are_taken_in_the_order_of_their_numbers(tmp_path):
  names = ["passages_2.pkl", "passages_10.pkl", "passages_9.pkl"]
  for name in (*names, "notes.txt"):
    (tmp_path / name).touch()
  assert [
    path.name for path in vector_formats.files_of(tmp_path, tmp_path / "in")
  ] == [*("passages_2.pkl", "passages_9.pkl", "passages_10.pkl")]
