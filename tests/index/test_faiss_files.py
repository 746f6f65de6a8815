"""Files of an index, which may be foreign."""

import faiss
import pytest

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.index import (
  faiss_files,
  faiss_stage,
)
from tests.index import made


def test_limits_hold_while_a_foreign_file_is_parsed(tmp_path, monkeypatch):
  """As large as the file, and never without the comparison before."""
  seen = []
  folder = tmp_path / "index"
  folder.mkdir()
  (folder / faiss_stage.FILE).write_bytes(b"x" * 1000)
  made.stage(folder).finish(
    {},
    files={
      faiss_stage.FILE: workdir_lib.fingerprint_file(folder / faiss_stage.FILE)
    },
  )

  def read_index(path, flags):
    seen.append(faiss.get_deserialization_vector_byte_limit())
    raise RuntimeError("Error in f at g.cpp:1: no index")

  monkeypatch.setattr(faiss, "read_index", read_index)
  with pytest.raises(errors.InputError, match="is not a FAISS index: no index"):
    faiss_files.load_index(folder)
  assert seen == [1000]
