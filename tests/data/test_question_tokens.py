"""The questions' own tokens: the tokenizer's ids, made once, deep enough."""

import dataclasses

import numpy as np
import pytest

from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import prepare, question_tokens, records
from dpr_jax.models import retriever_model


@pytest.fixture(scope="module")
def tokenizer(tiny_config):
  """That of the tiny checkpoint."""
  return retriever_model.start(tiny_config).tokenizer


def test_passages_are_rows_or_own_texts(mined_workdir, tokenizer):
  """Own are those without a row of the same title and text, each once."""
  corpus = prepare.open_passages(mined_workdir)
  third, fifth = corpus.take([3, 5])
  other = dataclasses.replace(fifth, text=fifth.text + " more")
  unknown = records.Passage("", "Nowhere", "said nobody")
  questions = [
    records.Question("who", (), (third, unknown), (other,), (fifth, third)),
    records.Question("what", (), (unknown,), (), ()),
  ]
  arrays = question_tokens._block(
    questions, corpus, tokenizer, question_tokens.Depth(2, 2)
  )
  # Own text 0 is `unknown`, own text 1 `other`; the last `third` is too deep.
  assert arrays["passages"].tolist() == [3, -1, -2, 5, -1]
  assert arrays["starts"].tolist() == [0, 2, 4, 5, 5]
  wanted = tokenizer.question_ids(["who", "what"])
  wanted += tokenizer.passage_ids([unknown, other])
  assert arrays["ids"].tolist() == [i for ids in wanted for i in ids]
  np.testing.assert_array_equal(
    arrays["ends"], np.cumsum([0, *map(len, wanted)])
  )


def _gone(workdir):
  """A table of questions whose positives are not in the corpus."""
  table = prepare.open_questions(workdir, "train")
  take = table.take
  table.take = lambda rows: [
    dataclasses.replace(
      each,
      positives=(records.Passage("", "", f"own of {each.question}"),),
    )
    for each in take(rows)
  ]
  return table


def test_all_blocks_are_found(fresh_workdir, tokenizer, monkeypatch):
  """64 questions in blocks of 25, also cut shorter than the store."""
  monkeypatch.setattr(question_tokens, "BLOCK", 25)
  corpus, table = prepare.open_passages(fresh_workdir), _gone(fresh_workdir)
  asked = table.take(range(len(table)))
  depth = question_tokens.Depth(1, 0)
  for short in (tokenizer, dataclasses.replace(tokenizer, question_length=6)):
    store = question_tokens.make(fresh_workdir, table, corpus, short, depth)
    wanted = short.question_ids([each.question for each in asked])
    assert len(store) == len(wanted) == 64
    assert [store.question(n).tolist() for n in range(64)] == wanted
    np.testing.assert_array_equal(store.lengths, list(map(len, wanted)))
    own = short.passage_ids([each.positives[0] for each in asked])
    numbers = -1 - store.positives(np.arange(64), np.zeros(64, np.int64))
    assert [store.own(n).tolist() for n in numbers.tolist()] == own
    np.testing.assert_array_equal(
      store.own_lengths[numbers], list(map(len, own))
    )


def test_a_store_is_made_once_and_deep_enough(
  fresh_workdir, tokenizer, monkeypatch
):
  """Another depth, length or prefix needs another, a smaller one does not."""
  corpus = prepare.open_passages(fresh_workdir)
  table = prepare.open_questions(fresh_workdir, "train")
  made, block = [], question_tokens._block

  def counted(*arguments):
    made.append(arguments[3])
    return block(*arguments)

  monkeypatch.setattr(question_tokens, "_block", counted)

  def make(tokenizer, *depth):
    depth = question_tokens.Depth(*depth)
    question_tokens.make(fresh_workdir, table, corpus, tokenizer, depth)
    return len(made)

  assert [make(tokenizer, *depth) for depth in ((2, 1), (1, 0))] == [1, 1]
  assert make(tokenizer, 2, 2) == 2
  longer = dataclasses.replace(tokenizer, question_length=40)
  assert [make(longer, 1, 0), make(tokenizer, 1, 0)] == [3, 3]
  assert make(dataclasses.replace(longer, question_prefix="q: "), 1, 0) == 4
  manifest = workdir_lib.read_manifest(fresh_workdir.question_tokens, "tokens")
  assert manifest["counts"] == {"questions": 64, "own_passages": 0}
