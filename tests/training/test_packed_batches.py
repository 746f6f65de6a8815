"""Packed batches hold what padded ones do, wherever their texts are."""

import copy
import dataclasses

import jax
import numpy as np
import pytest

from dpr_jax.core import errors
from dpr_jax.data import packing
from dpr_jax.models import retriever_model
from dpr_jax.training import packed_batches, retriever_batches
from tests.training import packed_sources

STEPS = range(6)


@pytest.fixture(scope="module")
def model(tiny_config):
  """The towers of the tiny checkpoint; only their tokenizer is used."""
  return retriever_model.start(tiny_config)


@pytest.fixture(scope="module")
def base(tiny_config, mined_workdir, model):
  """Batches of 16 questions, 2 negatives each, on 8 devices."""
  config = copy.deepcopy(tiny_config)
  config.train.negatives, config.train.hard_negatives = "random:1,bm25:1", 2
  config.train.mask_answers = True
  return retriever_batches.make_source(config, mined_workdir, model)


def _packed(base, chunk=3, process=0, processes=1, most=1):
  """A process's source; the shapes are those that all processes find."""
  shares = [
    packed_batches.PackedSource.of(
      dataclasses.replace(
        base, cores=8 // processes, process=number, processes=processes
      ),
      chunk,
      0 if chunk != 3 else 1,
    )
    for number in range(processes)
  ]
  return packed_sources.with_shapes(shares, STEPS, most)[process]


def _texts(packed):
  """Token ids of every text, in the order of rows, then slots."""
  lengths = np.concatenate(
    [tile["lengths"] for tile in packed["tiles"]], axis=1
  )
  ends = lengths.cumsum(axis=1)
  assert ends.max() <= packed["token_ids"].shape[1]
  return [
    row[end - length : end].tolist()
    for row, own, last in zip(packed["token_ids"], lengths, ends, strict=True)
    for length, end in zip(own, last, strict=True)
  ]


def _by_row(batch, kind):
  """Texts and figures of a batch, by the row of the global batch."""
  texts = batch[f"{kind}s"]
  if "tiles" in texts:
    texts = _texts(texts)
  else:
    texts = [
      ids[mask].tolist()
      for ids, mask in zip(texts["ids"], texts["mask"], strict=True)
    ]
  names = {"question": ["question_keys"]}.get(
    kind, ["passage_valid", "passage_keys"]
  )
  return {
    row: (text, *rest)
    for row, text, *rest in zip(
      batch[f"{kind}_rows"].tolist(),
      texts,
      *(batch[name].tolist() for name in names),
      strict=True,
    )
  }


def _pairs(batch):
  """Rows of the questions and passages that are masked."""
  rows, columns = np.nonzero(batch["excluded"])
  return set(
    zip(
      batch["question_rows"][rows].tolist(),
      batch["passage_rows"][columns].tolist(),
      strict=True,
    )
  )


@pytest.mark.parametrize("chunk", [0, 2, 3])
def test_the_texts_are_those_of_the_padded_batch(base, chunk):
  """By their rows, with keys, positives and masks of answers."""
  source, masked = _packed(base, chunk), 0
  for step in STEPS:
    wanted, found = base[step], source[step]
    for kind in ("question", "passage"):
      assert _by_row(found, kind) == _by_row(wanted, kind)
    np.testing.assert_array_equal(
      found["passage_rows"][found["labels"]], 3 * found["question_rows"]
    )
    assert _pairs(found) == _pairs(wanted)
    masked += len(_pairs(found))
    for name in {"question_positives"} & found.keys():
      order = np.argsort(found["question_rows"])
      np.testing.assert_array_equal(found[name][order], wanted[name])
  assert masked
  rows = 8 * (6 // chunk if chunk else 1)
  assert found["passages"]["token_ids"].shape[0] == rows
  assert {x.shape for x in jax.tree.leaves(source[0])} == {
    x.shape for x in jax.tree.leaves(found)
  }


@pytest.mark.parametrize("most", [1, 2])
def test_two_processes_share_the_rows_of_one(base, most, monkeypatch):
  """2 x 4 devices: the arrays one after the other are those of 1 x 8."""
  monkeypatch.setattr(packing, "_PROGRAM", 0)
  base = packed_sources.cut(base)
  whole = _packed(base, most=most)
  assert len(whole.shapes.shapes) == most
  halves = [_packed(base, process=p, processes=2, most=most) for p in range(2)]
  assert halves[0].shapes == halves[1].shapes == whole.shapes
  for step in STEPS:
    parts = jax.tree.map(
      lambda *x: np.concatenate(x), *(half[step] for half in halves)
    )
    jax.tree.map(np.testing.assert_array_equal, parts, whole[step])


def test_large_batches_are_dealt_within_a_process(base, monkeypatch):
  """The same texts by row; a question's positive is in its own process."""
  monkeypatch.setattr(packed_batches, "DEALT_TOGETHER", 63)
  base = dataclasses.replace(base, answer_rows=None)
  halves = [_packed(base, process=p, processes=2) for p in range(2)]
  assert not halves[0].together
  assert halves[0].shapes == halves[1].shapes
  for step in STEPS:
    first, second = (half[step] for half in halves)
    wanted = base[step]
    for kind in ("question", "passage"):
      found = [_by_row(half, kind) for half in (first, second)]
      assert max(found[0]) < min(found[1])
      assert found[0] | found[1] == _by_row(wanted, kind)
    rows = np.concatenate([first["passage_rows"], second["passage_rows"]])
    for half in (first, second):
      np.testing.assert_array_equal(
        rows[half["labels"]], 3 * half["question_rows"]
      )
  monkeypatch.setattr(packed_batches, "DEALT_TOGETHER", 64)
  assert halves[0].together


def test_places_and_tokens(base):
  """Rows of all devices times their widths; tokens of all texts."""
  source = _packed(base)
  (asked, read), rows = source.shapes.of_step(0), source.rows
  # Per device 2 questions, one in each row, and 6 passages in rows of 3.
  assert rows == (16, 16)
  places = 16 * (asked.width + read.width)
  assert source.shapes.places(range(1), rows) == places
  tokens = sum(
    int(base[step][kind]["mask"].sum())
    for step in STEPS
    for kind in packed_batches.KINDS
  )
  assert sum(source.count(step)[1] for step in STEPS) == tokens
  half = _packed(base, processes=2)
  assert (half.rows, half.shapes) == (rows, source.shapes)
  assert half.counted_by_me(STEPS) == range(0, 6, 2)


def test_chunks_must_divide(base):
  """Each with its own key."""
  for chunk, question_chunk, message in (
    (4, 0, r"chunk_size=4 does not divide the 6 texts of a device"),
    (0, 3, None),  # more than the 2 questions of a device
    (5, 1, r"config\.train\.chunk_size=5 "),
  ):
    base_ = dataclasses.replace(base, cores=8)
    if message is None:
      packed_batches.PackedSource.of(base_, chunk, question_chunk)
      continue
    with pytest.raises(errors.InputError, match=message):
      packed_batches.PackedSource.of(base_, chunk, question_chunk)
