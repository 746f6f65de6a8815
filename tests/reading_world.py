"""A small random reader, passages for it, and results to read."""

import copy
import dataclasses
import json

import pytest

from dpr_jax.data import records
from dpr_jax.models import reader_model
from dpr_jax.reading import read as read_lib

LONG = " ".join("abcdefghijklmnopqrstuvwxyz" * 5)
PASSAGES = [
  records.Passage("1", "Albert Einstein", "His birthplace was Ulm, Ulm!"),
  records.Passage("2", "", "x"),
  records.Passage("3", "empty", ""),
  records.Passage("4", "long", LONG),
]
QUESTIONS = ["where was he born", "a b c d e f g h i j k l m n o p q r s"]


@pytest.fixture(scope="session")
def reading_config(tiny_config):
  config = copy.deepcopy(tiny_config)
  config.reader.length, config.reader.question_length = 64, 16
  config.reader.overlap = 8
  config.read.methods, config.read.passages = ("bm25",), (1, 3)
  config.read.tokens_per_core, config.read.length_step = 128, 64
  config.read.rerank_depth = 3
  return config


@pytest.fixture(scope="session")
def tiny_reader(reading_config):
  """A random one, whose rank head counts."""
  return dataclasses.replace(reader_model.start(reading_config), ranks=True)


@pytest.fixture(scope="session")
def reading_engine(reading_config, tiny_reader):
  return read_lib.make_engine(reading_config, tiny_reader)


def write_results(place, method="bm25"):
  path = place.results("dev", method)
  path.parent.mkdir(parents=True, exist_ok=True)
  hits = [
    {
      "id": p.id,
      "title": p.title,
      "text": p.text,
      "score": str(10.0 - n),
      "has_answer": False,
    }
    for n, p in enumerate([*PASSAGES[:2], *PASSAGES[3:], PASSAGES[0]])
  ]
  rows = [
    {"question": QUESTIONS[0], "answers": ["Ulm"], "ctxs": hits},
    {"question": QUESTIONS[1], "answers": ["Bern"], "ctxs": []},
  ]
  path.write_text(json.dumps(rows))
  return rows
