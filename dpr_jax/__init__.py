"""Dense Passage Retrieval in JAX: train, embed, index, retrieve.

Three lines for people who want three lines:

  from dpr_jax import Retriever
  retriever = Retriever.load(workdir)
  retriever.search(["Where was Einstein born?"], k=20)

`Encoder.load(workdir)` for vectors of questions and passages, and, where a
reader was trained, `Answerer.load(workdir).ask("Where …?").answer`.
"""

from typing import Any

from dpr_jax.version import __version__

__all__ = ["Answerer", "Encoder", "Retriever", "__version__"]


def __getattr__(name: str) -> Any:
  """Imports `Answerer`, `Encoder`, `Retriever` when they are first used."""
  if name == "Retriever":
    from dpr_jax.retrieval.search import Retriever

    return Retriever
  if name == "Encoder":
    from dpr_jax.retrieval.encoding import Encoder

    return Encoder
  if name == "Answerer":
    from dpr_jax.retrieval.asking import Answerer

    return Answerer
  raise AttributeError(f"module 'dpr_jax' has no attribute {name!r}")
