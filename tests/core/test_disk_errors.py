"""What the disk refuses, whichever library says so."""

import errno
import pickle

import pytest

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib


@pytest.mark.parametrize(
  ("error", "reason"),
  [
    (OSError(errno.ENOSPC, "x"), "No space left on device"),
    (
      OSError(errno.EFBIG, "x", "/elsewhere/b"),
      r"File too large \(/elsewhere/b",
    ),
    (OSError("100 requested and 3 written"), "the disk is full"),
    (RuntimeError("in C++: write failed: Input/output error"), "Input/output"),
    (
      ExceptionGroup("two", [KeyError("a"), OSError(errno.EROFS, "")]),
      "Read-o",
    ),
  ],
)
def test_what_the_disk_refuses_is_one_line(tmp_path, error, reason):
  """Whatever library it comes from, and however deep it lies."""
  path = tmp_path / "a.bin"

  def write():
    with workdir_lib.replace_file(path) as temporary:
      temporary.write_text("half")
      try:
        raise error
      except (OSError, RuntimeError, ExceptionGroup) as inner:
        raise ValueError("of the library") from inner

  with pytest.raises(errors.DiskError, match=f"cannot write {path}: {reason}"):
    write()
  assert not list(tmp_path.iterdir())


def test_other_errors_are_no_disk_errors(tmp_path):
  """A bug stays a bug, and what is said already is not said again."""
  with pytest.raises(KeyError), workdir_lib.writing(tmp_path):
    raise KeyError("x")
  with pytest.raises(errors.InputError, match="^bad row$"):
    with workdir_lib.writing(tmp_path):
      raise errors.InputError("bad row")
  with pytest.raises(pickle.PicklingError), workdir_lib.writing(tmp_path):
    raise pickle.PicklingError("x")
