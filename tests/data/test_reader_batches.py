"""The reader's batches: a pure function, however they are dealt."""

import json

import numpy as np
import pytest

from dpr_jax.data import (
  batches,
  reader_batches,
  reader_examples,
  squad_files,
)
from tests.data import made


def _squad_file(tmp_path):
  long = " ".join("abcdefgh" * 12) + " city " + " ".join("ijklmnop" * 4)
  paragraphs = [
    {
      "context": context,
      "qas": [
        {
          "id": f"{number}",
          "question": "where was it",
          "answers": [{"text": "city", "answer_start": context.index("city")}]
          * 3,
        }
      ],
    }
    for number, context in enumerate(
      [long, "a city", "an old city here", "of the city"]
    )
  ]
  path = tmp_path / "squad.json"
  path.write_text(
    json.dumps({"data": [{"title": "T", "paragraphs": paragraphs}]})
  )
  return path


def test_squad_answers_stand_in_their_windows(reader_tokenizer, tmp_path):
  data = reader_examples.from_squad(
    squad_files.read_squad(_squad_file(tmp_path)), reader_tokenizer
  )
  assert data.counts["kept"] == 4
  assert data.counts["positives_windowed"] == 1
  source = _source(data, 4, 4, passages=1)
  for epoch in range(6):
    for question in range(4):
      (drawn,) = source.draw(question, epoch)
      assert len(drawn.spans) == 1
      ((first, last),) = drawn.spans
      ids = source.inputs([drawn])[0].ids[first : last + 1].tolist()
      assert reader_tokenizer.backend.decode(ids) == "city"


def _source(data, batch_size, steps, **settings):
  plan = batches.Plan(3, len(data.examples), batch_size)
  return reader_batches.ReaderBatches(plan, steps, data, **settings)


@pytest.fixture(scope="module")
def data(reader_tokenizer):
  return reader_examples.from_results(made.of_many_lengths(), reader_tokenizer)


def _rows(source, step):
  """{global row: (ids, spans)} of a batch, whatever the grouping."""
  batch = source[step]
  cores, found, place = source.cores, {}, 0
  each = [group["ids"].shape[0] // cores for group in batch["inputs"]]
  for core in range(cores):
    for count, group in zip(each, batch["inputs"], strict=True):
      for i in range(core * count, (core + 1) * count):
        row = int(batch["rows"][place])
        ids = group["ids"][i, : group["lengths"][i]].tolist()
        spans = group["spans"][i]
        found[row] = (
          ids if batch["valid"][place] else None,
          group["starts"][i, :spans].tolist(),
          group["ends"][i, :spans].tolist(),
        )
        place += 1
  return found


@pytest.mark.parametrize("sort_batches", [1, 3])
def test_batches_are_the_same_however_they_are_dealt(data, sort_batches):
  """Cores, processes, groups and padding change nothing but the places."""
  common = {"passages": 4, "sort_batches": sort_batches}
  one = _source(data, 8, 5, **common)
  for step in range(5):
    wanted = _rows(one, step)
    assert sorted(wanted) == list(range(32))
    many = _source(data, 8, 5, cores=8, groups=2, length_step=8, **common)
    assert _rows(many, step) == wanted
    shared, shapes = {}, []
    for process in range(2):
      source = _source(
        data,
        8,
        5,
        cores=4,
        process=process,
        processes=2,
        groups=2,
        length_step=8,
        **common,
      )
      shared |= _rows(source, step)
      shapes.append([g["ids"].shape for g in source[step]["inputs"]])
    assert shared == wanted
    assert shapes[0] == shapes[1]


def test_every_question_comes_once_an_epoch(data):
  for sort_batches, epochs in ((1, 2), (7, 2), (3, 1)):
    source = _source(data, 2, 14, passages=1, sort_batches=sort_batches)
    if epochs == 1:  # sorted together across the end of an epoch
      pairs = [pair for step in range(14) for pair in source._questions(step)]
      assert sorted(pairs) == [(q, e) for q in range(14) for e in range(2)]
      continue
    for epoch in range(epochs):
      seen = [
        question
        for step in range(7 * epoch, 7 * epoch + 7)
        for question, _ in source._questions(step)
      ]
      assert sorted(seen) == list(range(14))


def test_similar_batches_hold_less_padding(data):
  def padding(**settings):
    source = _source(data, 2, 7, passages=1, length_step=2, **settings)
    groups = [source[step]["inputs"][0] for step in range(7)]
    return sum(group["ids"].size - group["lengths"].sum() for group in groups)

  assert padding(sort_batches=7) < padding()


def test_positive_first_then_negatives_then_padding(data):
  source = _source(data, 14, 1, passages=4)
  for question, example in enumerate(data.examples):
    drawn = source.draw(question, 0)
    assert drawn[0].spans
    missing = max(0, 3 - len(example.negatives))
    assert [one is None for one in drawn] == [
      *[False] * (4 - missing),
      *[True] * missing,
    ]
  draws = {
    tuple(d.length for d in source.draw(2, epoch) if d) for epoch in range(8)
  }
  assert len(draws) > 1  # other negatives in other epochs
  assert np.all([len(source.draw(2, 0)) == 4])
