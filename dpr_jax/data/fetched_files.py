"""Verifies downloaded files, and files that were brought by hand.

A file is right if its size and hash are the published ones.  Where no hash is
published, `NAME.fetched.json` records that of the first download (or of the
file that was brought), and later ones must have the same.
"""

import contextlib
import datetime
import gzip
import os
import pathlib
import shutil
import zlib
from collections.abc import Iterator
from typing import Any

import filelock

from dpr_jax.core import errors, manifests
from dpr_jax.data.download_list import BASE, RemoteFile


def check(file: RemoteFile, folder: pathlib.Path, base: str = BASE) -> str:
  """Verifies a file that is there; returns what was verified, in words.

  Args:
    file: the file.
    folder: folder of `fetch`.
    base: address for the message about a missing file.

  Raises:
    InputError: it is missing, or is not the right file.
  """
  target = folder / file.name
  if not target.is_file():
    state = "is not a file" if os.path.lexists(target) else "is missing"
    raise errors.InputError(f"{target} {state}: bring {describe(file, base)}")
  try:
    return verify(file, target, target, None)
  except errors.DiskError:
    raise
  except errors.InputError as error:
    raise errors.InputError(
      f"{error}; move it away, and fetch or bring it again"
    ) from error


def missing_bytes(file: RemoteFile, folder: pathlib.Path) -> int:
  """Bytes still to download; 0 for a file whose size is not published."""
  target = folder / file.name
  if file.size is None or target.exists():
    return 0
  return file.size - min(size_of(beside(target, ".part")), file.size)


def check_space(folder: pathlib.Path, needed: int) -> None:
  """`DiskError` unless so many bytes are free where `folder` is or will be."""
  place = folder.absolute()
  while not place.exists():
    place = place.parent
  free = shutil.disk_usage(place).free
  if free < needed:
    raise errors.DiskError(
      f"cannot write {folder}: {needed:,} bytes are needed, and {free:,} are"
      " free: make room, or give another --out"
    )


def describe(file: RemoteFile, base: str = BASE) -> str:
  """Address, size and hash of a file, in one line."""
  size = f"{file.size:,} bytes" if file.size else "size not published"
  return f"{file.address(base)} ({size}; {file.digest or 'hash not published'})"


def beside(target: pathlib.Path, suffix: str) -> pathlib.Path:
  """A path beside a file: its name with a further suffix."""
  return target.with_name(target.name + suffix)


def size_of(path: pathlib.Path) -> int:
  """Size in bytes; 0 for a missing file."""
  try:
    return path.stat().st_size
  except FileNotFoundError:
    return 0


@contextlib.contextmanager
def locked(target: pathlib.Path) -> Iterator[None]:
  """A block in which no other process downloads this file."""
  lock = filelock.FileLock(target.with_name(f".{target.name}.lock"), timeout=0)
  try:
    lock.acquire()
  except filelock.Timeout as error:
    raise errors.InputError(
      f"{target} is being downloaded by another process: wait until it ends, or"
      " give another --out"
    ) from error
  # NotImplementedError: a file system without locks.
  except (OSError, NotImplementedError) as error:
    raise errors.DiskError(
      f"{target} cannot be locked: {getattr(error, 'strerror', None) or error};"
      " give another --out"
    ) from error
  try:
    yield
  finally:
    lock.release()


def verify(
  file: RemoteFile,
  target: pathlib.Path,
  path: pathlib.Path,
  source: dict[str, Any] | None,
) -> str:
  """Compares size and hash of a file; records them where none are published.

  Args:
    file: the file.
    target: its final path.
    path: where its bytes are.
    source: address, ETag and Last-Modified to record; None = not downloaded.

  Returns:
    What was verified, in words.

  Raises:
    InputError: it is not the right file.
  """
  size = path.stat().st_size
  if file.size is not None and size != file.size:
    raise errors.InputError(
      f"{target} has {size:,} bytes, and the published size is {file.size:,}"
    )
  if file.digest:
    algorithm, _, expected = file.digest.partition(":")
    actual = manifests.fingerprint_file(path, algorithm)
    if actual != expected:
      raise errors.InputError(
        f"{target} has {algorithm} {actual}, and the published one is"
        f" {expected}"
      )
    return f"{size:,} bytes, {algorithm} as published"
  actual = manifests.fingerprint_file(path)
  record = beside(target, ".fetched.json")
  if record.exists():
    expected = manifests.read_record(record)["sha256"]
    if actual != expected:
      raise errors.InputError(
        f"{target} has sha256 {actual}, and {record.name} has recorded"
        f" {expected} (remove that file to accept the new one)"
      )
    return f"{size:,} bytes, sha256 as recorded (not published)"
  if target.name.endswith(".gz"):
    _check_gzip(target, path)
  when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
  values = {"sha256": actual, "size": size, "recorded": when}
  manifests.write_record(record, values | (source or {}))
  return f"{size:,} bytes, hash not published; recorded in {record.name}"


def _check_gzip(target: pathlib.Path, path: pathlib.Path) -> None:
  """`InputError` unless a file is gzip, whole, and compressed once."""
  try:
    with gzip.open(path) as unzipped:
      block = unzipped.read(1 << 16)
      if block.startswith(b"\x1f\x8b"):
        raise errors.InputError(f"{target} is compressed twice")
      while block:
        block = unzipped.read(1 << 20)
  except (OSError, EOFError, zlib.error) as error:
    raise errors.InputError(f"{target} is not whole: {error}") from error
