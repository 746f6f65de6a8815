"""What retrieval refuses, and with which words."""

import pathlib

import numpy as np
import pytest

from dpr_jax.core import errors
from dpr_jax.index import faiss_stage
from dpr_jax.retrieval import api, bm25


@pytest.mark.parametrize("methods", [["hybri"], ["bm25", "dens"], [""]])
def test_unknown_method_is_refused(ready, methods):
  with pytest.raises(
    errors.InputError, match="must be one of bm25, dense, dense-start"
  ):
    ready.retrieve(methods=methods)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".x", "a b", "-x"])
def test_bad_name_is_refused(ready, name):
  with pytest.raises(errors.InputError, match="--name="):
    ready.retrieve(name=name)


def test_bad_depth_is_refused(ready):
  ready.config.retrieve.depth = 0
  with pytest.raises(errors.InputError, match=r"retrieve\.depth=0"):
    ready.retrieve()


def test_missing_index_is_refused(world):
  with pytest.raises(errors.InputError, match="dpr-jax index"):
    world.retrieve(methods=["dense"])


def test_vectors_of_another_model_are_refused(world):
  world.embed()
  faiss_stage.index(world.config, world.workdir)
  before = faiss_stage.load_index(world.workdir.index("Flat"))[1]
  world.embed(fingerprint="some-other-model")
  with pytest.raises(errors.InputError) as raised:
    faiss_stage.index(world.config, world.workdir)  # before anything is built
  for named in ("passages holds", "model some-other-m", "model model-1"):
    assert named in str(raised.value)
  assert faiss_stage.load_index(world.workdir.index("Flat"))[1] == before


def test_an_index_of_another_model_is_refused(world, monkeypatch):
  """Such as an older version has built."""
  monkeypatch.setattr(faiss_stage, "_encoder", lambda *_: None)
  world.embed(fingerprint="some-other-model")
  faiss_stage.index(world.config, world.workdir)
  with pytest.raises(errors.InputError, match="vectors of model some-other-m"):
    world.retrieve(methods=["dense"])
  with pytest.raises(errors.InputError, match="encoded by model model-1"):
    api.Retriever.load(world.workdir.root, factory="Flat")


def test_index_of_other_vectors_is_refused(ready):
  ready.embed(array=np.zeros((len(ready.passages), 16)))
  with pytest.raises(errors.InputError, match="made from other vectors"):
    ready.retrieve(methods=["dense"])


def test_index_of_other_data_is_refused(ready):
  ready.prepare("2")
  with pytest.raises(errors.InputError, match="was not made from the 9"):
    ready.retrieve(methods=["dense"])


def test_corpus_of_another_size_is_refused(ready):
  ready.passages.pop()
  with pytest.raises(errors.InputError, match="was not made from the 8"):
    ready.retrieve(methods=["dense"])
  bm25.build_or_load(ready.config, ready.workdir)
  ready.passages.pop()
  with pytest.raises(errors.InputError, match="8 passages, the corpus 7"):
    ready.retrieve(methods=["bm25"])


def test_retriever_refuses_what_is_not_there(world):
  root = world.workdir.root
  with pytest.raises(errors.InputError, match="must be one of bm25"):
    api.Retriever.load(root, "hybri")
  with pytest.raises(errors.InputError, match="dpr-jax index"):
    api.Retriever.load(root)
  with pytest.raises(errors.InputError, match="dpr-jax index"):
    api.Retriever.load(pathlib.Path(root), factory="Flat")
  with pytest.raises(errors.InputError, match="dpr-jax mine"):
    api.Retriever.load(root, "bm25")


def test_exact_refuses_other_vectors(ready):
  ready.embed(fingerprint="some-other-model")
  with pytest.raises(errors.InputError, match="vectors of model some-other-m"):
    ready.retrieve(methods=["exact"])
  ready.embed(array=np.ones((4, 16)))
  with pytest.raises(errors.InputError, match="4 vectors for the 9 passages"):
    ready.retrieve(methods=["exact"])
  ready.prepare("2")
  with pytest.raises(errors.InputError, match="not of the passages"):
    ready.retrieve(methods=["exact"])
