"""All that the tests use of JAX's private modules and changing flags.

Imports JAX when a function is called, not with this file.
"""

import importlib
import importlib.metadata
from types import ModuleType

# `programs` replaces what opens the files of compiled programs.
COMPILATION_CACHE = "jax._src.compilation_cache"


def xla_flags() -> list[str]:
  """Flags that not every XLA knows: one that it does not know aborts Python."""
  numbers = importlib.metadata.version("jaxlib").split(".")
  if (int(numbers[0]), int(numbers[1])) < (0, 11):
    return ["--xla_cpu_use_fusion_emitters=false"]  # compiles faster
  return []


def compilation_cache() -> ModuleType:
  """The module with `get_file_cache`, which opens the files of programs."""
  return importlib.import_module(COMPILATION_CACHE)


def backends_are_initialized() -> bool:
  """True once JAX has started its devices' threads; does not start them."""
  return importlib.import_module(
    "jax._src.xla_bridge"
  ).backends_are_initialized()
