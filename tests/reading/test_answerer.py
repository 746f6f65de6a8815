"""Questions answered one by one from a workdir."""

import json

import pytest

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.reading import answerer as answerer_lib
from dpr_jax.retrieval import api
from tests import reading_world


def test_ask(reading_config, reading_engine, mined_workdir):
  retriever = api.Retriever.load(mined_workdir.root, "bm25")
  answerer = answerer_lib.Answerer(retriever, reading_engine, k=3)
  reply = answerer.ask("Where was Einstein born?")
  start, end = reply.span
  assert reply.passage.text[start:end] == reply.answer != ""
  marked = f"{reply.passage.text[:start]}[[{reply.answer}]]"
  assert marked in reply.text()
  assert reply.passage.title in reply.text()
  values = json.loads(reply.json())
  assert values["answer"] == reply.answer
  assert values["passage"]["id"] == reply.passage.id
  assert set(values["seconds"]) == {"retrieve", "read"}
  nothing = answerer.ask("qqqq")
  assert (nothing.answer, nothing.passage, nothing.rank) == ("", None, 0)
  assert "no answer found" in nothing.text()
  assert answerer.ask(reading_world.QUESTIONS[1]).question_was_cut


def test_ask_needs_a_reader(mined_workdir):
  assert config_lib.read(mined_workdir.root / "config.json")
  with pytest.raises(errors.InputError, match="run `dpr-jax train-reader`"):
    answerer_lib.Answerer.load(mined_workdir.root)
