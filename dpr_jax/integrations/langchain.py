"""LangChain: `Encoder` as its `Embeddings`, `Retriever` as its `BaseRetriever`.

An `Encoder` has the methods of `Embeddings` already.  Importing this module
registers it as one, for the vector stores that ask with `isinstance`.
"""

from typing import Any

import pydantic
from langchain_core import callbacks, documents, embeddings, retrievers

from dpr_jax.inference import encoder as encoder_lib

embeddings.Embeddings.register(encoder_lib.Encoder)


class DprRetriever(retrievers.BaseRetriever):
  """LangChain's retriever over a finished workdir.

  Attributes:
    retriever: a `dpr_jax.Retriever`, of any method.
    k: number of documents per question.
  """

  retriever: Any
  k: int = pydantic.Field(default=4, ge=1)

  def _get_relevant_documents(
    self, query: str, *, run_manager: callbacks.CallbackManagerForRetrieverRun
  ) -> list[documents.Document]:
    (hits,) = self.retriever.search([query], self.k)
    return [
      documents.Document(
        id=hit.id,
        page_content=hit.text,
        metadata={"title": hit.title, "score": hit.score},
      )
      for hit in hits
    ]
