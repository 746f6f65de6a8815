"""Compiled programs on disk, for the processes that need them next.

JAX's compilation cache finds a program by its key: the program itself, the
versions of JAX and of the backend, the options and XLA_FLAGS.  `keep` switches
it on for our commands, in a folder of the user's cache.  `Programs` replaces
the part of JAX that reads and writes the files, for three reasons: an entry
gets its name when it is whole, so that a killed process leaves nothing that
others read; an entry has a checksum; a disk that is full or read-only is one
warning, not one for each program.

On a CPU the key lacks the processor's features, and XLA runs a program that was
compiled for another processor, with wrong instructions.  So every kind of
processor has a folder of its own.
"""

import contextlib
import hashlib
import os
import pathlib
import platform
import threading
import time

from absl import logging

from dpr_jax.core import errors, jax_unstable, temporary_names, user_cache

AT_MOST = 1 << 30  # bytes; the demo's programs take 0.03 of it
_SUFFIX = ".program"
_LEFT_SECONDS = 3600.0  # a temporary file of this age is nobody's
_CPUINFO = pathlib.Path("/proc/cpuinfo")
# Lines of /proc/cpuinfo (x86, ARM) on which the compiler's choices depend.
_FEATURES = (
  *("vendor_id", "cpu family", "model", "flags"),
  *("CPU implementer", "CPU architecture", "CPU variant", "CPU part"),
  "Features",
)


def keep() -> None:
  """Keeps the programs that this process compiles from now on.

  Changes nothing if JAX's own settings name a folder or switch the cache off
  (JAX_COMPILATION_CACHE_DIR, JAX_ENABLE_COMPILATION_CACHE).  A folder that
  cannot be used is a warning: programs are compiled then.
  """
  import jax

  if jax.config.jax_compilation_cache_dir:
    return
  if not jax.config.jax_enable_compilation_cache:
    return
  try:
    folder = user_cache.cache_folder() / "programs" / processor()
  except errors.InputError as error:
    logging.warning("compiled programs are not kept: %s", error)
    return
  if jax.config.jax_compilation_cache_max_size == -1:
    jax.config.update("jax_compilation_cache_max_size", AT_MOST)
  if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
    # Hundreds of small programs take seconds together.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_compilation_cache_dir", str(folder))
  use_in_jax()


def use_in_jax() -> None:
  """Makes JAX read and write its entries through `Programs`."""

  def opened(path: str, size: int) -> Programs:
    return Programs(pathlib.Path(path), None if size < 0 else size)

  jax_unstable.replace_program_files(opened)


def processor(cpuinfo: pathlib.Path = _CPUINFO) -> str:
  """Name of this kind of processor, for example "x86_64-3f09c2b7a1d4".

  Two processors have the same name only if the compiler sees no difference.

  Args:
    cpuinfo: Linux's description of the processors; where there is none, the
      name is that of this machine alone.
  """
  try:
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    told = {
      line for line in lines if line.partition(":")[0].strip() in _FEATURES
    }
  except OSError:
    told = {platform.node()}
  digest = hashlib.sha256("\n".join(sorted(told)).encode()).hexdigest()
  return f"{platform.machine()}-{digest[:12]}"


class Programs:
  """The entries of a folder: JAX's `CacheInterface` without its base class.

  A file holds the sha256 of a program and the program.  Any number of
  processes may read and write at the same time.
  """

  def __init__(self, folder: pathlib.Path, at_most: int | None):
    """Opens the folder; it is made when something is written.

    Args:
      folder: of the files.
      at_most: bytes of all files; the least recently used ones are removed.
        None = no limit.
    """
    self.path = self._path = folder
    self._at_most = at_most
    self._room: int | None = None  # bytes until files are removed; None = look
    self._refused = False

  def get(self, key: str) -> bytes | None:
    """The program of a key; None if there is none, or it is damaged."""
    path = self._file(key)
    try:
      data = path.read_bytes()
    except FileNotFoundError:
      return None
    except OSError as error:
      self._refuse(error)
      return None
    digest, value = data[:32], data[32:]
    if hashlib.sha256(value).digest() != digest:
      logging.warning("%s is damaged: compiling the program again", path)
      with contextlib.suppress(OSError):
        path.unlink()
      return None
    with contextlib.suppress(OSError):  # a folder that is only read
      os.utime(path)
    return value

  def put(self, key: str, value: bytes) -> None:
    """Writes a program: all of it, or nothing.

    Of two processes that have compiled the same one, the second replaces what
    the first has written, which is the same.
    """
    path = self._file(key)
    if self._refused or path.exists():
      return
    # No fsync, which would take longer than some compilations: half a file
    # after a power cut does not have its checksum.
    number = f"{os.getpid()}{threading.get_ident()}"
    name = f"{path.stem}{temporary_names.MARK}tmp-{number}{_SUFFIX}"
    temporary = path.with_name(name)
    try:
      path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
      if not self._make_room(len(value)):
        return
      try:
        temporary.write_bytes(hashlib.sha256(value).digest() + value)
        os.replace(temporary, path)
      finally:
        temporary.unlink(missing_ok=True)
    except OSError as error:
      self._refuse(error)

  def _file(self, key: str) -> pathlib.Path:
    return self.path / f"{key}{_SUFFIX}"

  def _make_room(self, size: int) -> bool:
    """Removes old files before `size` bytes are added; False = too large.

    The folder is looked at again after a tenth of the limit, because other
    processes write as well.
    """
    if self._at_most is None:
      return True
    if size > self._at_most:
      return False
    if self._room is None or size > self._room:
      left = self._remove_oldest(self._at_most - size)
      self._room = min(self._at_most - left, max(self._at_most // 10, size))
    self._room -= size
    return True

  def _remove_oldest(self, at_most: int) -> int:
    """Removes the files that were used longest ago; returns the bytes left."""
    used, total = [], 0
    for path in self.path.iterdir():
      with contextlib.suppress(FileNotFoundError):  # removed by another process
        status = path.stat()
        if temporary_names.is_temporary(path.name):
          if time.time() - status.st_mtime > _LEFT_SECONDS:
            path.unlink()
        elif path.suffix == _SUFFIX:
          used.append((status.st_mtime_ns, status.st_size, path))
          total += status.st_size
    for _, size, path in sorted(used):
      if total <= at_most:
        break
      path.unlink(missing_ok=True)
      total -= size
    return total

  def _refuse(self, error: OSError) -> None:
    """Says once that the folder cannot be used."""
    if not self._refused:
      self._refused = True
      logging.warning(
        "compiled programs are not kept: %s (%s); programs are compiled in"
        " every call. To keep them elsewhere set DPR_JAX_CACHE, to stop this"
        " JAX_ENABLE_COMPILATION_CACHE=false",
        self.path,
        error.strerror or error,
      )
