"""A teacher's scores reach the batches, whoever's text a passage is."""

import copy
import dataclasses
import json
import logging

import numpy as np
import pytest

from dpr_jax.core import errors
from dpr_jax.data import (
  datasets,
  mined_negatives,
  negative_mixture,
  negative_sampling,
  prepare,
  records,
  same_passages,
)
from dpr_jax.models import retriever_model
from dpr_jax.training import (
  packed_batches,
  retriever_batches,
  retriever_inputs,
  teacher_scores,
)
from tests.training import packed_sources, teachers

NAN = float("nan")


class _Passages(datasets.PassageTable):
  """A corpus of ids alone."""

  def __init__(self, *ids):
    self._rows = {each: row for row, each in enumerate(ids)}

  def rows_of(self, ids):
    return np.array([self._rows.get(each, -1) for each in ids], np.int64)


class _Questions(datasets.QuestionTable):
  """A table of questions in memory."""

  def __init__(self, *questions):
    self._questions = questions

  def __len__(self):
    return len(self._questions)

  def take(self, rows):
    return [self._questions[row] for row in rows]

  def blocks(self, size):
    yield 0, list(self._questions)


def _passage(name):
  return records.Passage(name, "", name)


def _world():
  """Questions x, y, x; passages a b c d, where d is a copy of a.

  The gold passage of the first is own, of no corpus: key 4.  A negative of the
  second is given, of no corpus: key 5.
  """
  questions = _Questions(
    records.Question("x", positives=(_passage("own"),)),
    records.Question(
      "y", positives=(_passage("b"),), hard_negatives=(_passage("given"),)
    ),
    records.Question("x", positives=(_passage("c"),)),
  )
  pools = [np.array([0, 1]), np.array([5]), np.array([2, 0])]
  sampler = negative_sampling.Sampler(
    passages=questions,  # no text is read
    candidates=[
      negative_sampling.Candidate(4, {"given": pools[0]}),
      negative_sampling.Candidate(1, {"given": pools[1]}),
      negative_sampling.Candidate(2, {"given": pools[2]}),
    ],
    mixture=negative_mixture.Mixture((("given", 1),)),
    from_top=1,
    seed=0,
    copies=same_passages.Copies(np.array([3]), np.array([0])),
  )
  return questions, _Passages("a", "b", "c", "d"), sampler


def _load(tmp_path, *rows):
  path = tmp_path / "scores.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return teacher_scores.load(path, *_world())


def _row(question, **scores):
  return {
    "question": question,
    "passages": list(scores),
    "scores": list(scores.values()),
  }


def _scores(loaded):
  """Scores of keys 0 to 5, question by question."""
  keys = np.tile(np.arange(6), (3, 1))
  return loaded.find(np.arange(3), keys)


def test_rows_are_of_the_question_with_their_number_or_text(tmp_path):
  """The first x is question 0; the second, out of place, of both."""
  loaded = _load(tmp_path, _row("x", a=1.5), _row("x", c=2), _row("y", b=3))
  np.testing.assert_array_equal(
    _scores(loaded),
    [
      [1.5, NAN, 2, NAN, NAN, NAN],
      [NAN, 3, NAN, NAN, NAN, NAN],
      [NAN, NAN, 2, NAN, NAN, NAN],
    ],
  )


def test_passages_of_no_corpus_and_copies(tmp_path, caplog):
  """Named by the question's own record; a copy is its first row."""
  with caplog.at_level(logging.WARNING):
    loaded = _load(
      tmp_path,
      _row("x", own=1, given=9, d=2),
      _row("y", given=4, b=None),
      _row("z", a=1),
    )
  np.testing.assert_array_equal(
    _scores(loaded)[:2],
    [[2, NAN, NAN, NAN, 1, NAN], [NAN, NAN, NAN, NAN, NAN, 4]],
  )
  assert "1 of 3 rows are of no training question, and 1 passages" in (
    caplog.text
  )


def test_the_gold_passage_of_mined_negatives(tmp_path):
  """Its score is beside those of the negatives."""
  loaded = _load(
    tmp_path,
    {
      "question": "x",
      "hard_negatives": ["a", "b"],
      "scores": [1, 2],
      "positive_score": 3,
    },
    {
      "question": "y",
      "hard_negatives": ["a"],
      "scores": [5],
      "positive_score": None,
    },
  )
  np.testing.assert_array_equal(
    _scores(loaded)[:2],
    [[1, 2, NAN, NAN, 3, NAN], [5, NAN, NAN, NAN, NAN, NAN]],
  )


def test_the_last_score_of_a_passage_counts(tmp_path):
  """Also where a copy has it."""
  loaded = _load(tmp_path, _row("x", a=1, d=2), _row("y", d=3, a=4))
  assert _scores(loaded)[:2, 0].tolist() == [2, 4]


def test_columns_of_a_batch(tmp_path):
  """Keys -1 and beyond all known ones are of no passage that is scored."""
  loaded = _load(tmp_path, _row("x", a=1.5, c=2), _row("y", b=3))
  found = loaded.columns(
    np.array([1, 0]),
    np.array([[1, -1, 7], [0, 1, 2]]),
    np.array([[10, 11, 12], [13, 14, 15]]),
  )
  assert found["candidates"].tolist() == [[10, -1, -1], [13, -1, 15]]
  assert found["teacher_scores"].tolist() == [[3, 0, 0], [1.5, 0, 2]]


def test_a_file_of_other_data_is_refused(tmp_path):
  """No passage of it is known."""
  with pytest.raises(errors.InputError, match="none of its 2 rows"):
    _load(tmp_path, _row("x", other=1), _row("z", a=1))


@pytest.fixture(scope="module")
def model(tiny_config):
  """The towers of the tiny checkpoint; only their tokenizer is used."""
  return retriever_model.start(tiny_config)


def _config(config, **settings):
  config = copy.deepcopy(config)
  config.train.update(settings)
  return config


def test_padded_and_packed_batches(
  tiny_config, mined_workdir, model, tmp_path, caplog
):
  """Every scored passage of a question, wherever it has gone."""
  path = teachers.write(tmp_path / "scores.jsonl", mined_workdir, every=2)
  config = _config(
    tiny_config,
    distill_scores=path,
    negatives="random:1,bm25:1",
    hard_negatives=2,
  )
  with caplog.at_level(logging.INFO):
    source = retriever_batches.make_source(config, mined_workdir, model)
  assert "teacher: 32 of 64 questions" in caplog.text
  ids = mined_negatives.read(mined_workdir.negatives / "bm25.jsonl.gz")
  packed = packed_batches.PackedSource.of(source, 3, 1)
  (packed,) = packed_sources.with_shapes([packed], range(2), most=1)
  for step in range(2):
    indexes, _ = source.plan.rows(step)
    for batch in (source[step], packed[step]):
      for row, places, scores in zip(
        batch["question_rows"].tolist(),
        batch["candidates"],
        batch["teacher_scores"],
        strict=True,
      ):
        index = int(indexes[row])
        known = places >= 0
        # The random passage has a score if it is one of those that BM25 found.
        assert known[[0, 2]].tolist() == [index % 2 == 0] * 2
        own = batch["passage_rows"][places[known]]
        assert own.tolist() == (3 * row + np.flatnonzero(known)).tolist()
        (question,) = source.questions.take([index])
        if index % 2 == 0:
          wanted = [question.positives[0].id, ids[index][0]]
          assert scores[[0, 2]].tolist() == list(map(teachers.score, wanted))
        assert not scores[~known].any()


def test_processes_have_their_share(
  tiny_config, mined_workdir, model, tmp_path
):
  """The places are those of the global batch."""
  path = teachers.write(tmp_path / "scores.jsonl", mined_workdir)
  config = _config(tiny_config, distill_scores=path)
  source = retriever_batches.make_source(
    config, mined_workdir, model, store=False
  )
  whole = source[0]
  shares = [
    dataclasses.replace(source, process=number, processes=2)[0]
    for number in range(2)
  ]
  for name in ("candidates", "teacher_scores"):
    np.testing.assert_array_equal(
      np.concatenate([each[name] for each in shares]), whole[name]
    )
  assert whole["candidates"].tolist() == np.arange(32).reshape(16, 2).tolist()


def test_a_teacher_of_other_passages_is_refused(
  tiny_config, mined_workdir, model, tmp_path, caplog
):
  """It scored positives alone; of negatives of a later round, a warning."""
  table = prepare.open_questions(mined_workdir, "train")
  path = tmp_path / "scores.jsonl"
  path.write_text(
    "".join(
      json.dumps(_row(question.question, **{question.positives[0].id: 1}))
      + "\n"
      for question in table.take(range(len(table)))
    )
  )
  config = _config(tiny_config, distill_scores=str(path))
  said = "of 64 positives it scored 64, of their negatives 0"
  with pytest.raises(errors.InputError, match=said):
    retriever_batches.make_source(config, mined_workdir, model, store=False)
  config.train.distill_weight = 0.0
  source = retriever_batches.make_source(
    config, mined_workdir, model, store=False
  )
  loaded = teacher_scores.load(
    path, source.questions, source.sampler.passages, source.sampler
  )
  with caplog.at_level(logging.WARNING):
    teacher_scores.check(
      dataclasses.replace(source, teacher_scores=loaded), round_number=2
    )
  assert "train: round 3: " in caplog.text
  assert said in caplog.text


def test_the_scores_are_part_of_a_run(tiny_config, mined_workdir, tmp_path):
  """By their bytes; with a weight of 0 they are not read."""
  path = tmp_path / "scores.jsonl"
  path.write_text("1\n")
  train = _config(tiny_config, distill_scores=str(path)).train
  first = retriever_inputs.inputs(train, mined_workdir)["teacher_scores"]
  path.write_text("2\n")
  assert retriever_inputs.inputs(train, mined_workdir)["teacher_scores"] != (
    first
  )
  assert "teacher_scores" not in retriever_inputs.behind(train, mined_workdir)
  train.distill_weight = 0.0
  assert "teacher_scores" not in retriever_inputs.inputs(train, mined_workdir)


def test_the_file_of_the_scores(tiny_config, mined_workdir, tmp_path):
  """A file, or that of the mined negatives, of which there must be one."""
  train = _config(tiny_config, distill_scores="negatives").train
  path = retriever_inputs.teacher_path(train, mined_workdir)
  assert path == mined_workdir.negatives / "bm25.jsonl.gz"
  for changes, message in (
    ({"negatives": "random"}, "has no kind of mined negatives"),
    (
      {"negatives": "bm25:1,model:1", "hard_negatives": 2},
      "has several kinds of mined negatives",
    ),
    ({"negatives": "model", "rounds": 2}, "train.rounds=2 negatives are mined"),
    ({"distill_scores": str(tmp_path / "none")}, "there is no such file"),
  ):
    wrong = _config(tiny_config, **{"distill_scores": "negatives", **changes})
    with pytest.raises(errors.InputError, match=message):
      retriever_inputs.teacher_path(wrong.train, mined_workdir)
