"""All that the tests use of JAX's private modules and changing flags.

Imports JAX when a function is called, not with this file.
"""

import importlib
import importlib.metadata
from types import ModuleType

# The cache of compiled programs: each file is written under its own name, so
# `programs` replaces the method that writes it.
LRU_CACHE = "jax._src.lru_cache"


def xla_flags() -> list[str]:
  """Flags that not every XLA knows: one that it does not know aborts Python."""
  numbers = importlib.metadata.version("jaxlib").split(".")
  if (int(numbers[0]), int(numbers[1])) < (0, 11):
    return ["--xla_cpu_use_fusion_emitters=false"]  # compiles faster
  return []


def lru_cache() -> ModuleType:
  """The module with the class `LRUCache`."""
  return importlib.import_module(LRU_CACHE)


def backends_are_initialized() -> bool:
  """True once JAX has started its devices' threads; does not start them."""
  return importlib.import_module(
    "jax._src.xla_bridge"
  ).backends_are_initialized()
