"""Atomic writes of files and folders, and safe removal of our own folders.

A file or folder is written under a temporary name, flushed with fsync, and
renamed.  Temporary names contain a marker of dpr-jax, so that leftovers of a
killed process cannot be mistaken for a user's files.  A folder is replaced or
removed only if it is empty, or holds one of our records and no file that the
record does not list.  Disk errors become a `DiskError` (`disk_errors.py`).
"""

import contextlib
import glob
import json
import os
import pathlib
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator

from dpr_jax.core import errors
from dpr_jax.core.disk_errors import writing
from dpr_jax.core.temporary_names import LEFTOVER, MARK, is_temporary

MANIFEST = "manifest.json"
# Records that mark a folder as ours: of a finished stage, of an unfinished
# stage, of an exported model, of an exported reader.
RECORDS = (MANIFEST, "started.json", "dpr_jax.json", "dpr_jax_reader.json")
_NAME = re.compile(r"\w[\w.+-]*")
# Keys that identify a damaged record, which is no longer valid JSON, as ours.
_SIGNATURE = re.compile(rb'"config_hash"|"inputs"\s*:\s*\{|"dpr_jax"')


def check_name(flag: str, name: str) -> str:
  """Returns the name of a question set, which becomes part of file names.

  Raises:
    InputError: the name has characters that are not allowed, or the marker of
      temporary files.
  """
  if not _NAME.fullmatch(name):
    raise errors.InputError(
      f"{flag}={name!r}: must be a letter, digit or _, then letters, digits and"
      " . _ + -"
    )
  if MARK in f".{name}":
    raise errors.InputError(
      f"{flag}={name!r}: must not contain {MARK!r}, which marks files that are"
      " not finished"
    )
  return name


def _number() -> str:
  """Process id and a random number: hosts on one disk may share process ids."""
  return f"{os.getpid()}{secrets.randbelow(10**6):06d}"


def fsync_folder(folder: str | os.PathLike) -> None:
  """Flushes the names in a folder to the disk."""
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def _fsync_file(path: pathlib.Path) -> None:
  with open(path, "rb+") as file:
    os.fsync(file.fileno())


@contextlib.contextmanager
def replace_file(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields a temporary path that becomes `path` if the block succeeds.

  The temporary name keeps the suffix (`x.dprjax-tmp-123.json.gz`), because some
  writers choose the format by it.

  Raises:
    DiskError: the file could not be written.
  """
  path = pathlib.Path(path)
  stem, dot, suffix = path.name.partition(".")
  temporary = path.with_name(f"{stem}{MARK}tmp-{_number()}{dot}{suffix}")
  with writing(path):
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      yield temporary
      _fsync_file(temporary)
      os.replace(temporary, path)
      fsync_folder(path.parent)
    finally:
      with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replace_folder(
  path: str | os.PathLike, owner: str | None
) -> Iterator[pathlib.Path]:
  """Yields a temporary folder that replaces `path` if the block succeeds.

  Args:
    path: folder; the target of a symbolic link is replaced, not the link.
    owner: stage that must have made the existing folder, see `check_ours`;
      None = the caller has checked that already.

  Raises:
    InputError: the existing folder is not ours.
    DiskError: the folder could not be written.
  """
  path = pathlib.Path(path)
  if path.is_symlink():
    path = path.resolve()
  if owner is not None:
    check_ours(path, owner)
  temporary = path.with_name(f"{path.name}{MARK}tmp-{_number()}")
  with writing(path):
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      _clear_beside(path)
      temporary.mkdir()
      yield temporary
      for folder, _, names in os.walk(temporary, topdown=False):
        for name in names:
          _fsync_file(pathlib.Path(folder, name))
        fsync_folder(folder)
      _put_in_place(temporary, path)
    except errors.DiskError as error:  # name a file in it by its final path
      said = str(error).replace(str(temporary), str(path))
      raise errors.DiskError(said) from error
    finally:
      shutil.rmtree(temporary, ignore_errors=True)


def _clear_beside(path: pathlib.Path) -> None:
  """Clears leftovers of killed processes that were writing this folder.

  In a workdir `locked` has done so already; an export may be anywhere.
  """
  for other in path.parent.glob(f"{glob.escape(path.name)}{MARK}*"):
    found = LEFTOVER.fullmatch(other.name)
    if found and not _is_alive(int(found["number"]) // 10**6):
      clear_leftover(other)


def _is_alive(process: int) -> bool:
  try:
    os.kill(process, 0)
  except ProcessLookupError:
    return False
  except (OverflowError, PermissionError):
    pass
  return True


def _put_in_place(temporary: pathlib.Path, path: pathlib.Path) -> None:
  """Renames a folder over another; restores the old one if that fails."""
  old = path.with_name(f"{path.name}{MARK}old-{_number()}")
  had = path.exists()
  if had:
    os.replace(path, old)
  try:
    os.replace(temporary, path)
  except OSError:
    if had:
      os.replace(old, path)
    raise
  fsync_folder(path.parent)
  shutil.rmtree(old, ignore_errors=True)


def remove_folder(path: str | os.PathLike, owner: str) -> None:
  """Removes one of our folders with its contents, if it exists.

  Raises:
    InputError: the folder is not ours.
    DiskError: the folder cannot be removed.
  """
  path = pathlib.Path(path)
  if not path.exists():
    return
  check_ours(path, owner)
  with writing(path):
    shutil.rmtree(path.resolve() if path.is_symlink() else path)


def check_ours(path: str | os.PathLike, owner: str, whole: bool = True) -> None:
  """`InputError` unless a folder may be replaced or removed.

  It may if it does not exist, is empty, or holds a record (`RECORDS`) of
  `owner`.  If the record lists the folder's files, the folder must not hold any
  other file.

  Args:
    path: folder.
    owner: stage that made it: "prepare", "bm25", "index", "export", ...
    whole: whether the whole folder goes.  False = our files in it will be
      replaced and other files stay.
  """
  path = pathlib.Path(path)
  if not os.path.lexists(path):
    return
  if not path.is_dir():
    raise errors.InputError(f"{path} exists and is not a folder: move it away")
  with writing(path):
    entries = sorted(path.iterdir())
  if not any(not is_temporary(entry.name) for entry in entries):
    return
  signed, listed = _signature(path, owner)
  if not signed:
    raise errors.InputError(
      f"{path} is not empty and has no record of `dpr-jax {owner}`, so it is"
      " neither replaced nor removed: move its contents away, or give another"
      " folder"
    )
  foreign = []
  if whole and listed is not None:
    foreign = list(_foreign(path, listed))
  if foreign:
    more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
    raise errors.InputError(
      f"{path} would be replaced, and holds files that dpr-jax did not put"
      f" there: {', '.join(foreign[:3])}{more}; move them away"
    )


def _signature(
  path: pathlib.Path, owner: str
) -> tuple[bool, frozenset[str] | None]:
  """Whether `owner` made a folder, and the files that its record lists.

  Returns:
    (True if a record names `owner`, files that it lists); None = no list.
  """
  for name in RECORDS:
    try:
      data = (path / name).read_bytes()
    except OSError:
      continue
    try:
      record = json.loads(data)
    except (ValueError, RecursionError):
      record = None
    damaged = record is None or _is_damaged(path / name, record)
    if damaged and _SIGNATURE.search(data):  # damaged, but clearly ours
      return True, None
    if record is None:
      raise errors.InputError(
        f"{path / name} is damaged, so it is not known whether `dpr-jax"
        f" {owner}` made {path}, which is neither replaced nor removed: move"
        " the folder away"
      )
    if not isinstance(record, dict) or not _is_of(name, record, owner):
      continue
    files = record.get("files")
    has_list = isinstance(files, dict) and (files or "shards" in record)
    return True, frozenset(files) if has_list else None
  return False, None


def _is_damaged(path: pathlib.Path, record: object) -> bool:
  """True for a record whose checksum does not match its contents."""
  from dpr_jax.core import manifests  # which imports this module

  if not isinstance(record, dict) or "checksum" not in record:
    return False
  try:
    manifests.read_record(path)
  except errors.InputError:
    return True
  return False


def _is_of(name: str, record: dict, owner: str) -> bool:
  if name == MANIFEST:
    return record.get("stage") == owner and "config_hash" in record
  if name == "started.json":
    return record.get("stage", owner) == owner and "inputs" in record
  return owner == "export" == record.get("stage", "export")


def _foreign(path: pathlib.Path, listed: frozenset[str]) -> Iterator[str]:
  """Names of files that are neither listed nor records.

  A subfolder with a record of its own is skipped.
  """
  for folder, folders, names in os.walk(path):
    here = pathlib.Path(folder)
    if here != path and any(name in RECORDS for name in names):
      folders.clear()
      continue
    folders[:] = [name for name in folders if not is_temporary(name)]
    for name in names:
      relative = (here / name).relative_to(path).as_posix()
      if relative not in listed and not (
        is_temporary(name) or (here == path and name in RECORDS)
      ):
        yield relative


def refuse_inside(
  what: str, path: str | os.PathLike, folder: str | os.PathLike
) -> None:
  """`InputError` if an input is inside a folder that will be replaced.

  Args:
    what: name of the input: a flag or a key of the config, without "=".
    path: path of the input.
    folder: folder that will be replaced.
  """
  inner, outer = pathlib.Path(path).resolve(), pathlib.Path(folder).resolve()
  if inner == outer or outer in inner.parents:
    raise errors.InputError(
      f"{what}={path} is inside {folder}, whose contents dpr-jax replaces: move"
      " it elsewhere, or give another folder"
    )


def clear_leftovers(roots: Iterable[pathlib.Path]) -> None:
  """Removes temporary files and folders of killed processes.

  An old version that was moved aside but not yet replaced is moved back.

  Args:
    roots: our folders, searched recursively.
  """
  for root in roots:
    for folder, folders, files in os.walk(root):
      for name in (*folders, *files):
        clear_leftover(pathlib.Path(folder, name))
      folders[:] = [name for name in folders if not is_temporary(name)]


def clear_leftover(path: pathlib.Path) -> None:
  """Removes one path, or moves it back, if its name is temporary."""
  found = LEFTOVER.fullmatch(path.name)
  if not found:
    return
  whole = path.with_name(found["name"] + (found["suffix"] or ""))
  with writing(whole):
    if found["kind"] == "old" and not whole.exists():
      os.replace(path, whole)
    elif path.is_dir() and not path.is_symlink():
      shutil.rmtree(path)
    else:
      path.unlink(missing_ok=True)
