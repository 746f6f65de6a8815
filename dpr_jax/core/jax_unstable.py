"""All that dpr-jax uses of JAX outside its stable public API, in one place.

Names in `jax.experimental` and `jax._src`, and switches that JAX calls
experimental, move or vanish between versions.  No other file uses them (a test
checks that).  A module is taken from `jax` itself once it has moved there, and
until then from the place where jax 0.10 to 0.12 have it.  JAX is imported when
a function is called, not with this file.
"""

import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any


@functools.cache
def first_module(*names: str) -> ModuleType:
  """The first module that the installed JAX has.

  Args:
    names: dotted names, the public one first.

  Raises:
    ImportError: it has none of them.
  """
  for name in names:
    try:
      return importlib.import_module(name)
    except ModuleNotFoundError as error:
      # Only a missing module of JAX itself means "look elsewhere".
      if not (error.name and f"{name}.".startswith(f"{error.name}.")):
        raise
  import jax

  raise ImportError(
    f"jax {jax.__version__} has none of {', '.join(names)}: install a version"
    " that setup.py of dpr-jax allows"
  )


def multihost_utils() -> ModuleType:
  """Collectives of host arrays: broadcast from process 0, gather."""
  return first_module("jax.multihost_utils", "jax.experimental.multihost_utils")


def pallas() -> ModuleType:
  """Kernels written in JAX."""
  return first_module("jax.pallas", "jax.experimental.pallas")


def pallas_tpu() -> ModuleType:
  """What kernels for TPUs need besides `pallas`."""
  return first_module("jax.pallas.tpu", "jax.experimental.pallas.tpu")


def topology_devices(name: str, options: dict[str, Any]) -> list[Any]:
  """The devices of a TPU topology without a TPU, to compile for.

  Args:
    name: name of the topology, such as "v5e:16x16".
    options: options of libtpu.

  Raises:
    Exception: whatever the plugin raises without libtpu, or for a topology
      that it does not know.
  """
  topologies = first_module("jax.topologies", "jax.experimental.topologies")
  return list(topologies.get_topology_desc(name, "tpu", **options).devices)


def quick_compile_options() -> dict[str, Any]:
  """Compiler options for the least effort: a fraction of the time."""
  import jax

  if hasattr(jax.config, "jax_optimization_level") and not hasattr(
    jax.config, "jax_exec_time_optimization_effort"
  ):
    return {"optimization_level": 19}  # O1 of https://openxla.org/xla
  return {"exec_time_optimization_effort": -1.0}  # jax 0.10


def stop_compilation_cache() -> None:
  """Compiles without the persistent cache, from now on, in this process."""
  import jax

  jax.config.update("jax_enable_compilation_cache", False)
  # The option alone changes nothing once a program has been compiled.
  first_module(
    "jax.compilation_cache.compilation_cache",
    "jax.experimental.compilation_cache.compilation_cache",
  ).reset_cache()


def replace_program_files(opened: Callable[[str, int], Any]) -> None:
  """Replaces what opens the files of the persistent compilation cache.

  There is no public way.  A JAX without these functions keeps its own files:
  they are not checked, and a killed process may leave half of one.

  Args:
    opened: makes a `CacheInterface` of a folder and its size limit in bytes
      (-1 = no limit).
  """
  try:
    module = first_module("jax._src.compilation_cache")
    limit = first_module("jax._src.config").compilation_cache_max_size
    module.get_file_cache  # noqa: B018
  except (ImportError, AttributeError):
    return
  module.get_file_cache = lambda path: (opened(path, limit.value), path)


def survive_peers() -> None:
  """Lets this process outlive a peer; before `jax.distributed.initialize`.

  Else C++ aborts it when a peer has died, and the preemption service replaces
  our handler of SIGTERM.  `initialize` has no arguments for the two.
  """
  import jax

  jax.config.update("jax_enable_recoverability", True)
  jax.config.update("jax_enable_preemption_service", False)


def key_value_store() -> Any:
  """Client of the coordination service, after `jax.distributed.initialize`.

  Its methods `key_value_set`, `key_value_dir_get` and `blocking_key_value_get`
  are JAX's own.
  """
  import jax

  state = getattr(jax.distributed, "global_state", None)
  if state is None:
    state = first_module("jax._src.distributed").global_state
  return state.client
