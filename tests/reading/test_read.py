"""Stage `read`: the answers of whole question sets, and their weight."""

import copy
import json

import numpy as np
import pytest

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import records
from dpr_jax.evaluation import evaluate as evaluate_lib
from dpr_jax.evaluation import reader_tasks
from dpr_jax.inference import passage_reader, reader_answers
from dpr_jax.reading import read as read_lib
from tests import reading_world


def test_answers_of_a_results_file(
  reading_config, tiny_reader, tmp_path, monkeypatch
):
  """A question without passages has no prediction, and counts."""
  place = workdir_lib.Workdir(tmp_path)
  monkeypatch.setattr(read_lib, "load_reader", lambda *_: tiny_reader)
  with pytest.raises(errors.InputError, match="run `dpr-jax retrieve"):
    read_lib.read(reading_config, place)
  reading_world.write_results(place)
  read_lib.read(reading_config, place)
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
    "below_null_threshold": 0,
    "questions_cut": 1,
  }
  measures = evaluate_lib.evaluate(reading_config, place)
  assert set(measures["bm25"]) >= {"top1", "em", "f1", "em_1", "f1_3"}
  bad = copy.deepcopy(reading_config)
  for value, words in (((), "is empty"), ((0,), "read.passages=0")):
    bad.read.passages = value
    with pytest.raises(errors.InputError, match=words):
      read_lib.read(bad, place)


def test_tuned_weight(
  reading_config, tiny_reader, reading_engine, tmp_path, monkeypatch
):
  """Chosen from one reading, stored, and used where -1 stands for it."""
  place = workdir_lib.Workdir(tmp_path)
  monkeypatch.setattr(read_lib, "load_reader", lambda *_: tiny_reader)
  hits = reading_world.write_results(place)[0]["ctxs"]
  passages = [records.Passage(h["id"], h["title"], h["text"]) for h in hits]
  (readings,) = reading_engine.read(
    [reading_world.QUESTIONS[0]], [passages[:3]]
  )
  last = int(np.argmin([one.rank for one in readings]))
  right = readings[last]
  # Right is the passage that the reader likes least and the retriever most.
  rows = json.loads(place.results("dev", "bm25").read_text())
  rows[0]["answers"] = [passages[last].text[right.start : right.end]]
  rows[0]["ctxs"][last]["score"] = "99"
  place.results("dev", "bm25").write_text(json.dumps(rows))
  tuned = copy.deepcopy(reading_config)
  tuned.read.retriever_weight = -1.0
  with pytest.raises(errors.InputError, match="has none for 'bm25': run"):
    read_lib.read(tuned, place)
  read_lib.read(reading_config, place)
  before = json.loads(place.answers("dev").read_text())
  read_lib.read(reading_config, place, tune=True)
  stored = workdir_lib.read_json(place.root / "fusion" / "reader.json")["bm25"]
  assert stored["weight"] > 0
  assert (stored["measure"], stored["passages"]) == (0.5, 3)
  after = json.loads(place.answers("dev").read_text())
  assert before[0]["passage_id"] != passages[last].id
  assert after[0]["passage_id"] == passages[last].id
  read_lib.read(tuned, place, overwrite=True)
  assert json.loads(place.answers("dev").read_text()) == after
  monkeypatch.setitem(tiny_reader.__dict__, "fingerprint", "another")
  with pytest.raises(errors.InputError, match="that of another reader for"):
    read_lib.read(tuned, place, overwrite=True)


@pytest.mark.parametrize(
  ("text", "message", "tune"),
  [
    ("[]", "has no questions", False),
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
  reading_config, tiny_reader, tmp_path, monkeypatch, text, message, tune
):
  """Also where it is the last of several methods'."""
  place = workdir_lib.Workdir(tmp_path)
  monkeypatch.setattr(read_lib, "load_reader", lambda *_: tiny_reader)
  monkeypatch.setattr(passage_reader.PassageReader, "read", None)
  reading_world.write_results(place)
  place.results("dev", "dense").write_text(text)
  with pytest.raises(errors.InputError, match=message):
    read_lib.read(reading_config, place, methods=["bm25", "dense"], tune=tune)


def test_what_two_methods_found_is_read_once(reading_engine, monkeypatch):
  """As each alone would be read, up to rounding."""
  passages = [
    records.Passage(str(n), "town", f"the river {n} in the north")
    for n in (1, 2, 3)
  ]

  def block(*picked):
    some = [[passages[n] for n in one] for one in picked]
    return [
      reader_tasks.Task(question, ("x",), found, [0.0] * len(found))
      for question, found in zip(("where", "what"), some, strict=True)
    ]

  blocks = [block((0, 1), (2,)), block((1, 2), ())]
  wanted = [
    reading_engine.read(
      [task.question for task in some], [task.passages for task in some]
    )
    for some in blocks
  ]
  read, asked = reading_engine.read, []

  def counts(questions, passages):
    asked.extend(zip(questions, passages, strict=True))
    return read(questions, passages)

  monkeypatch.setattr(reading_engine, "read", counts)
  found = read_lib.read_once(reading_engine, blocks)
  assert asked == [("where", passages), ("what", passages[2:])]
  for one, other in zip(found, wanted, strict=True):
    for ours, alone in zip(one, other, strict=True):
      np.testing.assert_allclose(ours, alone, atol=1e-4)


def test_the_answer_is_among_the_first_so_many():
  """The second passage ranks higher, and the first is retrieved first."""
  passages = [records.Passage(i, "", f"{i} text") for i in "ab"]
  readings = [passage_reader.Reading(rank, 0.5, 0, 1) for rank in (1.0, 2.0)]
  answer, empty = reader_answers.answer, reader_answers.Answer()
  best = reader_answers.Answer("b", 1, "b", 2.0, 0, 1)
  assert answer(passages, [2.0, 1.0], readings) == best
  first = reader_answers.Answer("a", 0, "a", 1.0, 0, 1)
  assert answer(passages, [2.0], readings[:1]) == first
  # Scaled to 1 and 0: 1 + 3 * 1 against 2.
  assert answer(passages, [2.0, 1.0], readings, weight=3.0).score == 4.0
  assert answer(passages, [], []) == empty
