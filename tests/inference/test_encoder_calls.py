"""`Encoder` under other libraries' names gives the vectors of its own."""

import asyncio
import concurrent.futures
import copy
import dataclasses
import io
import multiprocessing
import pickle
import sys

import jax
import numpy as np
import pytest

from dpr_jax.core import errors
from dpr_jax.inference import encoder as encoder_lib
from dpr_jax.models import retriever_model

QUESTIONS = ["where is the city", "who was the king of the sea"]
TEXTS = ["the river", "a city on the river", "the king"]
PASSAGES = [("city", "the river"), ("", "a city"), ("king", "the sea")]


def _encoder(model):
  return encoder_lib.Encoder(model, length_step=48)


@pytest.fixture(scope="module")
def model(tiny_config):
  """Towers that differ: their passage tower has larger matrices."""
  model = retriever_model.start(tiny_config)
  params = dict(model.params)
  params["passage"] = jax.tree.map(
    lambda x: x * 1.5 if x.ndim == 2 else x, params["passage"]
  )
  return dataclasses.replace(model, params=params)


@pytest.fixture(scope="module")
def encoder(model):
  return _encoder(model)


def _shared(tiny_config, **settings):
  config = copy.deepcopy(tiny_config)
  config.model.shared_towers = True
  config.model.update(settings)
  return _encoder(retriever_model.start(config))


@pytest.fixture(scope="module")
def shared(tiny_config):
  return _shared(tiny_config)


@pytest.fixture(scope="module")
def prefixed(tiny_config):
  """E5's prefixes, and unit vectors."""
  return _shared(
    tiny_config,
    question_prefix="query: ",
    passage_prefix="passage: ",
    normalize=True,
  )


@pytest.fixture(scope="module")
def questions(encoder):
  return encoder.encode_questions(QUESTIONS)


@pytest.fixture(scope="module")
def passages(encoder):
  return encoder.encode_passages(TEXTS)


def test_questions_under_every_name(encoder, questions):
  for vectors in (
    encoder.encode_query(QUESTIONS),
    encoder.encode_query(sentences=QUESTIONS),
    encoder.encode_query(QUESTIONS, prompt_name="query", task="query"),
    encoder.encode_queries(QUESTIONS, batch_size=1, show_progress_bar=False),
    encoder.encode(QUESTIONS, prompt_name="query"),
    encoder.encode(QUESTIONS, "question"),
    encoder.encode(QUESTIONS, input_type="search_query"),
    encoder.encode(QUESTIONS, task_type="RETRIEVAL_QUERY"),
    encoder.encode(QUESTIONS, task="retrieval.query"),
    encoder.encode(np.array(QUESTIONS), prompt_type="query"),
  ):
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, questions)


def test_passages_under_every_name(encoder, passages):
  for vectors in (
    encoder.encode_document(TEXTS),
    encoder.encode_document([{"title": "", "text": text} for text in TEXTS]),
    encoder.encode_corpus([{"text": text} for text in TEXTS]),
    encoder.encode_corpus({"text": TEXTS}, convert_to_tensor=False),
    encoder.encode(TEXTS, prompt_name="document"),
    encoder.encode(TEXTS, prompt_name="passage"),
    encoder.encode(TEXTS, prompt_name="corpus"),
    encoder.encode(TEXTS, input_type="search_document"),
    encoder.encode(iter(TEXTS), task="retrieval.passage"),
  ):
    np.testing.assert_array_equal(vectors, passages)
  wanted = encoder.encode_passages(PASSAGES)
  columns = dict(
    zip(("title", "text"), zip(*PASSAGES, strict=True), strict=True)
  )
  rows = [dict(zip(("title", "text"), row, strict=True)) for row in PASSAGES]
  for corpus in (columns, rows):
    np.testing.assert_array_equal(encoder.encode_corpus(corpus), wanted)
  assert np.abs(wanted[0] - passages[0]).max() > 1e-3  # the title counts
  assert np.abs(encoder.encode_query(TEXTS) - passages).max() > 1e-3


def test_one_text_is_one_vector(encoder, questions, passages):
  vector = encoder.encode_query(QUESTIONS[0])
  assert vector.shape == (32,)
  np.testing.assert_allclose(vector, questions[0], atol=2e-5)
  for one in (TEXTS[1], {"text": TEXTS[1]}, np.str_(TEXTS[1])):
    vector = encoder.encode_document(one)
    assert vector.shape == (32,)
    np.testing.assert_allclose(vector, passages[1], atol=2e-5)
  assert encoder.encode_query([QUESTIONS[0]]).shape == (1, 32)
  for nothing in (
    encoder.encode_query([]),
    encoder.encode_document([], normalize_embeddings=True),
    encoder.encode_corpus([]),
    encoder.encode_corpus({"title": [], "text": []}),
  ):
    assert nothing.shape == (0, 32)
    assert nothing.dtype == np.float32
  assert encoder.encode_query([], truncate_dim=3).shape == (0, 3)
  assert encoder.embed_documents([]) == []


def test_lists_of_floats(encoder, questions, passages):
  """LangChain's names, and their asynchronous twins."""
  vector = encoder.embed_query(QUESTIONS[1])
  assert {type(value) for value in vector} == {float}
  np.testing.assert_allclose(vector, questions[1], atol=2e-5)
  vectors = encoder.embed_documents(TEXTS)
  assert vectors == passages.tolist()

  async def both():
    return await asyncio.gather(
      encoder.aembed_query(QUESTIONS[1]), encoder.aembed_documents(TEXTS)
    )

  assert asyncio.run(both()) == [vector, vectors]


def test_two_towers_need_a_name(encoder):
  with pytest.raises(errors.InputError) as raised:
    encoder.encode(TEXTS)
  assert str(raised.value) == (
    "prompt_name=None: this model has two towers; say which with"
    " prompt_name='query' or prompt_name='document', or call encode_query or"
    " encode_document"
  )


def test_a_shared_tower_needs_none(shared, prefixed):
  """Unless its prefixes differ; a prompt is put in their place."""
  wanted = shared.encode_passages(TEXTS)
  np.testing.assert_array_equal(shared.encode(TEXTS), wanted)
  np.testing.assert_allclose(shared.encode_query(TEXTS), wanted, atol=2e-5)
  with pytest.raises(
    errors.InputError,
    match=r"puts 'query: ' before questions and 'passage: ' before passages",
  ):
    prefixed.encode(TEXTS)
  by_hand = prefixed.encode([f"query: {text}" for text in TEXTS], prompt="")
  np.testing.assert_allclose(
    by_hand, prefixed.encode_questions(TEXTS), atol=2e-6
  )
  np.testing.assert_allclose(
    prefixed.encode_document(TEXTS, prompt="query: "), by_hand, atol=2e-6
  )
  np.testing.assert_allclose(
    prefixed.encode_query(TEXTS, prompt="passage: "),
    prefixed.encode_passages(TEXTS),
    atol=2e-6,
  )
  assert np.abs(prefixed.encode_document(TEXTS) - by_hand).max() > 1e-3


def test_a_prompt_that_is_not_pooled(prefixed):
  """Only the prefix that the program leaves out of the pooling is taken."""
  head = dataclasses.replace(prefixed.model.head, pools_prefix=False)
  encoder = _encoder(dataclasses.replace(prefixed.model, head=head))
  np.testing.assert_array_equal(
    encoder.encode_query(TEXTS, prompt="query: "), encoder.encode_query(TEXTS)
  )
  with pytest.raises(errors.InputError) as raised:
    encoder.encode_query(TEXTS, prompt="")
  assert str(raised.value) == (
    "prompt='': this model does not pool its prefix, and has 'query: '; load it"
    " with question_prefix="
  )


def test_shorter_and_unit_vectors(encoder, prefixed, passages):
  shorter = encoder.encode_document(TEXTS, truncate_dim=5)
  np.testing.assert_array_equal(shorter, passages[:, :5])
  unit = encoder.encode_document(TEXTS, normalize_embeddings=True)
  norms = np.sqrt((passages**2).sum(1, keepdims=True))
  np.testing.assert_allclose(unit, passages / norms, rtol=1e-5)
  both = encoder.encode_document(
    TEXTS, truncate_dim=5, normalize_embeddings=True
  )
  norms = np.sqrt((shorter**2).sum(1, keepdims=True))
  np.testing.assert_allclose(both, shorter / norms, rtol=1e-5)
  # A model of unit vectors keeps their length.
  vectors = prefixed.encode_query(TEXTS, truncate_dim=5)
  np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
  first = prefixed.encode_questions(TEXTS)[:, :5]
  np.testing.assert_allclose(
    vectors, first / np.linalg.norm(first, axis=1, keepdims=True), rtol=1e-5
  )


def test_forms_of_the_result(encoder, passages):
  rows = encoder.encode_document(TEXTS, convert_to_numpy=False)
  assert isinstance(rows, list)
  np.testing.assert_array_equal(rows, passages)
  torch = pytest.importorskip("torch", reason="no torch: extra `parity`")
  tensor = encoder.encode_document(TEXTS, convert_to_tensor=True)
  assert tensor.dtype == torch.float32
  np.testing.assert_array_equal(tensor.numpy(), passages)
  one = encoder.encode_document(TEXTS[0], convert_to_tensor=True)
  assert one.shape == (32,)
  empty = encoder.encode_document([], convert_to_tensor=True)
  assert empty.shape == (0, 32)


def test_tensors_without_torch(encoder, monkeypatch):
  monkeypatch.setitem(sys.modules, "torch", None)
  with pytest.raises(errors.InputError, match="needs torch, which is not inst"):
    encoder.encode_query("Ulm", convert_to_tensor=True)
  assert encoder.similarity([1.0, 2.0], [3.0, 4.0]).tolist() == [[11.0]]


def test_similarity(encoder):
  first = [[1.0, 2.0], [3.0, 4.0]]
  second = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], np.float64)
  scores = encoder.similarity(first, second)
  assert scores.dtype == np.float32
  assert scores.tolist() == [[1, 2, 3], [3, 4, 7]]
  assert encoder.similarity(first[0], second).tolist() == [[1, 2, 3]]
  assert encoder.similarity_pairwise(first, second[:2]).tolist() == [1, 4]
  assert encoder.similarity_fn_name == "dot"
  with pytest.raises(errors.InputError, match=r"shape \(3, 2\) differs from"):
    encoder.similarity_pairwise(first, second)
  with pytest.raises(errors.InputError, match="embeddings2: vectors of width"):
    encoder.similarity(first, [[1.0]])
  with pytest.raises(errors.InputError, match="embeddings1='Ulm': must be"):
    encoder.similarity("Ulm", second)
  with pytest.raises(errors.InputError, match="embeddings2: has 3 dimensions"):
    encoder.similarity(first, [first])
  torch = pytest.importorskip("torch", reason="no torch: extra `parity`")
  scores = encoder.similarity(torch.tensor(first), second)
  assert isinstance(scores, torch.Tensor)
  assert scores.tolist() == [[1, 2, 3], [3, 4, 7]]
  pairs = encoder.similarity_pairwise(first, torch.tensor(second[:2]))
  assert pairs.tolist() == [1, 4]


def test_sizes(encoder):
  assert encoder.get_embedding_dimension() == 32
  assert encoder.get_sentence_embedding_dimension() == 32
  assert encoder.max_seq_length == 48


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"batchsize": 3}, "batchsize: not an argument of encode; it has inputs, "),
    ({"batch_size": 0}, "batch_size=0: must be at least 1"),
    ({"batch_size": "8"}, "batch_size='8': must be a whole number"),
    ({"show_progress_bar": 1}, "show_progress_bar=1: must be True or False"),
    ({"convert_to_numpy": None}, "convert_to_numpy=None: must be True or"),
    ({"convert_to_tensor": "yes"}, "convert_to_tensor='yes': must be True or"),
    ({"normalize_embeddings": 1}, "normalize_embeddings=1: must be True or"),
    ({"truncate_dim": 0}, "truncate_dim=0: must be at least 1"),
    ({"truncate_dim": 33}, "truncate_dim=33: the vectors have 32 dimensions"),
    ({"output_value": None}, "output_value=None: must be 'sentence_embedding'"),
    ({"precision": "int8"}, "precision='int8': must be 'float32'; quantize"),
    ({"device": "cuda"}, "device='cuda': must be None; all devices of this"),
    ({"pool": {}}, "pool={}: must be None; all devices"),
    ({"chunk_size": 5}, "chunk_size=5: must be None; all devices"),
    ({"prompt": 5}, "prompt=5: must be a text"),
    (
      {"prompt_name": "s2p"},
      "prompt_name='s2p': must be 'query' or 'document'",
    ),
    ({"prompt_name": "document"}, "prompt_name='document': these texts are q"),
    ({"task": "passage"}, "task='passage': these texts are questions, because"),
    ({"input_type": 5}, "input_type=5: must be a text"),
    ({"sentences": ["Ulm"]}, "sentences: the older name of inputs, which is"),
  ],
)
def test_bad_options_are_refused_by_name(encoder, options, message):
  with pytest.raises(errors.InputError) as raised:
    encoder.encode_query(QUESTIONS, **options)
  assert str(raised.value).startswith(message)
  assert "\n" not in str(raised.value)


def test_bad_corpora_are_refused(encoder):
  with pytest.raises(errors.InputError, match="must be a list of 2 texts"):
    encoder.encode_corpus({"title": ["Ulm"], "text": ["a", "b"]})
  with pytest.raises(errors.InputError, match="must be a list of 2 texts"):
    encoder.encode_corpus({"title": "ab", "text": ["a", "b"]})
  with pytest.raises(errors.InputError, match=r"corpus\[1\]="):
    encoder.encode_corpus([{"text": "Ulm"}, {"title": "Ulm"}])


def test_vectors_are_never_nan(encoder, model):
  """Texts without words are; damaged weights are refused."""
  strange = ["", " ", "\x00", "\u0301" * 5000, "☃" * 5000, "[PAD]"]
  for vectors in (
    encoder.encode_query(strange, normalize_embeddings=True),
    encoder.encode_document(strange, truncate_dim=1, normalize_embeddings=True),
  ):
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
  params = jax.tree.map(lambda x: x * np.nan, model.params)
  broken = _encoder(dataclasses.replace(model, params=params))
  with pytest.raises(
    errors.InputError, match=r"inputs\[0\]: its vector is not"
  ):
    broken.encode_query(QUESTIONS)


def test_a_bar_on_a_terminal(encoder, monkeypatch):
  """For long calls, or where it is wanted; none elsewhere."""
  monkeypatch.delenv("TQDM_DISABLE", raising=False)

  class Terminal(io.StringIO):
    def isatty(self):
      return True

  def shown(texts, **options):
    monkeypatch.setattr(sys, "stderr", Terminal())
    encoder.encode_query(texts, **options)
    return sys.stderr.getvalue()

  assert shown(QUESTIONS) == ""
  assert "2/2" in shown(QUESTIONS, show_progress_bar=True)
  assert "256/256" in shown(QUESTIONS * 128)
  assert shown(QUESTIONS * 128, show_progress_bar=False) == ""


def test_several_threads(encoder, questions, passages):
  def call(number):
    if number % 2:
      return encoder.encode_query(QUESTIONS)
    return encoder.encode_document(TEXTS)

  with concurrent.futures.ThreadPoolExecutor(4) as threads:
    for number, vectors in enumerate(threads.map(call, range(8))):
      wanted = questions if number % 2 else passages
      np.testing.assert_array_equal(vectors, wanted)


def test_a_pickle_holds_the_model(model, encoder, questions):
  small = encoder_lib.Encoder(model, tokens_per_core=96, length_step=24)
  again = pickle.loads(pickle.dumps(small))
  assert again.fingerprint == small.fingerprint
  assert again.settings == small.settings
  vectors = again.encode_query(QUESTIONS)
  np.testing.assert_array_equal(vectors, small.encode_query(QUESTIONS))
  assert again.work.padded_tokens == small.work.padded_tokens
  np.testing.assert_array_equal(
    copy.deepcopy(encoder).encode_query(QUESTIONS), questions
  )
  with pytest.raises(errors.InputError, match="load it there from the workdir"):
    pickle.dumps(encoder.with_params(model.params))


@pytest.mark.processes
def test_spawned_processes_take_an_encoder(encoder, questions):
  """As `multiprocessing.Pool` and data loaders hand it on."""
  with multiprocessing.get_context("spawn").Pool(1) as pool:
    vectors = pool.apply(encoder.encode_query, (QUESTIONS,))
  np.testing.assert_allclose(vectors, questions, atol=2e-5)
