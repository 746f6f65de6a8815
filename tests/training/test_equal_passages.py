"""Files in which the same passage stands twice: what is trained on, and said.

The softmax trains against the truth where a copy of a question's positive, or
another positive of it, is held against the question: the loss of two questions
with one positive would be ln 2 for ever.
"""

import copy
import json
import logging

import numpy as np
import pytest

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import prepare
from dpr_jax.models import retriever_model
from dpr_jax.retrieval import mine
from dpr_jax.training import retriever_batches, train_retriever

ULM = ("Ulm", "Einstein was born in the city of Ulm on the river.")
PARIS = ("Paris", "Paris is the capital of France on a river.")
ROME = ("Rome", "Rome is the capital of Italy.")
LYON = ("Lyon", "Lyon is a large city of France.")


def _context(passage, **ids):
  return {"title": passage[0], "text": passage[1], **ids}


def _question(text, positives, negatives=()):
  return {
    "question": text,
    "answers": ["x y z"],
    "positive_ctxs": positives,
    "hard_negative_ctxs": negatives,
    "negative_ctxs": [],
  }


@pytest.fixture
def prepared(tiny_config, tmp_path):
  """A function of (corpus, questions, settings) to (config, workdir)."""

  def make(corpus, questions, **train):
    lines = [f"{n}\t{text}\t{title}" for n, (title, text) in enumerate(corpus)]
    (tmp_path / "psgs.tsv").write_text("\n".join(["id\ttext\ttitle", *lines]))
    (tmp_path / "train.json").write_text(json.dumps(questions))
    config = copy.deepcopy(tiny_config)
    config.data.passages = str(tmp_path / "psgs.tsv")
    config.data.train = config.data.dev = str(tmp_path / "train.json")
    for key in ("max_train", "max_dev", "max_passages"):
      config.data[key] = 0
    config.train.update(
      {
        **{"batch_size": 2, "hard_negatives": 0, "dev_questions": 0},
        **{
          "learning_rate": 5e-3,
          "max_steps": 60,
          "negatives": "random",
        },
        **train,
      }
    )
    place = workdir_lib.Workdir(tmp_path / "work")
    prepare.prepare(config, place)
    return config, place

  return make


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  """These batches are smaller than the 8 devices of the tests."""
  import jax

  device = jax.devices()[:1]
  monkeypatch.setattr(jax, "device_count", lambda *_: 1)
  monkeypatch.setattr(jax, "local_device_count", lambda *_: 1)
  monkeypatch.setattr(jax, "devices", lambda *_: device)
  monkeypatch.setattr(jax, "local_devices", lambda *_, **__: device)


def _source(config, place):
  model = retriever_model.start(config)
  return retriever_batches.make_source(config, place, model, store=False)


def _losses(config, place):
  train_retriever.train(config, place)
  lines = (place.training / "metrics.jsonl").read_text().splitlines()
  return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


def test_ids_are_found_by_text(prepared):
  """Of a positive without an id, and of one whose id no row has."""
  config, place = prepared(
    [PARIS, ULM, ULM],
    [
      _question("where", [_context(ULM)]),
      _question("what", [_context(PARIS, passage_id="wiki:7")]),
      _question("who", [_context(ROME)]),
      _question("when", [_context(ULM, passage_id="2")]),
    ],
  )
  counts = workdir_lib.read_manifest(place.data, "prepare")["counts"]
  assert counts["train_gold_found_by_text"] == 2
  assert counts["train_gold_without_id"] == 1
  assert counts["train_gold_not_in_corpus"] == 0
  assert counts["passages_copies"] == 1
  ids = [q.positives[0].id for q in prepare.open_questions(place, "train")]
  assert ids == ["1", "0", "", "2"]
  batch = _source(config, place).sampler.keys_of_batch(range(4), [0] * 4)
  assert batch.tolist() == [1, 0, 3, 1]  # row 2 is a copy; ROME is no row


def test_gold_without_ids_is_kept_in_a_smaller_corpus(prepared, tmp_path):
  """`max_passages` keeps the positives first, also those without ids."""
  config, place = prepared(
    [PARIS, ROME, LYON, ULM], [_question("where", [_context(ULM)])]
  )
  config.data.max_passages = 2
  prepare.prepare(config, place)
  assert [p.id for p in prepare.open_passages(place)] == ["0", "3"]


def test_two_questions_with_one_positive_have_nothing_to_learn(prepared):
  config, place = prepared(
    [ULM, PARIS],
    [_question("where", [_context(ULM)]), _question("town", [_context(ULM)])],
  )
  with pytest.raises(errors.InputError, match="there is nothing to learn"):
    _source(config, place)
  config.train.batch_size = 4  # larger than the data
  with pytest.raises(errors.InputError, match=r"\(2 training questions\)"):
    _source(config, place)
  config.train.hard_negatives = 1
  _source(config, place)


def test_rows_of_one_question_with_different_positives(prepared):
  """Each row's positive is masked for the other; nothing is left."""
  questions = [
    _question("where?", [_context(ULM, passage_id="0")]),
    _question("where?", [_context(PARIS, passage_id="1")]),
  ]
  config, place = prepared([ULM, PARIS, ROME], questions)
  with pytest.raises(errors.InputError, match="nothing to learn"):
    _source(config, place)
  config.train.hard_negatives = 1
  source = _source(config, place)
  assert [one.positives for one in source.sampler.candidates] == [
    *([0, 1], [1, 0])
  ]
  batch = source[0]
  assert batch["question_keys"].tolist() == [
    1 - key for key in batch["question_positives"][:, 0]
  ]
  # ROME is the only negative that is left to draw.
  assert set(batch["passage_keys"].tolist()) == {0, 1, 2}


@pytest.mark.slow
def test_other_positives_are_no_negatives(prepared, caplog):
  """Two questions with both of two positives: only ROME is against them.

  Held against each other they could not come below ln 2 = 0.69.
  """
  both = [_context(ULM), _context(PARIS)]
  config, place = prepared(
    [ULM, PARIS, ROME],
    [_question("where", both), _question("town", both[::-1])],
    hard_negatives=1,
  )
  with caplog.at_level(logging.INFO):
    losses = _losses(config, place)
  assert min(losses) < 0.4
  assert (
    "2 questions have several positives: training uses the first; the other 2"
    " are not used as negatives" in caplog.text
  )


@pytest.mark.slow
def test_a_given_negative_that_is_the_positive(prepared, caplog):
  """It is dropped and counted, and the loss falls."""
  config, place = prepared(
    [ULM, PARIS],
    [
      _question("a city on a river", [_context(ULM)], [_context(ULM)]),
      _question(
        "the capital", [_context(PARIS)], [_context(PARIS, passage_id="1")]
      ),
    ],
    negatives="given",
    hard_negatives=1,
  )
  with caplog.at_level(logging.INFO):
    losses = _losses(config, place)
  assert min(losses) < 0.4
  assert "dropped 2 negatives of the question file: their text" in caplog.text


def test_given_negatives_are_drawn_anew(prepared, caplog):
  """From the first `hard_negatives_from_top`; what is never used is counted."""
  questions = [
    _question("where", [_context(ULM)], [*map(_context, (PARIS, ROME, LYON))])
  ]
  config, place = prepared(
    [ULM, PARIS, ROME, LYON], questions, negatives="given", hard_negatives=1
  )
  epochs = np.arange(40)
  with caplog.at_level(logging.INFO):
    sampler = _source(config, place).sampler
  keys = sampler.keys_of_batch([0] * 40, epochs).reshape(40, 2)
  first = keys[0, 1]
  assert set(keys[:, 1]) == {first}
  assert (
    "2 of 3 negatives of the question file are never used, only the first 1"
    " of" in caplog.text
  )
  config.train.hard_negatives_from_top = 2
  sampler = _source(config, place).sampler
  keys = sampler.keys_of_batch([0] * 40, epochs).reshape(40, 2)
  assert len(set(keys[:, 1])) == 2
  passages, _ = sampler.passages_of_batch(
    prepare.open_questions(place, "train").take([0]), [0], [0]
  )
  assert passages[1].title in ("Paris", "Rome")


def test_positives_are_drawn_in_every_epoch(prepared):
  """Each of three is as likely; the text is that of the key."""
  questions = [_question("where", [*map(_context, (ULM, PARIS, ROME))])]
  config, place = prepared(
    [LYON, ULM, PARIS, ROME], questions, positives="drawn", hard_negatives=1
  )
  sampler = _source(config, place).sampler
  epochs = np.arange(300)
  keys = sampler.keys_of_batch([0] * 300, epochs).reshape(300, 2)
  assert (keys[:, 1] == 0).all()  # LYON is all that is left
  counts = np.bincount(keys[:, 0], minlength=4)
  assert counts[0] == 0
  # Binomial with p = 1/3: 100 on average, standard deviation 8.2.
  assert np.abs(counts[1:] - 100).max() < 33
  table = prepare.open_questions(place, "train")
  for epoch in range(9):
    (passage, _), keys = sampler.passages_of_batch(
      table.take([0]), [0], [epoch]
    )
    assert passage.title == [None, "Ulm", "Paris", "Rome"][keys[0]]


def test_gold_that_no_row_has_is_named(prepared, caplog):
  config, place = prepared(
    [PARIS, ROME],
    [_question("where", [_context(ULM)]), _question("x", [_context(ROME)])],
    hard_negatives=1,
  )
  with caplog.at_level(logging.WARNING):
    _source(config, place)
  assert "the gold passages of 1 of 2 questions are not in" in caplog.text


def test_copies_in_the_dev_pool_are_one_passage(prepared, monkeypatch):
  """Rank 1 stays possible: the pool has ULM once, and PARIS is no rival."""
  from dpr_jax.training import validation

  config, place = prepared(
    [ULM, ULM, PARIS, ROME],
    [_question("where", [_context(ULM), _context(PARIS)])],
    dev_questions=1,
    dev_hard_negatives=0,
    dev_other_negatives=4,
  )
  mine.mine(config, place)
  model = retriever_model.start(config)
  pool = validation.DevPool.make(config, place, model)
  assert [p.id for p in pool.passages] == ["0", "2", "3"]
  assert [columns.tolist() for columns in pool.other_positives] == [[1]]
