"""The reader's packed batches hold what padded ones do, on any devices."""

import dataclasses

import jax
import numpy as np
import pytest

from dpr_jax.core import errors
from dpr_jax.data import (
  batches,
  reader_batches,
  reader_examples,
  reader_tokenization,
  tokenization,
)
from dpr_jax.training import packed_reader_batches
from tests.data import made
from tests.training import packed_sources

STEPS = range(5)


@pytest.fixture(scope="module")
def base(tiny_checkpoint):
  """Batches of 8 questions with 4 passages, some of them missing."""
  tokenizer = reader_tokenization.ReaderTokenizer(
    tokenization.load_tokenizer(tiny_checkpoint), 32, 12, 6
  )
  data = reader_examples.from_results(made.of_many_lengths(), tokenizer)
  plan = batches.Plan(3, len(data.examples), 8)
  return reader_batches.ReaderBatches(plan, len(STEPS), data, passages=4)


def _packed(base, chunk=2, process=0, processes=1):
  """A process's source; the shapes are those that all processes find."""
  shares = [
    packed_reader_batches.PackedReaderBatches.of(
      dataclasses.replace(
        base, cores=8 // processes, process=number, processes=processes
      ),
      chunk,
    )
    for number in range(processes)
  ]
  return packed_sources.with_shapes(shares, STEPS, most=1)[process]


def _by_row(batch):
  """{global row: (ids, parts, spans)} of a packed or padded batch."""
  inputs = batch["inputs"]
  if isinstance(inputs, dict):
    texts = inputs["texts"]
    lengths = np.concatenate([x["lengths"] for x in texts["tiles"]], axis=1)
    ends = lengths.cumsum(axis=1)
    ids = [
      row[end - length : end].tolist()
      for row, *own in zip(texts["token_ids"], lengths, ends, strict=True)
      for length, end in zip(*own, strict=True)
    ]
  else:
    (inputs,) = inputs
    ids = [
      row[:length].tolist()
      for row, length in zip(inputs["ids"], inputs["lengths"], strict=True)
    ]
  names = ("question_ends", "passages", "counts", "spans")
  columns = [inputs[name].reshape(-1).tolist() for name in names]
  columns += [batch["valid"].tolist()]
  columns += [inputs[name].tolist() for name in ("starts", "ends")]
  found = zip(batch["rows"].tolist(), ids, *columns, strict=True)
  return {row: rest for row, *rest in found}


@pytest.mark.parametrize("chunk", [0, 2])
def test_the_inputs_are_those_of_the_padded_batch(base, chunk):
  """With their answers; all shapes are the same in all steps."""
  source = _packed(base, chunk)
  halves = [_packed(base, chunk, process, 2) for process in range(2)]
  shapes = set()
  for step in STEPS:
    wanted = _by_row(base[step])
    assert sorted(wanted) == list(range(32))
    assert _by_row(source[step]) == wanted
    # Half of the rows each, the same as those of one process.
    parts = [half[step] for half in halves]
    assert {**_by_row(parts[0]), **_by_row(parts[1])} == wanted
    whole = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    jax.tree.map(np.testing.assert_array_equal, whole, source[step])
    shapes.add(tuple(np.shape(x) for x in jax.tree.leaves(source[step])))
  assert len(shapes) == 1
  rows = 8 * (2 if chunk else 1)
  assert source[0]["inputs"]["texts"]["token_ids"].shape[0] == rows
  assert source.rows == (rows,)


def test_batches_are_equally_full(base):
  """The questions of three batches dealt by their tokens, then of two."""
  sources = (_packed(dataclasses.replace(base, sort_batches=3)), _packed(base))

  def spread(batches):
    """Tokens of the fullest batch beyond those of the emptiest."""
    return np.ptp(
      [
        sum(reader_batches.lengths_of(base.draw(*pair)).sum() for pair in batch)
        for batch in batches
      ]
    )

  for some in (range(3), range(3, 5)):
    dealt, plain = (
      [source.base._questions(step) for step in some] for source in sources
    )
    assert sorted(sum(dealt, [])) == sorted(sum(plain, []))
    assert spread(dealt) <= 8 < spread(plain)


def test_a_chunk_divides_the_inputs_of_a_device(base):
  """4 inputs on each of 8 devices."""
  with pytest.raises(
    errors.InputError, match="reader.chunk_size=3 does not divide the 4 texts"
  ):
    packed_reader_batches.PackedReaderBatches.of(
      dataclasses.replace(base, cores=8), 3
    )
