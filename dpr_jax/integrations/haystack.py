"""Haystack: `Encoder` as its embedders of questions and of documents.

Haystack's pipelines hold components that can be stored, so an embedder is made
from a folder and loads it in `warm_up`; one that is made from an `Encoder`
shares it, and cannot be stored.
"""

import dataclasses
import os
from typing import Any

import haystack

from dpr_jax.core import errors
from dpr_jax.inference import encoder as encoder_lib


class _Embedder:
  """What both embedders share: the encoder, and the folder it comes from."""

  def __init__(
    self,
    encoder: encoder_lib.Encoder | str | os.PathLike,
    which: str = "best",
  ):
    """Keeps an encoder, or where to load it from.

    Args:
      encoder: an encoder, or the folder of `Encoder.load`.
      which: model of a workdir, see `Encoder.load`.
    """
    self._folder, self._which, self._encoder = encoder, which, None
    if isinstance(encoder, encoder_lib.Encoder):
      self._folder, self._encoder = None, encoder

  def warm_up(self) -> None:
    """Loads the encoder, once."""
    if self._encoder is None:
      self._encoder = encoder_lib.Encoder.load(self._folder, self._which)

  def to_dict(self) -> dict[str, Any]:
    """The arguments, for `Pipeline.dumps`.

    Raises:
      InputError: it was made from an encoder, not from a folder.
    """
    if self._folder is None:
      raise errors.InputError(
        f"{type(self).__name__}(encoder): an Encoder cannot be stored in a"
        " pipeline; pass its folder"
      )
    return haystack.default_to_dict(
      self, encoder=os.fspath(self._folder), which=self._which
    )

  @classmethod
  def from_dict(cls, data: dict[str, Any]) -> "_Embedder":
    """The embedder that `to_dict` described."""
    return haystack.default_from_dict(cls, data)


@haystack.component
class DprTextEmbedder(_Embedder):
  """Embeds a question."""

  @haystack.component.output_types(embedding=list[float])
  def run(self, text: str) -> dict[str, list[float]]:
    """The vector of a question, as {"embedding": vector}."""
    self.warm_up()
    return {"embedding": self._encoder.embed_query(text)}


@haystack.component
class DprDocumentEmbedder(_Embedder):
  """Embeds documents; their titles are in `meta["title"]`."""

  @haystack.component.output_types(documents=list[haystack.Document])
  def run(
    self, documents: list[haystack.Document]
  ) -> dict[str, list[haystack.Document]]:
    """Copies of the documents with vectors, as {"documents": copies}.

    Raises:
      InputError: a document has no text.
    """
    self.warm_up()
    for number, document in enumerate(documents):
      if document.content is None:
        raise errors.InputError(
          f"documents[{number}]: has no text in `content`; leave it out"
        )
    vectors = self._encoder.encode_passages(
      [
        (document.meta.get("title") or "", document.content)
        for document in documents
      ]
    )
    return {
      "documents": [
        dataclasses.replace(document, embedding=vector)
        for document, vector in zip(documents, vectors.tolist(), strict=True)
      ]
    }
