"""Compiled programs are kept, for all processes of this run and for the next.

One folder holds them: of the tests, of the commands that tests fork, and of the
processes that tests start.  It is read and written as that of the commands is,
by `dpr_jax.core.program_cache`.
"""

import os
import pathlib
import sys

from tests import jax_private

FOLDER = (
  pathlib.Path(__file__).resolve().parent.parent / ".pytest_cache" / "xla"
)
AT_MOST = 1 << 30  # bytes; a run writes about a tenth of it
# Python imports `sitecustomize` from there in every process that a test starts.
SITE = pathlib.Path(__file__).resolve().parent / "site"


def keep() -> None:
  """Sets the environment; to be called before JAX is imported."""
  os.environ["JAX_COMPILATION_CACHE_DIR"] = str(FOLDER)
  os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(AT_MOST)
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


def write_whole() -> None:
  """Entries are `program_cache.Programs`, from now or from JAX's import on."""
  if jax_private.COMPILATION_CACHE in sys.modules:
    _replace()
  else:
    sys.meta_path.insert(0, _Finder())


def _replace() -> None:
  from dpr_jax.core import program_cache

  program_cache.use_in_jax()


class _Finder:
  """Finds one module, and changes it when it has been executed."""

  def find_spec(self, name, path=None, target=None):
    """The spec of the module that holds the cache; None for all others."""
    if name != jax_private.COMPILATION_CACHE:
      return None
    sys.meta_path.remove(self)
    import importlib.util

    spec = importlib.util.find_spec(name)
    execute = spec.loader.exec_module

    def exec_module(module):
      execute(module)
      _replace()

    spec.loader.exec_module = exec_module
    return spec
