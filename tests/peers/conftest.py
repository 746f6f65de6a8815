"""A corpus, an encoder, and our own search, with which peers must agree."""

import copy
import dataclasses
import importlib
import os

import jax
import numpy as np
import pytest

from dpr_jax.evaluation import qrels_measures
from dpr_jax.inference import encoder as encoder_lib
from dpr_jax.models import retriever_model
from tests import retrieval_world

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # before it is imported

QUESTIONS = {
  "q0": "what is the capital of france",
  "q1": "which river flows to the sea",
  "q2": "is milan a city in the north of italy",
}
# Relevant passages of each question; all of them equally.
RELEVANT = {"q0": {"p0", "p8"}, "q1": {"p5"}, "q2": {"p3", "p1"}}
DEPTH = 5


def pytest_collection_modifyitems(items):
  """Their deprecations are not ours to fix."""
  for item in items:
    if "tests/peers/" in item.nodeid:
      item.add_marker(pytest.mark.filterwarnings("default"))


@dataclasses.dataclass
class World:
  """A corpus, questions, and the hits of our own search.

  Attributes:
    encoder: towers that differ, with vectors of length 1.
    corpus: {id: {"title", "text"}}.
    ids: ids of the corpus, in its order.
    questions: vectors of QUESTIONS.
    passages: vectors of the corpus, titles included.
    untitled: vectors of the corpus without titles.
  """

  encoder: encoder_lib.Encoder
  corpus: dict[str, dict[str, str]]
  ids: list[str]
  questions: np.ndarray
  passages: np.ndarray
  untitled: np.ndarray

  def scores(self, titles: bool) -> np.ndarray:
    """Inner products [questions, passages]."""
    passages = self.passages if titles else self.untitled
    return self.questions @ passages.T

  def hits(self, titles: bool = True) -> list[list[str]]:
    """Ids of the DEPTH best passages of each question, best first."""
    order = np.argsort(-self.scores(titles), axis=1)[:, :DEPTH]
    return [[self.ids[column] for column in row] for row in order]

  def ndcg(self, folder, titles: bool = True) -> float:
    """Our nDCG@10 of the whole ranking."""
    order = np.argsort(-self.scores(titles), axis=1)
    lines = [
      f"{question} Q0 {self.ids[column]} {rank + 1} {-rank} ours"
      for question, row in zip(QUESTIONS, order, strict=True)
      for rank, column in enumerate(row)
    ]
    path = folder / "ours.trec"
    path.write_text("\n".join(lines) + "\n")
    grades = {
      question: dict.fromkeys(passages, 1)
      for question, passages in RELEVANT.items()
    }
    found = qrels_measures.measures(path, grades, qrels_measures.Asked())
    return found["nDCG@10"]


@pytest.fixture(scope="session")
def world(tiny_config) -> World:
  config = copy.deepcopy(tiny_config)
  config.model.normalize = True
  model = retriever_model.start(config)
  params = dict(model.params)
  params["passage"] = jax.tree.map(
    lambda x: x * 1.1 if x.ndim == 2 else x, params["passage"]
  )
  model = dataclasses.replace(model, params=params)
  encoder = encoder_lib.Encoder(model, length_step=48)
  # Without the copy of another passage: no two scores are equal.
  rows = [row for row in retrieval_world.TEXTS if row[0] != "p7"]
  return World(
    encoder,
    {name: {"title": title, "text": text} for name, title, text in rows},
    [name for name, _, _ in rows],
    encoder.encode_questions(list(QUESTIONS.values())),
    encoder.encode_passages([(title, text) for _, title, text in rows]),
    encoder.encode_passages([text for _, _, text in rows]),
  )


@pytest.fixture
def library():
  """Imports a peer; the test is skipped where it is not installed.

  An installed one that lacks the module, or that our adapter cannot import,
  fails the test.
  """

  def take(name: str):
    peer = name.partition(".")[0]
    pytest.importorskip(
      peer,
      reason=f"no {peer}: extra `peers`, `make peers`",
      exc_type=ModuleNotFoundError,
    )
    return importlib.import_module(name)

  return take
