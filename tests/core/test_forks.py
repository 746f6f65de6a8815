"""What was loaded before fork() says so in the child; BM25 works there."""

import faiss
import numpy as np
import pytest

from dpr_jax.core import forks
from dpr_jax.data import prepare, records
from dpr_jax.index import exact_search
from dpr_jax.inference import encoder as encoder_lib
from dpr_jax.reading import answerer as answerer_lib
from dpr_jax.reading import read as read_lib
from dpr_jax.retrieval import api, bm25, dense_rankers
from tests.faults import children

pytestmark = [pytest.mark.compiles, pytest.mark.processes]


class _Vectors:
  """Stands for vector_shards.Vectors."""

  manifest: dict = {}
  dim = 32

  def __init__(self, array):
    self._array = array.astype(np.float32)

  def __len__(self):
    return len(self._array)

  def blocks(self, rows):
    yield 0, self._array

  def take(self, rows):
    return self._array[rows]


@pytest.fixture(scope="module")
def loaded(tiny_config, tiny_checkpoint, mined_workdir):
  """Every kind of object, and a call that uses it; used once by the parent."""
  import copy

  from dpr_jax.models import reader_model

  config = copy.deepcopy(tiny_config)
  config.reader.length, config.reader.question_length = 64, 16
  config.reader.overlap = 8
  encoder = encoder_lib.Encoder.load(tiny_checkpoint)
  reader = read_lib.make_engine(config, reader_model.start(config))
  index = faiss.IndexFlatIP(32)
  index.add(np.eye(3, 32, dtype=np.float32))
  dense = dense_rankers.DenseRanker(encoder, index)
  compared = exact_search.ExactSearch(_Vectors(np.eye(3, 32)))
  exact = dense_rankers.ExactRanker(encoder, compared)
  passages = prepare.open_passages(mined_workdir)
  lexical = api.Retriever(bm25.build_or_load(config, mined_workdir), passages)
  answerer = answerer_lib.Answerer(lexical, reader, k=2)
  question = ["where is the dragon"]
  passage = records.Passage("1", "Ulm", "a city")
  return {
    "Encoder": lambda: encoder.encode_questions(question),
    "Encoder of others": lambda: encoder.with_params(
      encoder.model.params
    ).encode_passages([passage]),
    "PassageReader": lambda: reader.read(question, [[passage]]),
    "DenseRanker": lambda: dense.search(question, 2),
    "ExactRanker": lambda: exact.search(question, 2),
    "Retriever": lambda: api.Retriever(dense, passages).search(question, 2),
    "Answerer": lambda: answerer.ask(question[0]),
    "bm25": lambda: lexical.search(question, 2),
  }


def _in_child(call):
  def use():
    try:
      call()
    except forks.ForkError as error:
      return str(error)
    return "used"

  return children.in_child(use, seconds=20)[0]


@pytest.mark.parametrize(
  ("name", "kind"),
  [
    ("Encoder", "Encoder"),
    ("PassageReader", "PassageReader"),
    ("DenseRanker", "DenseRanker"),
    ("ExactRanker", "ExactRanker"),
    ("Retriever", "DenseRanker"),
    ("Answerer", "PassageReader"),
  ],
)
def test_used_in_a_child(loaded, name, kind):
  """At once and clearly, where it would hang."""
  loaded[name]()  # works here
  message = _in_child(loaded[name])
  assert f"this {kind} was loaded in process" in message
  assert "load it in the child, or start processes with" in message


def test_bm25_works_in_a_child(loaded):
  assert _in_child(loaded["bm25"]) == "used"


def test_the_same_process_may_go_on():
  """Also a thread of it."""
  import threading

  home, errors = forks.Home(), []

  def check():
    try:
      home.check(home)
    except forks.ForkError as error:
      errors.append(error)

  thread = threading.Thread(target=check)
  thread.start()
  thread.join()
  assert not errors
