"""Reading, answering, asking and reranking, with a small random reader."""

import copy
import json
import types

import jax.numpy as jnp
import numpy as np
import pytest

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import records
from dpr_jax.evaluation import evaluate as evaluate_lib
from dpr_jax.inference import passage_reader
from dpr_jax.models import reader_model, span_reader
from dpr_jax.reading import answerer as answerer_lib
from dpr_jax.reading import read as read_lib
from dpr_jax.reading import rerank
from dpr_jax.retrieval import retrieve as retrieve_lib

LONG = " ".join("abcdefghijklmnopqrstuvwxyz" * 5)
PASSAGES = [
  records.Passage("1", "Albert Einstein", "His birthplace was Ulm, Ulm!"),
  records.Passage("2", "", "x"),
  records.Passage("3", "empty", ""),
  records.Passage("4", "long", LONG),
]
QUESTIONS = ["where was he born", "a b c d e f g h i j k l m n o p q r s"]


@pytest.fixture(scope="module")
def config(tiny_config):
  config = copy.deepcopy(tiny_config)
  config.reader.length, config.reader.question_length = 64, 16
  config.reader.overlap = 8
  config.read.methods, config.read.passages = ("bm25",), (1, 3)
  config.read.tokens_per_core, config.read.length_step = 128, 64
  config.read.rerank_depth = 3
  return config


@pytest.fixture(scope="module")
def reader(config):
  """A random one, whose rank head counts."""
  import dataclasses

  return dataclasses.replace(reader_model.start(config), ranks=True)


@pytest.fixture(scope="module")
def engine(config, reader):
  return read_lib.make_engine(config, reader)


def test_batches_and_windows_change_nothing(engine):
  together = engine.read(QUESTIONS, [PASSAGES, PASSAGES[:2]])
  assert [len(some) for some in together] == [4, 2]
  for question, passages, some in zip(
    QUESTIONS, [PASSAGES, PASSAGES[:2]], together, strict=True
  ):
    for passage, found in zip(passages, some, strict=True):
      ((alone,),) = engine.read([question], [[passage]])
      assert alone[2:] == found[2:]
      assert alone.rank == pytest.approx(found.rank, abs=1e-5)
  empty = together[0][2]
  assert empty.start == empty.end
  assert engine.read(["where"], [[]]) == [[]]
  assert engine.read([], []) == []


def test_a_long_passage_is_its_best_window(engine):
  """Every part of it can hold the answer, in characters of the whole text."""
  tokenizer = engine.reader.tokenizer
  ((whole,),) = engine.read(["where"], [[PASSAGES[3]]])
  windows = tokenizer.windows(
    len(tokenizer.head(*_ids(tokenizer, "where", "long"))[0]), 130
  )
  assert len(windows) > 2
  ranks = []
  for window in windows:
    part = LONG[2 * window.first : 2 * (window.first + window.count)]
    passage = records.Passage("", "long", part)
    ((found,),) = engine.read(["where"], [[passage]])
    ranks.append((found.rank, found.start + 2 * window.first))
  rank, start = max(ranks)
  assert whole.rank == pytest.approx(rank, abs=1e-5)
  assert whole.start == start


def _ids(tokenizer, question, title):
  (ids,) = tokenizer.question_ids([question])
  return ids, tokenizer.tokenize([title])[0].ids


def _choose_span(engine, monkeypatch, first, last):
  """The reader chooses these tokens from now on."""

  def best(_, columns):
    shape = columns[0].shape[:2]
    numbers = [np.full(shape, n, np.int32) for n in (first, last)]
    ones = np.ones((2, *shape), np.float32)
    return span_reader.BestSpans(*map(jnp.asarray, (*ones, *numbers)))

  programs = types.SimpleNamespace(get=lambda *_: best)
  monkeypatch.setattr(engine, "_programs", programs)


def test_tokens_become_characters_of_the_original(engine, monkeypatch):
  """An answer that stands there twice, pieces of a word, case and accents."""
  text = "In Z\u00fcrich, then  ULM; then Ulm again."
  (tokens,) = engine.reader.tokenizer.tokenize([text])
  for wanted, start in (("Z\u00fcrich", 3), ("ULM", 17), ("Ulm", 27)):
    first, last = tokens.span_of(start + 1, start + 2)
    whole = tokens.span_of(start, start + len(wanted))
    # Ulm is a word of the vocabulary, of the other there is one piece alone.
    assert ((first, last) == whole) == (wanted.lower() == "ulm")
    _choose_span(engine, monkeypatch, first, last)
    ((found,),) = engine.read(["q"], [[records.Passage("", "", text)]])
    assert (found.start, text[found.start : found.end]) == (start, wanted)


@pytest.mark.parametrize(
  ("text", "letter", "answer"),
  [
    ("le cafe\u0301", "e\u0301", "cafe\u0301"),  # the mark ends the text
    ("cafe\u0301 noir", "f", "cafe\u0301"),
    ("a\u0308b x", "b", "a\u0308b"),
    (
      "\u0939\u093f\u0928\u094d\u0926\u0940",
      "\u0926",
      None,
    ),  # Hindi: all of it
    ("\u0928\u0926\u0940 ulm", "ulm", "ulm"),
  ],
)
def test_an_answer_keeps_its_marks(engine, monkeypatch, text, letter, answer):
  """Of a letter in two characters the tokenizer sees the first."""
  (tokens,) = engine.reader.tokenizer.tokenize([text])
  place = text.index(letter)
  _choose_span(engine, monkeypatch, *tokens.span_of(place, place + 1))
  ((found,),) = engine.read(["q"], [[records.Passage("", "", text)]])
  assert text[found.start : found.end] == (answer or text)


def test_choose():
  def some(*ranks, end=1):
    return [passage_reader.Reading(rank, 0.0, 0, end) for rank in ranks]

  assert passage_reader.choose(some(1.0, 3.0, 3.0)) == (1, 3.0)
  assert passage_reader.choose([]) == (-1, float("-inf"))
  assert passage_reader.choose(some(1.0, end=0)) == (-1, float("-inf"))
  # A passage without an answer is not chosen, however well it ranks.
  assert passage_reader.choose(some(9.0, end=0) + some(1.0)) == (1, 1.0)
  # The retriever's scores count from 0 to 1 times the weight.
  scores = [30.0, 10.0, 20.0]
  assert passage_reader.choose(some(1.0, 1.5, 1.2), scores, 0.1) == (1, 1.5)
  assert passage_reader.choose(some(1.0, 1.5, 1.2), scores, 2.0) == (0, 3.0)
  assert passage_reader.choose(some(1.0, 1.5), [7.0, 7.0], 2.0) == (1, 1.5)


def _results(place, method="bm25"):
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


def test_answers_of_a_results_file(config, reader, tmp_path, monkeypatch):
  """A question without passages has no prediction, and counts."""
  place = workdir_lib.Workdir(tmp_path)
  monkeypatch.setattr(read_lib, "load_reader", lambda *_: reader)
  with pytest.raises(errors.InputError, match="run `dpr-jax retrieve"):
    read_lib.read(config, place)
  _results(place)
  read_lib.read(config, place)
  rows = json.loads(place.answers("dev").read_text())
  assert rows[0]["prediction"]
  assert rows[1]["prediction"] == rows[1]["passage_id"] == ""
  assert rows[1]["score"] is None
  manifest = place.answers("dev").parent / "dev.bm25.manifest.json"
  counts = json.loads(manifest.read_text())["counts"]
  assert counts == {
    "questions": 2,
    "passages": 3,
    "without_passages": 1,
    "without_prediction": 1,
    "questions_cut": 1,
  }
  measures = evaluate_lib.evaluate(config, place)
  assert set(measures["bm25"]) >= {"top1", "em", "f1", "em_1", "f1_3"}
  bad = copy.deepcopy(config)
  for value, words in (((), "is empty"), ((0,), "read.passages=0")):
    bad.read.passages = value
    with pytest.raises(errors.InputError, match=words):
      read_lib.read(bad, place)


def test_tuned_weight(config, reader, engine, tmp_path, monkeypatch):
  """Chosen from one reading, stored, and used where -1 stands for it."""
  place = workdir_lib.Workdir(tmp_path)
  monkeypatch.setattr(read_lib, "load_reader", lambda *_: reader)
  hits = _results(place)[0]["ctxs"]
  passages = [records.Passage(h["id"], h["title"], h["text"]) for h in hits]
  (readings,) = engine.read([QUESTIONS[0]], [passages[:3]])
  last = int(np.argmin([one.rank for one in readings]))
  right = readings[last]
  # Right is the passage that the reader likes least and the retriever most.
  rows = json.loads(place.results("dev", "bm25").read_text())
  rows[0]["answers"] = [passages[last].text[right.start : right.end]]
  rows[0]["ctxs"][last]["score"] = "99"
  place.results("dev", "bm25").write_text(json.dumps(rows))
  tuned = copy.deepcopy(config)
  tuned.read.retriever_weight = -1.0
  with pytest.raises(errors.InputError, match="has none for 'bm25': run"):
    read_lib.read(tuned, place)
  with pytest.raises(errors.InputError, match="has one passage"):
    read_lib.read(config, place, questions_file="squad.json", tune=True)
  read_lib.read(config, place)
  before = json.loads(place.answers("dev").read_text())
  read_lib.read(config, place, tune=True)
  stored = workdir_lib.read_json(place.root / "fusion" / "reader.json")["bm25"]
  assert stored["weight"] > 0
  assert (stored["measure"], stored["passages"]) == (0.5, 3)
  after = json.loads(place.answers("dev").read_text())
  assert before[0]["passage_id"] != passages[last].id
  assert after[0]["passage_id"] == passages[last].id
  read_lib.read(tuned, place, overwrite=True)
  assert json.loads(place.answers("dev").read_text()) == after
  monkeypatch.setitem(reader.__dict__, "fingerprint", "another")
  with pytest.raises(errors.InputError, match="that of another reader for"):
    read_lib.read(tuned, place, overwrite=True)


@pytest.mark.parametrize(
  ("text", "message", "tune"),
  [
    ("[]", "no questions in it", False),
    (
      '[{"question": "q", "answers": []}]',
      "question 0: not in DPR's results",
      False,
    ),
    ('[{"question": "q", "ans', "is not JSON", False),
    (
      '[{"question": "q", "answers": [], "ctxs": []}]',
      "--tune: no question in .* has an answer",
      True,
    ),
  ],
)
def test_a_bad_file_is_found_before_anything_is_read(
  config, reader, tmp_path, monkeypatch, text, message, tune
):
  """Also where it is the last of several methods'."""
  place = workdir_lib.Workdir(tmp_path)
  monkeypatch.setattr(read_lib, "load_reader", lambda *_: reader)
  monkeypatch.setattr(passage_reader.PassageReader, "read", None)
  _results(place)
  place.results("dev", "dense").write_text(text)
  with pytest.raises(errors.InputError, match=message):
    read_lib.read(config, place, methods=["bm25", "dense"], tune=tune)


def test_what_two_methods_found_is_read_once(engine, monkeypatch):
  """As each alone would be read, up to rounding."""
  passages = [
    records.Passage(str(n), "town", f"the river {n} in the north")
    for n in (1, 2, 3)
  ]

  def block(*picked):
    some = [[passages[n] for n in one] for one in picked]
    return [
      read_lib.Task(question, ("x",), found, [0.0] * len(found))
      for question, found in zip(("where", "what"), some, strict=True)
    ]

  blocks = [block((0, 1), (2,)), block((1, 2), ())]
  wanted = [
    engine.read(
      [task.question for task in some], [task.passages for task in some]
    )
    for some in blocks
  ]
  read, asked = engine.read, []

  def counts(questions, passages):
    asked.extend(zip(questions, passages, strict=True))
    return read(questions, passages)

  monkeypatch.setattr(engine, "read", counts)
  found = read_lib.read_once(engine, blocks)
  assert asked == [("where", passages), ("what", passages[2:])]
  for one, other in zip(found, wanted, strict=True):
    for ours, alone in zip(one, other, strict=True):
      np.testing.assert_allclose(ours, alone, atol=1e-4)


def test_rerank(config, reader, engine, tmp_path, monkeypatch):
  """The first three by the reader, the rest behind; with its own row."""
  place = workdir_lib.Workdir(tmp_path)
  rows = _results(place)
  monkeypatch.setattr(read_lib, "load_reader", lambda *_: reader)
  rerank.rerank(config, place, name="dev", method="bm25")
  found = json.loads(place.results("dev", "bm25-reader").read_text())
  before = [hit["id"] for hit in rows[0]["ctxs"]]
  (readings,) = engine.read(
    [QUESTIONS[0]],
    [[PASSAGES[0], PASSAGES[1], PASSAGES[3]]],
  )
  order = np.argsort([-one.rank for one in readings])
  wanted = [before[i] for i in order] + before[3:]
  assert [hit["id"] for hit in found[0]["ctxs"]] == wanted
  scores = [float(hit["score"]) for hit in found[0]["ctxs"]]
  assert scores == sorted(scores, reverse=True)
  assert found[1]["ctxs"] == []
  measures = evaluate_lib.evaluate(config, place)
  assert set(measures) == {"bm25", "bm25-reader"}
  # With all the weight on the retriever its order comes back.
  weighed = copy.deepcopy(config)
  weighed.read.retriever_weight = 1e6
  rerank.rerank(weighed, place, name="dev", method="bm25")
  found = json.loads(place.results("dev", "bm25-reader").read_text())
  assert [hit["id"] for hit in found[0]["ctxs"]] == before
  untrained = lambda *_: reader_model.start(config)  # noqa: E731
  monkeypatch.setattr(read_lib, "load_reader", untrained)
  with pytest.raises(errors.InputError, match="rank head .* was not trained"):
    rerank.rerank(config, place, name="dev", method="bm25")


def test_ask(config, engine, mined_workdir):
  retriever = retrieve_lib.Retriever.load(mined_workdir.root, "bm25")
  answerer = answerer_lib.Answerer(retriever, engine, k=3)
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
  assert answerer.ask(QUESTIONS[1]).question_was_cut


def test_ask_needs_a_reader(mined_workdir):
  assert config_lib.read(mined_workdir.root / "config.json")
  with pytest.raises(errors.InputError, match="run `dpr-jax train-reader`"):
    answerer_lib.Answerer.load(mined_workdir.root)
