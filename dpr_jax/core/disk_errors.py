"""Errors of the disk as a `DiskError` of one line.

They come from Python, NumPy and C++ libraries, with and without an error
number, and often as the cause of another exception.
"""

import contextlib
import errno
import os
import pathlib
import re
from collections.abc import Iterator

from dpr_jax.core import errors, temporary_names

_REFUSALS = frozenset(
  getattr(errno, name)
  for name in (
    *("ENOSPC", "EIO", "EACCES", "EPERM", "EROFS", "EDQUOT", "EFBIG", "ESTALE"),
    *("EMFILE", "ENFILE", "ENODEV", "ENXIO", "ETXTBSY", "EBUSY", "ENOLCK"),
    *("ENAMETOOLONG", "ENOTDIR", "EISDIR", "ELOOP", "ENOTEMPTY", "EEXIST"),
    *("ENOENT", "EXDEV", "EMLINK"),
  )
  if hasattr(errno, name)
)
# C++ libraries raise errors with the system's message but without its number.
_WORDS = re.compile(
  "|".join(
    re.escape(os.strerror(number))
    for number in sorted(_REFUSALS - {errno.ENOENT, errno.EEXIST})
  ),
  re.IGNORECASE,
)


def refusal(error: BaseException) -> tuple[str, str] | None:
  """The disk error behind an exception, if there is one.

  Args:
    error: exception; its causes and the members of groups are searched too.

  Returns:
    (reason, name of the file or ""); None = the disk is not the cause.
  """
  seen: set[int] = set()
  waiting: list[BaseException | None] = [error]
  in_words = None
  while waiting:
    one = waiting.pop(0)
    if one is None or id(one) in seen:
      continue
    seen.add(id(one))
    if isinstance(one, OSError) and one.errno in _REFUSALS:
      name = one.filename
      named = isinstance(name, str | bytes | os.PathLike)
      return os.strerror(one.errno), os.fsdecode(name) if named else ""
    if in_words is None and not isinstance(one, errors.InputError):
      if said := _WORDS.search(str(one)):
        in_words = said[0], ""
      elif isinstance(one, OSError) and " requested and " in str(one):
        in_words = f"the disk is full ({one})", ""  # NumPy has no errno
    waiting += [one.__cause__, one.__context__]
    waiting += getattr(one, "exceptions", ())
  return in_words


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
  """A block that writes `path`; disk errors in it become `DiskError`.

  Raises:
    DiskError: `path` could not be written, with the reason.
  """
  try:
    yield
  except errors.InputError:
    raise
  except Exception as error:
    refused = refusal(error)
    if refused is None:
      raise
    raise disk_error(path, *refused) from error


def disk_error(
  path: str | os.PathLike, reason: str, file: str = ""
) -> errors.DiskError:
  """The error that says which file could not be written, and why."""
  where = pathlib.Path(path)
  other = f" ({file})" if file and not _is_temporary_of(file, where) else ""
  return errors.DiskError(
    f"cannot write {where}: {reason}{other}; make room or give access, and run"
    " the same command again: what was finished before is kept"
  )


def _is_temporary_of(file: str, path: pathlib.Path) -> bool:
  """True if `file` is `path` or its temporary name: then one is enough."""
  found = pathlib.Path(file)
  return found == path or (
    found.parent == path.parent and temporary_names.is_temporary(file)
  )
