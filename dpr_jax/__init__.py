"""Dense Passage Retrieval in JAX: train, embed, index, retrieve.

Three lines for people who want three lines:

  from dpr_jax import Retriever
  retriever = Retriever.load(workdir)
  retriever.search(["Where was Einstein born?"], k=20)

`Encoder.load(workdir)` for vectors of questions and passages, and, where a
reader was trained, `Answerer.load(workdir).ask("Where …?").answer`.  Config
files start from `dpr_jax.configuration.base_config()`.  All of it is described
in docs/api.md.
"""

import importlib
from typing import Any

from dpr_jax.version import __version__

__all__ = [
  "Answerer",
  "Encoder",
  "Hit",
  "InputError",
  "Reply",
  "Retriever",
  "__version__",
  "configuration",
]

# What users import, and the module and name behind it.
_PUBLIC = {
  "Answerer": ("dpr_jax.reading.answerer", "Answerer"),
  "Encoder": ("dpr_jax.inference.encoder", "Encoder"),
  "Hit": ("dpr_jax.retrieval.result_files", "Hit"),
  "InputError": ("dpr_jax.core.errors", "InputError"),
  "Reply": ("dpr_jax.reading.answerer", "Reply"),
  "Retriever": ("dpr_jax.retrieval.api", "Retriever"),
  "configuration": ("dpr_jax.core.config", None),
}


def __getattr__(name: str) -> Any:
  """Imports what users ask for when it is first used: JAX takes seconds."""
  if name not in _PUBLIC:
    raise AttributeError(f"module 'dpr_jax' has no attribute {name!r}")
  module, attribute = _PUBLIC[name]
  found = importlib.import_module(module)
  return getattr(found, attribute) if attribute else found
