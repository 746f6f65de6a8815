"""A workdir with in-memory tables and a model that needs no JAX."""

import pathlib
import sys
import tempfile
import types
import zlib

import numpy as np
import pytest

import dpr_jax.data
import dpr_jax.inference
from dpr_jax.core import config as config_lib
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import records
from dpr_jax.embedding import vector_shards
from dpr_jax.index import faiss_stage, faiss_tune
from dpr_jax.retrieval import bm25, retrievers
from dpr_jax.retrieval import retrieve as retrieve_lib

TEXTS = [
  ("p0", "Paris", "Paris is the capital of France on the Seine."),
  ("p1", "Lyon", "Lyon is a large city of France, not the capital."),
  ("p2", "Rome", "Rome is the capital of Italy."),
  ("p3", "Milan", "Milan is a city of Italy in the north."),
  ("p4", "Berlin", "Berlin is the capital of Germany."),
  ("p5", "Seine", "The river Seine flows through Paris to the sea."),
  ("p6", "Bananas", "Bananas are yellow."),
  ("p7", "Paris", "Paris is the capital of  France on the seine."),
  ("p8", "Capitals", "A capital of a state is where it is governed from."),
]


def bm25_index(passages, **parameters):
  """The BM25 index of passages; its files are gone when they are open."""
  with tempfile.TemporaryDirectory() as folder:
    bm25.write(pathlib.Path(folder), passages, bm25.Parameters(**parameters))
    return bm25.BM25Index.load(folder)


class Table(list):
  """Stands for PassageTable and QuestionTable."""

  def take(self, rows):
    return [self[int(row)] for row in rows]

  def rows_of(self, ids):
    rows = {passage.id: row for row, passage in enumerate(self)}
    return np.array([rows.get(identifier, -1) for identifier in ids], np.int64)

  def blocks(self, size):
    for first in range(0, len(self), size):
      yield first, list(self[first : first + size])


class Vectors:
  """Stands for vector_shards.Vectors."""

  def __init__(self, array, model="model-1", block=4):
    self.array = np.asarray(array, np.float32)
    self.manifest = {"model": model, "shards": []}
    self.dim = self.array.shape[1]
    self._block = block

  def __len__(self):
    return len(self.array)

  def blocks(self, rows):
    size = min(rows, self._block)
    for first in range(0, len(self), size):
      yield first, self.array[first : first + size]

  def take(self, rows):
    return self.array[rows]

  def check(self, command, rows=None):
    """Nothing is on a disk."""


def encode(texts, dim=16):
  """A vector per text from its words, the same in every process."""
  vectors = np.zeros((len(texts), dim), np.float32)
  for i, text in enumerate(texts):
    for word in text.lower().replace(".", " ").split():
      seed = zlib.crc32(word.encode())
      vectors[i] += np.random.default_rng(seed).normal(size=dim)
  return vectors


class Encoder:
  """Stands for encoder.Encoder: `best` and `start` are two models."""

  fingerprints = {"best": "model-1", "start": "model-0"}

  def __init__(self, fingerprint):
    self.fingerprint = fingerprint
    self.settings = {"pooling": "cls", "normalize": True, "title": "pair"}

  @classmethod
  def load(cls, folder, which="best"):
    assert pathlib.Path(folder).is_dir()
    return cls(cls.fingerprints[which])

  def encode_questions(self, questions):
    assert isinstance(questions, list)
    return encode(questions)


class World:
  """A prepared workdir; tests change what stands in it."""

  def __init__(self, folder):
    self.workdir = workdir_lib.Workdir(folder)
    self.config = config_lib.base_config()
    self.passages = Table(records.Passage(*row) for row in TEXTS)
    gold = self.passages[0]
    train = [
      records.Question("What is the capital of France?", ("Paris",), (gold,)),
      records.Question("Where is the Seine?", ("in the north",)),
      records.Question("zzz qqq", ("nothing",)),
      records.Question("Is Rome the capital of Italy?"),
    ]
    self.questions = {"train": Table(train), "dev": Table(train[:2])}
    self.files = {}
    self.vectors = {}
    self.prepare()

  def prepare(self, version="1"):
    """Leaves what the stage `prepare` leaves."""
    for split in self.questions:
      (self.workdir.data / split).mkdir(parents=True, exist_ok=True)
    stage = workdir_lib.Stage("prepare", self.workdir.data, {}, {})
    stage.finish(
      {"passages": len(self.passages)},
      files={f"{name}/rows": version for name in ("passages", *self.questions)},
    )

  def embed(self, model="dense", fingerprint="model-1", array=None):
    """Leaves what the stage `embed` leaves."""
    if array is None:
      array = encode([f"{p.title} {p.text}" for p in self.passages])
    folder = self.workdir.embeddings(model)
    inputs = workdir_lib.dataset_inputs(self.workdir, "passages")
    stage = workdir_lib.Stage("embed", folder, {}, inputs)
    digest = zlib.crc32(np.asarray(array, np.float32).tobytes())
    stage.finish(
      {},
      files={"vectors-00000.npy": str(digest), "ids-00000.npy": "ids"},
      model=fingerprint,
      count=len(array),
      dim=len(array[0]),
      dtype="float32",
      shards=[
        {
          "file": "vectors-00000.npy",
          "ids": "ids-00000.npy",
          "first_row": 0,
          "rows": len(array),
        }
      ],
    )
    self.vectors[folder] = Vectors(array, fingerprint)
    if model == "dense":
      workdir_lib.Stage(
        "train", self.workdir.training, {}, {"model": fingerprint}
      ).finish({})

  def embed_and_index(self):
    """Leaves two models' vectors and an index of each."""
    self.embed()
    rng = np.random.default_rng(0)
    start = rng.normal(size=(len(self.passages), 16))
    self.embed("dense-start", "model-0", start)
    for model in ("dense", "dense-start"):
      faiss_stage.index(self.config, self.workdir, model=model)

  def retrieve(self, **kwargs):
    """The stage."""
    retrieve_lib.retrieve(self.config, self.workdir, **kwargs)


@pytest.fixture
def world(tmp_path, monkeypatch):
  """The workdir, with the data room and the encoder replaced."""
  world = World(tmp_path / "work")

  def read_questions(path):
    workdir_lib.fingerprint_file(path)
    yield from world.files[pathlib.Path(path)]

  fakes = {
    (dpr_jax.data, "prepare"): types.SimpleNamespace(
      open_passages=lambda place: world.passages,
      open_questions=lambda place, split: world.questions[split],
    ),
    (dpr_jax.data, "dpr_files"): types.SimpleNamespace(
      read_questions=read_questions
    ),
    (dpr_jax.inference, "encoder"): types.SimpleNamespace(Encoder=Encoder),
  }
  for (package, name), fake in fakes.items():
    monkeypatch.setattr(package, name, fake, raising=False)
    monkeypatch.setitem(sys.modules, f"{package.__name__}.{name}", fake)
  monkeypatch.setattr(
    vector_shards,
    "open_vectors",
    lambda folder, **options: world.vectors[folder],
  )
  monkeypatch.setattr(faiss_tune, "LEAST_SECONDS", 0.0)
  return world


@pytest.fixture
def ready(world):
  """A workdir in which everything before `retrieve` is done."""
  world.config.retrieve.methods = retrievers.METHODS
  world.embed_and_index()
  return world


@pytest.fixture
def make_vectors():
  """The stand-in for vector_shards.Vectors."""
  return Vectors


@pytest.fixture
def make_table():
  """The stand-in for PassageTable."""
  return Table
