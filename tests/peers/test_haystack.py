"""Haystack's pipelines take an `Encoder` through two components."""

import importlib

import numpy as np
import pytest

from dpr_jax.core import errors
from tests.peers.conftest import DEPTH, QUESTIONS

pytestmark = pytest.mark.compiles


@pytest.fixture
def ours(library):
  library("haystack")
  return importlib.import_module("dpr_jax.integrations.haystack")


def _documents(world, haystack):
  return [
    haystack.Document(
      id=name, content=row["text"], meta={"title": row["title"]}
    )
    for name, row in world.corpus.items()
  ]


def test_hits_of_a_pipeline(world, library, ours):
  haystack = library("haystack")
  stores = library("haystack.document_stores.in_memory")
  retrievers = library("haystack.components.retrievers.in_memory")
  store = stores.InMemoryDocumentStore(
    embedding_similarity_function="dot_product"
  )
  embedder = ours.DprDocumentEmbedder(world.encoder)
  documents = embedder.run(documents=_documents(world, haystack))["documents"]
  np.testing.assert_allclose(
    [document.embedding for document in documents], world.passages, atol=1e-5
  )
  store.write_documents(documents)
  pipeline = haystack.Pipeline()
  pipeline.add_component("question", ours.DprTextEmbedder(world.encoder))
  pipeline.add_component(
    "retriever",
    retrievers.InMemoryEmbeddingRetriever(
      store, top_k=DEPTH, scale_score=False
    ),
  )
  pipeline.connect("question.embedding", "retriever.query_embedding")
  for number, question in enumerate(QUESTIONS.values()):
    found = pipeline.run({"question": {"text": question}})
    documents = found["retriever"]["documents"]
    assert [document.id for document in documents] == world.hits()[number]
    wanted = np.sort(world.scores(titles=True)[number])[::-1][:DEPTH]
    np.testing.assert_allclose(
      [document.score for document in documents], wanted, atol=1e-5
    )


def test_a_pipeline_is_stored_with_its_folder(library, ours, tiny_checkpoint):
  haystack = library("haystack")
  pipeline = haystack.Pipeline()
  pipeline.add_component("question", ours.DprTextEmbedder(tiny_checkpoint))
  pipeline.add_component("documents", ours.DprDocumentEmbedder(tiny_checkpoint))
  again = haystack.Pipeline.loads(
    pipeline.dumps(), allowed_modules=[ours.__name__]
  )
  assert again.dumps() == pipeline.dumps()
  document = haystack.Document(content="the river")
  found = again.run(
    {"question": {"text": "the river"}, "documents": {"documents": [document]}}
  )
  vector = found["question"]["embedding"]
  assert len(vector) == 32
  (copy,) = found["documents"]["documents"]
  np.testing.assert_allclose(copy.embedding, vector, atol=1e-5)
  assert document.embedding is None


def test_what_cannot_be_done_is_said(world, library, ours):
  haystack = library("haystack")
  with pytest.raises(errors.InputError, match="cannot be stored in a pipeline"):
    ours.DprTextEmbedder(world.encoder).to_dict()
  embedder = ours.DprDocumentEmbedder(world.encoder)
  with pytest.raises(errors.InputError, match=r"documents\[0\]: has no text"):
    embedder.run(documents=[haystack.Document(content=None)])
  assert embedder.run(documents=[]) == {"documents": []}
