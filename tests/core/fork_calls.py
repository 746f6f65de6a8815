"""Loads every kind of object, uses it, and uses it again in a forked child.

Run in a process of its own: what hundreds of other tests leave behind in theirs
(threads, compiled programs) is nothing that a user's process has, and has made
a child die of a segmentation fault.
"""

import json
import runpy

import faiss
import numpy as np

from dpr_jax.core import forks
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import prepare, records
from dpr_jax.index import exact_search
from dpr_jax.inference import encoder as encoder_lib
from dpr_jax.models import reader_model
from dpr_jax.reading import answerer as answerer_lib
from dpr_jax.reading import read as read_lib
from dpr_jax.retrieval import api, bm25, dense_rankers
from tests.faults import children

USED = "used"


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


def _calls(config, workdir):
  """A function that uses an object, by the object's name."""
  config.reader.length, config.reader.question_length = 64, 16
  config.reader.overlap = 8
  encoder = encoder_lib.Encoder.load(config.model.checkpoint)
  reader = read_lib.make_engine(config, reader_model.start(config))
  index = faiss.IndexFlatIP(32)
  index.add(np.eye(3, 32, dtype=np.float32))
  dense = dense_rankers.DenseRanker(encoder, index)
  compared = exact_search.ExactSearch(_Vectors(np.eye(3, 32)))
  exact = dense_rankers.ExactRanker(encoder, compared)
  passages = prepare.open_passages(workdir)
  lexical = api.Retriever(bm25.build_or_load(config, workdir), passages)
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
    return USED

  return children.in_child(use, seconds=20)[0]


def main(config_file: str, workdir: str) -> None:
  """Prints what every call gives in a child, as a line of JSON, by name."""
  calls = _calls(
    runpy.run_path(config_file)["get_config"](), workdir_lib.Workdir(workdir)
  )
  for call in calls.values():
    call()  # works here
  print(json.dumps({name: _in_child(call) for name, call in calls.items()}))
