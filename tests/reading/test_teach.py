"""Scores of a teacher: of a retrieval method's hits, and of the reader."""

import copy
import dataclasses

import numpy as np
import pytest

from dpr_jax.cli import main
from dpr_jax.core import errors
from dpr_jax.data import mined_negatives, prepare, records, teacher_files
from dpr_jax.inference import passage_reader
from dpr_jax.models import retriever_model
from dpr_jax.reading import teach
from dpr_jax.retrieval import bm25
from dpr_jax.training import retriever_batches
from tests import retrieval_world

PASSAGES = retrieval_world.Table(
  records.Passage(*text) for text in retrieval_world.TEXTS
)


def _questions():
  """The gold passage of the second is of no corpus, of the third without id."""
  return retrieval_world.Table(
    [
      records.Question("x", positives=(PASSAGES[0], PASSAGES[4])),
      records.Question("yy", positives=(records.Passage("own", "", "abc"),)),
      records.Question("z", positives=(records.Passage("", "", "abc"),)),
    ]
  )


class _Ranker:
  """Finds row 3, then row 1, then for some questions nothing."""

  def search(self, questions, k):
    assert k == 3
    rows = np.array([[3, 1, 5 if len(q) > 1 else -1] for q in questions])
    return rows, np.tile([[2.5, 1.5, 0.5]], (len(questions), 1))


def test_the_hits_of_a_method():
  """Their ids and scores, without the missing ones."""
  found = list(teach.of_ranker(_Ranker(), _questions(), PASSAGES, 3))
  assert [(row.question, row.ids, row.scores) for row in found] == [
    ("x", ("p3", "p1"), (2.5, 1.5)),
    ("yy", ("p3", "p1", "p5"), (2.5, 1.5, 0.5)),
    ("z", ("p3", "p1"), (2.5, 1.5)),
  ]


class _Engine:
  """Its score is the number of letters of question and text."""

  def read(self, questions, passages):
    return [
      [
        passage_reader.Reading(float(len(q) + len(p.text)), 0.0, 0, 0)
        for p in some
      ]
      for q, some in zip(questions, passages, strict=True)
    ]


def test_the_reader_scores_gold_passages_and_negatives():
  """Each once, of all kinds; one that is not in the corpus is left out."""
  mined = [[["p6", "p4"], ["p6"], []], [["p6", "p2"], ["gone"], ["p3"]]]
  found = list(teach.of_reader(_Engine(), _questions(), PASSAGES, mined))
  length = {passage.id: len(passage.text) for passage in PASSAGES}
  assert [(row.question, row.ids) for row in found] == [
    ("x", ("p0", "p4", "p6", "p2")),
    ("yy", ("own", "p6")),
    ("z", ("p3",)),
  ]
  assert found[0].scores == tuple(
    1 + length[i] for i in ("p0", "p4", "p6", "p2")
  )
  assert found[1].scores == (2 + 3, 2 + length["p6"])


def test_the_file_teaches(tiny_config, mined_workdir, tmp_path):
  """BM25 scores what it mined; training reads the file."""
  config = copy.deepcopy(tiny_config)
  config.retrieve.depth = 7
  out = tmp_path / "scores.jsonl.gz"
  teach.teach(config, mined_workdir, method="bm25", out=out)
  questions = prepare.open_questions(mined_workdir, "train")
  passages = prepare.open_passages(mined_workdir)
  rows, scores = bm25.load_checked(mined_workdir).search(
    [question.question for question in questions.take(range(2))], 7
  )
  found = list(teacher_files.read(out))
  assert len(found) == len(questions) == 64
  for row, hits, values in zip(found[:2], rows, scores, strict=True):
    assert row.ids == tuple(p.id for p in passages.take(hits))
    np.testing.assert_array_equal(np.float32(row.scores), np.float32(values))
  mined = mined_negatives.read(mined_workdir.negatives / "bm25.jsonl.gz")
  config.train.distill_scores = str(out)
  source = retriever_batches.make_source(
    config, mined_workdir, retriever_model.start(config), store=False
  )
  source = dataclasses.replace(source, steps=4)
  for step in range(4):
    batch, (indexes, _) = source[step], source.plan.rows(step)
    for place, index in enumerate(indexes.tolist()):
      known = dict(zip(found[index].ids, found[index].scores, strict=True))
      wanted = known.get(mined[index][0]) if mined[index] else None
      assert (batch["candidates"][place, 1] < 0) == (wanted is None)
      np.testing.assert_allclose(
        batch["teacher_scores"][place, 1], wanted or 0, rtol=1e-6
      )


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_refusals(tiny_config, mined_workdir, tmp_path):
  """An unknown method, and a call without one."""
  with pytest.raises(errors.InputError, match="--method=bm26: must be one of"):
    teach.teach(tiny_config, mined_workdir, method="bm26", out=tmp_path / "x")
  line = ["dpr-jax", "teach", f"--workdir={mined_workdir.root}"]
  call = main.invocation([*line, "--method=hybrid"])
  with pytest.raises(errors.InputError, match="--method and --out are needed"):
    call.command.load()(call)
