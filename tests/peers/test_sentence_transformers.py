"""Evaluators of sentence-transformers take an `Encoder` as it is."""

import copy

import numpy as np
import pytest

import dpr_jax
from dpr_jax.models import export
from tests.peers.conftest import QUESTIONS, RELEVANT

pytestmark = pytest.mark.compiles


def test_information_retrieval_evaluator(world, library, tmp_path):
  evaluation = library("sentence_transformers.sentence_transformer.evaluation")
  evaluator = evaluation.InformationRetrievalEvaluator(
    QUESTIONS,
    {name: row["text"] for name, row in world.corpus.items()},
    RELEVANT,
    corpus_chunk_size=4,
    ndcg_at_k=[10],
    accuracy_at_k=[1],
    write_csv=False,
  )
  measures = evaluator(world.encoder)
  wanted = world.ndcg(tmp_path, titles=False)
  assert measures["dot_ndcg@10"] == pytest.approx(wanted, abs=1e-5)
  assert 0.3 < wanted < 1
  assert evaluator.primary_metric == "dot_ndcg@10"
  first = [hits[0] for hits in world.hits(titles=False)]
  right = [hit in RELEVANT[q] for q, hit in zip(QUESTIONS, first, strict=True)]
  assert measures["dot_accuracy@1"] == pytest.approx(np.mean(right))


def test_shorter_vectors(world, library, tmp_path):
  """`truncate_dim` of the evaluator reaches the encoder."""
  evaluation = library("sentence_transformers.sentence_transformer.evaluation")
  evaluator = evaluation.InformationRetrievalEvaluator(
    QUESTIONS,
    {name: row["text"] for name, row in world.corpus.items()},
    RELEVANT,
    truncate_dim=8,
    map_at_k=[100],
    write_csv=False,
  )
  measures = evaluator(world.encoder)

  def shorter(vectors):
    cut = vectors[:, :8]
    return cut / np.linalg.norm(cut, axis=1, keepdims=True)

  scores = shorter(world.questions) @ shorter(world.untitled).T
  precisions = []
  for question, row in zip(QUESTIONS, scores, strict=True):
    ranked = [world.ids[column] for column in np.argsort(-row)]
    ranks = sorted(ranked.index(passage) + 1 for passage in RELEVANT[question])
    precisions.append(np.mean([(n + 1) / rank for n, rank in enumerate(ranks)]))
  wanted = np.mean(precisions)
  assert measures["dot_map@100"] == pytest.approx(wanted, abs=1e-6)


def test_as_their_encode(library, tiny_config, fresh_workdir, tmp_path):
  """The same arguments give the same vectors, from the same folder."""
  sentence_transformers = library("sentence_transformers")
  config = copy.deepcopy(tiny_config)
  config.model.update(shared_towers=True, normalize=True, title="joined")
  (folder,) = export.export(
    config,
    fresh_workdir,
    "sentence-transformers",
    tmp_path / "out",
    "dense-start",
  )
  theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
  ours = dpr_jax.Encoder.load(folder, length_step=48)
  texts = list(QUESTIONS.values())
  for options in (
    {},
    {"batch_size": 1, "normalize_embeddings": True},
    {"truncate_dim": 7, "normalize_embeddings": True},
    {"convert_to_tensor": True},
  ):
    for inputs in (texts, texts[0], [texts[1]]):
      wanted = np.asarray(theirs.encode(inputs, **options))
      found = np.asarray(ours.encode(inputs, **options))
      assert found.shape == wanted.shape
      np.testing.assert_allclose(found, wanted, atol=1e-5)
  matrix = ours.encode(texts)
  np.testing.assert_allclose(
    ours.similarity(matrix, matrix[:2]),
    theirs.similarity(matrix, matrix[:2]),
    atol=1e-5,
  )
  np.testing.assert_allclose(
    ours.similarity_pairwise(matrix, matrix[::-1]),
    theirs.similarity_pairwise(matrix, matrix[::-1].copy()),
    atol=1e-5,
  )
  assert ours.max_seq_length == theirs.max_seq_length
  assert ours.get_embedding_dimension() == theirs.get_embedding_dimension()


def test_as_their_two_towers(library, tiny_config, fresh_workdir, tmp_path):
  """A folder with a router: questions and passages, with their prefixes."""
  sentence_transformers = library("sentence_transformers")
  config = copy.deepcopy(tiny_config)
  config.model.update(
    title="joined", question_prefix="who ", passage_prefix="the "
  )
  folder, form = tmp_path / "out", "sentence-transformers"
  export.export(config, fresh_workdir, form, folder, "dense-start")
  theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
  ours = dpr_jax.Encoder.load(folder, length_step=48)
  texts = list(QUESTIONS.values())
  for options in ({}, {"truncate_dim": 7, "normalize_embeddings": True}):
    for name in ("encode_query", "encode_document"):
      wanted = getattr(theirs, name)(texts, **options)
      found = getattr(ours, name)(texts, **options)
      np.testing.assert_allclose(found, wanted, atol=1e-5)
    wanted = theirs.encode(texts, prompt_name="query", task="query", **options)
    found = ours.encode(texts, prompt_name="query", task="query", **options)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
  difference = ours.encode_query(texts) - ours.encode_document(texts)
  assert np.abs(difference).max() > 1e-3
