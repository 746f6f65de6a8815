"""Dense Passage Retrieval in JAX: train, embed, index, retrieve.

Three lines for people who want three lines:

  from dpr_jax import Retriever
  retriever = Retriever.load(workdir)
  retriever.search(["Where was Einstein born?"], k=20)

and `Encoder.load(workdir)` for vectors of questions and passages.
"""

from typing import Any

from dpr_jax.version import __version__

__all__ = ["Encoder", "Retriever", "__version__"]


def __getattr__(name: str) -> Any:
  """Imports `Encoder` and `Retriever` when they are first used."""
  if name == "Retriever":
    from dpr_jax.retrieval.search import Retriever

    return Retriever
  if name == "Encoder":
    from dpr_jax.retrieval.encoding import Encoder

    return Encoder
  raise AttributeError(f"module 'dpr_jax' has no attribute {name!r}")
