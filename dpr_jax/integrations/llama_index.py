"""LlamaIndex: `Encoder` as its `BaseEmbedding`.

LlamaIndex's models are pydantic classes, so an `Encoder` has to be wrapped.  It
hands over a node as one text, metadata included, so that a title is part of the
text.  Its own vector store compares by cosine, whatever the model is for.
"""

import asyncio
from typing import Any

import pydantic
from llama_index.core.base.embeddings import base

from dpr_jax.inference import encoder as encoder_lib


class DprEmbedding(base.BaseEmbedding):
  """LlamaIndex's embedding model around a `dpr_jax.Encoder`."""

  _encoder: encoder_lib.Encoder = pydantic.PrivateAttr()

  def __init__(self, encoder: encoder_lib.Encoder, **options: Any):
    """Wraps an encoder.

    Args:
      encoder: encoder of questions and passages.
      **options: fields of `BaseEmbedding`, such as embed_batch_size.
    """
    name = f"dpr-jax/{encoder.fingerprint[:12]}"
    super().__init__(**{"model_name": name, **options})
    self._encoder = encoder

  @classmethod
  def class_name(cls) -> str:
    """Name of the class in LlamaIndex's stored settings."""
    return "DprEmbedding"

  def _get_query_embedding(self, query: str) -> list[float]:
    return self._encoder.embed_query(query)

  async def _aget_query_embedding(self, query: str) -> list[float]:
    return await self._encoder.aembed_query(query)

  def _get_text_embedding(self, text: str) -> list[float]:
    return self._encoder.embed_documents([text])[0]

  def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
    return self._encoder.embed_documents(texts)

  async def _aget_text_embedding(self, text: str) -> list[float]:
    return await asyncio.to_thread(self._get_text_embedding, text)

  async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
    return await self._encoder.aembed_documents(texts)
