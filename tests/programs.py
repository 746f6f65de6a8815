"""Compiled programs are kept, for all processes of this run and for the next.

One folder holds them: of the tests, of the commands that tests fork, and of the
processes that tests start.  JAX writes an entry of its cache under its own
name, so another process may read half of it, and a killed one leaves half of it
for ever.  Here an entry gets its name when it is whole.
"""

import contextlib
import os
import pathlib
import sys
import threading

from tests import jax_private

FOLDER = (
  pathlib.Path(__file__).resolve().parent.parent / ".pytest_cache" / "xla"
)
AT_MOST = 1 << 30  # bytes; a run writes about a tenth of it
# Python imports `sitecustomize` from there in every process that a test starts.
SITE = pathlib.Path(__file__).resolve().parent / "site"


def keep() -> None:
  """Sets the environment; to be called before JAX is imported.

  The first process of a run empties a folder that has become too large.
  """
  os.environ["JAX_COMPILATION_CACHE_DIR"] = str(FOLDER)
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
  if "PYTEST_XDIST_WORKER" not in os.environ and FOLDER.exists():
    size = 0
    for path in FOLDER.iterdir():
      with contextlib.suppress(FileNotFoundError):  # another run's
        size += path.stat().st_size
    if size > AT_MOST:
      import shutil

      shutil.rmtree(FOLDER, ignore_errors=True)


def put(cache, key: str, value: bytes) -> None:
  """`LRUCache.put` of a cache without a limit: all of an entry, or nothing.

  Two processes that have compiled the same program write the same entry.
  """
  path = pathlib.Path(str(cache.path)) / f"{key}-cache"
  if path.exists():
    return
  writer = f"{os.getpid()}-{threading.get_ident()}"
  temporary = path.with_name(f"{path.name}.{writer}.tmp")
  temporary.write_bytes(value)
  os.replace(temporary, path)


def write_whole() -> None:
  """Makes JAX write its entries like this, now or when it is imported."""
  if jax_private.LRU_CACHE in sys.modules:
    sys.modules[jax_private.LRU_CACHE].LRUCache.put = put
  else:
    sys.meta_path.insert(0, _Finder())


class _Finder:
  """Finds one module, and changes it when it has been executed."""

  def find_spec(self, name, path=None, target=None):
    """The spec of the module that holds the cache; None for all others."""
    if name != jax_private.LRU_CACHE:
      return None
    sys.meta_path.remove(self)
    import importlib.util

    spec = importlib.util.find_spec(name)
    execute = spec.loader.exec_module

    def exec_module(module):
      execute(module)
      module.LRUCache.put = put

    spec.loader.exec_module = exec_module
    return spec
