"""Reranking with a small random reader."""

import copy
import json

import numpy as np
import pytest

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import records
from dpr_jax.evaluation import evaluate as evaluate_lib
from dpr_jax.evaluation import reader_tasks
from dpr_jax.models import reader_model
from dpr_jax.reading import read as read_lib
from dpr_jax.reading import rerank
from tests import reading_world


def test_rerank(
  reading_config, tiny_reader, reading_engine, tmp_path, monkeypatch
):
  """The first three by the reader, the rest behind; with its own row."""
  place = workdir_lib.Workdir(tmp_path)
  rows = reading_world.write_results(place)
  monkeypatch.setattr(read_lib, "load_reader", lambda *_: tiny_reader)
  rerank.rerank(reading_config, place, name="dev", method="bm25")
  found = json.loads(place.results("dev", "bm25-reader").read_text())
  before = [hit["id"] for hit in rows[0]["ctxs"]]
  (readings,) = reading_engine.read(
    [reading_world.QUESTIONS[0]],
    [
      [
        reading_world.PASSAGES[0],
        reading_world.PASSAGES[1],
        reading_world.PASSAGES[3],
      ]
    ],
  )
  order = np.argsort([-one.rank for one in readings])
  wanted = [before[i] for i in order] + before[3:]
  assert [hit["id"] for hit in found[0]["ctxs"]] == wanted
  scores = [float(hit["score"]) for hit in found[0]["ctxs"]]
  assert scores == sorted(scores, reverse=True)
  assert found[1]["ctxs"] == []
  measures = evaluate_lib.evaluate(reading_config, place)
  assert set(measures) == {"bm25", "bm25-reader"}
  # With all the weight on the retriever its order comes back.
  weighed = copy.deepcopy(reading_config)
  weighed.read.retriever_weight = 1e6
  rerank.rerank(weighed, place, name="dev", method="bm25")
  found = json.loads(place.results("dev", "bm25-reader").read_text())
  assert [hit["id"] for hit in found[0]["ctxs"]] == before
  untrained = lambda *_: reader_model.start(reading_config)  # noqa: E731
  monkeypatch.setattr(read_lib, "load_reader", untrained)
  with pytest.raises(errors.InputError, match="rank head .* was not trained"):
    rerank.rerank(reading_config, place, name="dev", method="bm25")


def test_scores_go_on_downwards_behind_what_was_read():
  """Two of four were read; equal ones stay in their order."""
  passages = [records.Passage(i, "", i) for i in "abcd"]
  task = reader_tasks.Task("q", (), passages, [4.0, 3.0, 2.0, 1.0])
  found = rerank._reordered(task, [2.0, 5.0])
  assert [(hit.id, hit.score) for hit in found] == [
    *(("b", 5.0), ("a", 2.0), ("c", 1.0), ("d", 0.0))
  ]
  found = rerank._reordered(task, [2.0, 2.0])
  assert [hit.id for hit in found] == list("abcd")
