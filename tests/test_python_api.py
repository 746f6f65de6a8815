"""What `from dpr_jax import …` gives takes, and what it refuses by name."""

import asyncio
import copy
import inspect
import pathlib
import types

import numpy as np
import pytest

import dpr_jax
from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.data import arguments, records
from dpr_jax.inference import passage_reader
from dpr_jax.models import reader_model, retriever_model
from dpr_jax.retrieval import result_files

NO_TEXT = [None, 5, 2.5, True, b"Ulm", ["Ulm"], ("Ulm",), {"Ulm"}, object()]
NO_TEXTS = [
  *(None, 5, b"Ulm", {"Ulm"}, {"question": "Ulm"}, np.array(5), np.zeros(2)),
  *([None], ["Ulm", 5], [1, 2], [b"Ulm"], [["Ulm"]], [("Ulm", "Ulm")], [[]]),
  [{"question": "Ulm"}],
]
NO_PASSAGES = [
  *(None, 5, b"Ulm", {"Ulm"}, np.zeros(2), [None], [1, 2], [b"Ulm"], [[]]),
  *([["Ulm"]], [("a", "b", "c")], [("Ulm", None)], [("Ulm", 5)], [(b"a", "b")]),
  *({}, {"title": "Ulm"}, [{"title": "Ulm"}], [{"text": None}]),
  *([{"title": None, "text": "x"}], [["ab", ["cd"]]], [{"Ulm", "city"}]),
  *([types.SimpleNamespace(title="Ulm", text=None)], ("Ulm", "Ulm is a city")),
]
NO_COUNT = [None, 0, -1, True, np.True_, 2.5, np.float32(2), "2", b"2", [2], ""]
NO_VECTORS = [
  *(
    None,
    5,
    "Ulm",
    object(),
    [["Ulm"]],
    [[1.0], [1.0, 2.0]],
    np.zeros((1, 1, 2)),
  ),
]
NO_PATH = [None, 5, b"/tmp", "", ["/tmp"], True]
NO_CONFIG = [5, "config.py", {"k": 1}, pathlib.Path("x"), [], False]
PASSAGE = records.Passage("1", "Ulm", "Ulm is a city")


@pytest.fixture(scope="module")
def encoder(tiny_config):
  return dpr_jax.Encoder(retriever_model.start(tiny_config), length_step=48)


@pytest.fixture(scope="module")
def retriever(mined_workdir):
  return dpr_jax.Retriever.load(mined_workdir.root, "bm25")


@pytest.fixture(scope="module")
def engine(tiny_config):
  config = copy.deepcopy(tiny_config)
  config.reader.length, config.reader.question_length = 64, 16
  config.reader.overlap = 8
  reader = reader_model.start(config)
  return passage_reader.PassageReader(reader, length_step=64)


@pytest.fixture(scope="module")
def public(encoder, retriever, engine, mined_workdir, tiny_checkpoint):
  """Every public function, ready to be called, by its full name."""
  answerer = dpr_jax.Answerer(retriever, engine, k=2)
  folder = mined_workdir.root

  def with_defaults(function, **values):
    return lambda **others: function(**{**values, **others})

  return {
    "Encoder": with_defaults(dpr_jax.Encoder, model=encoder.model),
    "Encoder.load": with_defaults(dpr_jax.Encoder.load, folder=tiny_checkpoint),
    "Encoder.encode_questions": encoder.encode_questions,
    "Encoder.encode_passages": encoder.encode_passages,
    "Encoder.encode": with_defaults(
      encoder.encode, inputs="Ulm", prompt_name="query"
    ),
    "Encoder.encode_query": with_defaults(encoder.encode_query, inputs="Ulm"),
    "Encoder.encode_document": with_defaults(
      encoder.encode_document, inputs="Ulm"
    ),
    "Encoder.encode_queries": encoder.encode_queries,
    "Encoder.encode_corpus": encoder.encode_corpus,
    "Encoder.embed_query": encoder.embed_query,
    "Encoder.embed_documents": encoder.embed_documents,
    "Encoder.aembed_query": lambda text: asyncio.run(
      encoder.aembed_query(text)
    ),
    "Encoder.aembed_documents": lambda texts: asyncio.run(
      encoder.aembed_documents(texts)
    ),
    "Encoder.similarity": with_defaults(
      encoder.similarity, embeddings1=[1.0], embeddings2=[1.0]
    ),
    "Encoder.similarity_pairwise": with_defaults(
      encoder.similarity_pairwise, embeddings1=[1.0], embeddings2=[1.0]
    ),
    "Retriever.load": with_defaults(
      dpr_jax.Retriever.load, workdir_path=folder, method="bm25"
    ),
    "Retriever.search": with_defaults(retriever.search, questions="Ulm"),
    "Answerer": with_defaults(
      dpr_jax.Answerer, retriever=retriever, engine=engine
    ),
    "Answerer.load": with_defaults(dpr_jax.Answerer.load, folder=folder),
    "Answerer.ask": answerer.ask,
  }


# By function and argument: what is refused.
REFUSED = {
  ("Encoder", "tokens_per_core"): [each for each in NO_COUNT if each != 0],
  ("Encoder", "length_step"): NO_COUNT,
  ("Encoder.load", "folder"): NO_PATH,
  ("Encoder.load", "which"): [*NO_TEXT, "newest"],
  ("Encoder.load", "question"): [*NO_PATH[1:], "/tmp"],  # besides a folder
  ("Encoder.load", "passage"): [*NO_PATH[1:], "/tmp"],
  ("Encoder.load", "pooling"): [*NO_TEXT[1:], "median"],
  ("Encoder.load", "normalize"): [0, 1.0, "yes", [], object()],
  ("Encoder.load", "title"): [*NO_TEXT[1:], "both"],
  ("Encoder.load", "question_prefix"): NO_TEXT[1:],
  ("Encoder.load", "passage_prefix"): NO_TEXT[1:],
  ("Encoder.load", "question_length"): [*NO_COUNT[1:], 2],
  ("Encoder.load", "passage_length"): [*NO_COUNT[1:], 2],
  ("Encoder.encode_questions", "questions"): NO_TEXTS,
  ("Encoder.encode_passages", "passages"): NO_PASSAGES,
  ("Encoder.encode", "inputs"): NO_TEXTS,
  ("Encoder.encode_query", "inputs"): NO_TEXTS,
  ("Encoder.encode_document", "inputs"): NO_PASSAGES,
  **{
    (f"Encoder.{function}", argument): [*NO_TEXT[1:], *bad]
    for function in ("encode", "encode_query", "encode_document")
    for argument, bad in (("prompt_name", ["", "Ulm"]), ("prompt", []))
  },
  ("Encoder.encode_queries", "queries"): NO_TEXTS,
  ("Encoder.encode_corpus", "corpus"): NO_PASSAGES,
  ("Encoder.embed_query", "text"): NO_TEXT,
  ("Encoder.embed_documents", "texts"): NO_TEXTS,
  ("Encoder.aembed_query", "text"): NO_TEXT,
  ("Encoder.aembed_documents", "texts"): NO_TEXTS,
  **{
    (f"Encoder.{function}", argument): NO_VECTORS
    for function in ("similarity", "similarity_pairwise")
    for argument in ("embeddings1", "embeddings2")
  },
  ("Retriever.load", "workdir_path"): NO_PATH,
  ("Retriever.load", "method"): [*NO_TEXT, "", "best"],
  ("Retriever.load", "factory"): NO_TEXT,
  ("Retriever.load", "config"): NO_CONFIG,
  ("Retriever.search", "questions"): NO_TEXTS,
  ("Retriever.search", "k"): NO_COUNT,
  ("Answerer", "k"): NO_COUNT,
  ("Answerer", "weight"): [None, "1", True, float("nan"), [1.0]],
  ("Answerer.load", "folder"): NO_PATH,
  ("Answerer.load", "method"): NO_TEXT,
  ("Answerer.load", "k"): NO_COUNT,
  ("Answerer.load", "config"): NO_CONFIG,
  ("Answerer.ask", "question"): [*NO_TEXT, (each for each in "Ulm")],
}
# Objects that other code of ours makes; the keywords of `encode` are tried in
# tests/inference/test_encoder_calls.py.
MADE_BY_US = {
  *(
    (f"Encoder.encode{name}", "options") for name in ("", "_query", "_queries")
  ),
  *((f"Encoder.encode{name}", "options") for name in ("_document", "_corpus")),
  *(("Encoder", "model"), ("Encoder", "params"), ("Encoder.load", "options")),
  *(("Retriever", "ranker"), ("Retriever", "passages")),
  *(("Answerer", "retriever"), ("Answerer", "engine")),
}
# Functions that take token ids and parameters: of `embed` and of training.
OF_OTHER_STAGES = {"with_params", "collect", "stream", "tiles", "widths"}


def _public_arguments():
  for name in ("Encoder", "Retriever", "Answerer"):
    kind = getattr(dpr_jax, name)
    for function, value in inspect.getmembers(kind, callable):
      if function == "__init__":
        full = name
      elif function.startswith("_") or function in OF_OTHER_STAGES:
        continue
      else:
        full = f"{name}.{function}"
      for argument in inspect.signature(value).parameters:
        if argument != "self":
          yield full, argument


def test_every_public_argument_is_tried():
  assert {*_public_arguments()} == {*REFUSED} | MADE_BY_US


@pytest.mark.parametrize(("function", "argument"), REFUSED)
def test_wrong_values_are_refused_by_name(public, function, argument):
  for value in REFUSED[function, argument]:
    with pytest.raises(errors.InputError) as raised:
      public[function](**{argument: value})
    said = str(raised.value)
    if argument == "method" and isinstance(value, str):
      assert "must be one of bm25, dense" in said
    else:
      assert said.startswith(f"{argument}"), (value, said)
      assert "\n" not in said
      assert len(said) < 200


def test_a_wrong_item_is_named_by_its_number(encoder):
  with pytest.raises(errors.InputError, match=r"questions\[1\]=5: must be a t"):
    encoder.encode_questions(["Ulm", 5])
  with pytest.raises(errors.InputError, match=r"passages\[2\]=None: a passage"):
    encoder.encode_passages([PASSAGE, ("a", "b"), None])
  with pytest.raises(errors.InputError, match="one passage or two"):
    encoder.encode_passages(("Ulm", "Ulm is a city"))


def test_one_text_is_one_row(encoder):
  """In every form that holds texts."""
  wanted = encoder.encode_questions(["Where is Ulm?", "Ulm"])
  assert wanted.shape == (2, 32)
  one = encoder.encode_questions("Where is Ulm?")
  assert one.shape == (1, 32)
  np.testing.assert_allclose(one[0], wanted[0], atol=1e-5)
  assert encoder.encode_questions([]).shape == (0, 32)
  texts = ["Where is Ulm?", "Ulm"]
  for form in (
    tuple(texts),
    (each for each in texts),
    np.array(texts),
    np.array(texts, object),
    dict.fromkeys(texts).keys(),
  ):
    np.testing.assert_array_equal(encoder.encode_questions(form), wanted)
  np.testing.assert_array_equal(
    encoder.encode_questions(np.str_("Ulm")),
    [encoder.encode_questions("Ulm")[0]],
  )


def test_one_passage_in_every_form(encoder):
  wanted = encoder.encode_passages([PASSAGE])
  assert wanted.shape == (1, 32)
  pair, mapping = ("Ulm", "Ulm is a city"), {"title": "Ulm"}
  mapping["text"] = "Ulm is a city"
  hit = result_files.Hit("1", *pair, 1.5)
  for form in (
    *([pair], [list(pair)], (pair,), [mapping], mapping, PASSAGE, hit, [hit]),
    *(iter([PASSAGE]), [mapping | {"id": "7", "score": 0.5}]),
  ):
    np.testing.assert_array_equal(encoder.encode_passages(form), wanted)
  untitled = encoder.encode_passages([("", "Ulm is a city")])
  assert np.abs(untitled - wanted).max() > 1e-3
  for form in ("Ulm is a city", ["Ulm is a city"], [{"text": "Ulm is a city"}]):
    np.testing.assert_array_equal(encoder.encode_passages(form), untitled)
  assert encoder.encode_passages([]).shape == (0, 32)
  assert encoder.encode_passages(["ab"]).shape == (1, 32)
  letters = encoder.encode_passages([("a", "b")])
  assert np.abs(encoder.encode_passages(["ab"]) - letters).max() > 1e-3


def test_whole_numbers_of_every_kind(retriever, engine):
  wanted = retriever.search("Where is Ulm?", k=2)
  assert len(wanted[0]) == 2
  for k in (np.int64(2), np.uint8(2), np.array(2)):
    assert retriever.search(["Where is Ulm?"], k=k) == wanted
  assert len(retriever.search("Where is Ulm?", k=10**30)[0]) > 2
  assert retriever.search(iter(["Where is Ulm?"]), 2) == wanted
  assert retriever.search([]) == []
  answerer = dpr_jax.Answerer(retriever, engine, np.int64(2), np.float32(0.5))
  assert answerer.ask(np.str_("Where is Ulm?")).rank in (1, 2)


def test_a_config_is_taken(mined_workdir):
  config = config_lib.base_config()
  found = dpr_jax.Retriever.load(str(mined_workdir.root), "bm25", config=config)
  assert len(found.search("Ulm")) == 1
  assert arguments.config(config) is config
