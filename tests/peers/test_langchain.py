"""LangChain's stores take an `Encoder`, its chains a `DprRetriever`."""

import asyncio
import importlib

import numpy as np
import pytest

import dpr_jax
from tests.peers.conftest import DEPTH, QUESTIONS

pytestmark = pytest.mark.compiles


@pytest.fixture
def store(world, library):
  vectorstores = library("langchain_core.vectorstores")
  store = vectorstores.InMemoryVectorStore(world.encoder)
  texts = [row["text"] for row in world.corpus.values()]
  assert store.add_texts(texts, ids=world.ids) == world.ids
  return store


def test_hits_of_a_store(world, store):
  for number, question in enumerate(QUESTIONS.values()):
    found = store.similarity_search_with_score(question, k=DEPTH)
    assert [document.id for document, _ in found] == world.hits(False)[number]
    wanted = np.sort(world.scores(titles=False)[number])[::-1][:DEPTH]
    np.testing.assert_allclose([score for _, score in found], wanted, atol=1e-5)
  retriever = store.as_retriever(search_kwargs={"k": 1})
  found = asyncio.run(retriever.ainvoke(QUESTIONS["q0"]))
  assert [document.id for document in found] == world.hits(False)[0][:1]


def test_an_encoder_is_an_embeddings(world, library):
  embeddings = library("langchain_core.embeddings")
  importlib.import_module("dpr_jax.integrations.langchain")
  assert isinstance(world.encoder, embeddings.Embeddings)
  np.testing.assert_allclose(
    world.encoder.embed_documents(["Bananas are yellow."])[0],
    world.untitled[6],
    atol=1e-5,
  )


def test_a_retriever_of_a_workdir(library, mined_workdir):
  library("langchain_core")
  ours = importlib.import_module("dpr_jax.integrations.langchain")
  retriever = dpr_jax.Retriever.load(mined_workdir.root, "bm25")
  theirs = ours.DprRetriever(retriever=retriever, k=3)
  (wanted,) = retriever.search("where is the river", k=3)
  for found in (
    theirs.invoke("where is the river"),
    asyncio.run(theirs.ainvoke("where is the river")),
  ):
    assert [document.id for document in found] == [hit.id for hit in wanted]
    assert [document.page_content for document in found] == [
      hit.text for hit in wanted
    ]
    assert [document.metadata for document in found] == [
      {"title": hit.title, "score": hit.score} for hit in wanted
    ]
  with pytest.raises(ValueError, match="greater than or equal to 1"):
    ours.DprRetriever(retriever=retriever, k=0)
