"""LlamaIndex takes an `Encoder` through `DprEmbedding`."""

import asyncio
import importlib

import numpy as np
import pytest

from tests.peers.conftest import DEPTH, QUESTIONS

pytestmark = pytest.mark.compiles


@pytest.fixture
def ours(library):
  library("llama_index.core")
  return importlib.import_module("dpr_jax.integrations.llama_index")


def test_hits_of_an_index(world, library, ours):
  core = library("llama_index.core")
  schema = library("llama_index.core.schema")
  model = ours.DprEmbedding(world.encoder, embed_batch_size=4)
  nodes = [
    schema.TextNode(id_=name, text=row["text"])
    for name, row in world.corpus.items()
  ]
  index = core.VectorStoreIndex(nodes, embed_model=model)
  retriever = index.as_retriever(similarity_top_k=DEPTH)
  for number, question in enumerate(QUESTIONS.values()):
    for found in (
      retriever.retrieve(question),
      asyncio.run(retriever.aretrieve(question)),
    ):
      ids = [hit.node.node_id for hit in found]
      assert ids == world.hits(titles=False)[number]
      wanted = np.sort(world.scores(titles=False)[number])[::-1][:DEPTH]
      np.testing.assert_allclose(
        [hit.score for hit in found], wanted, atol=1e-5
      )


def test_vectors(world, ours):
  model = ours.DprEmbedding(world.encoder)
  texts = [row["text"] for row in world.corpus.values()]
  np.testing.assert_allclose(
    model.get_text_embedding_batch(texts), world.untitled, atol=1e-5
  )
  np.testing.assert_allclose(
    asyncio.run(model.aget_text_embedding_batch(texts)),
    world.untitled,
    atol=1e-5,
  )
  np.testing.assert_allclose(
    model.get_text_embedding(texts[0]), world.untitled[0], atol=1e-5
  )
  np.testing.assert_allclose(
    model.get_query_embedding(QUESTIONS["q1"]), world.questions[1], atol=1e-5
  )
  assert model.to_payload()["class_name"] == "DprEmbedding"
  assert model.model_name == f"dpr-jax/{world.encoder.fingerprint[:12]}"
