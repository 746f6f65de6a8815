"""Heads, best spans, and the loss: against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpr_jax.core import errors
from dpr_jax.models import bert, span_reader

CONFIG = bert.BertConfig(
  vocab_size=40,
  hidden_size=8,
  num_hidden_layers=1,
  num_attention_heads=2,
  intermediate_size=12,
  max_position_embeddings=16,
)


def _reader(**settings):
  reader = span_reader.SpanReader(CONFIG, **settings)
  tower = bert.init_params(CONFIG, jax.random.key(0))
  params = {"bert": tower} | reader.init_heads(1)
  return reader, jax.tree.map(lambda x: 8 * x if x.ndim == 2 else x, params)


def _rows(count=6, length=12):
  generator = np.random.default_rng(0)
  ids = generator.integers(1, 40, (count, length)).astype(np.int32)
  numbers = [
    np.array(values, np.int32)[:count]
    for values in (
      [12, 12, 9, 7, 12, 6],  # lengths
      [3, 4, 3, 5, 12, 4],  # question ends
      [5, 6, 4, 6, 7, 6],  # where the passage begins
      [7, 5, 5, 1, 4, 0],  # its tokens
    )
  ]
  return span_reader.Rows(ids, *numbers)


@pytest.mark.parametrize("most", [1, 3, 99])
def test_best_span_is_the_best_of_all(most):
  reader, params = _reader()
  rows = _rows()
  scores, best = jax.jit(
    lambda: (
      reader.scores(params, rows),
      reader.best_spans(params, rows, most),
    )
  )()
  for row in range(5):
    first, count = rows.passages[row], rows.counts[row]
    options = {
      (i, j): float(scores.start[row, first + i] + scores.end[row, first + j])
      for i in range(count)
      for j in range(i, min(i + most, count))
    }
    found = (int(best.first[row]), int(best.last[row]))
    assert found == max(options, key=options.get)
    assert float(best.score[row]) == pytest.approx(options[found])
  assert float(best.score[5]) <= span_reader.IMPOSSIBLE  # no passage
  assert len(set(np.asarray(best.rank).tolist())) == 6


def test_equal_spans_give_the_earlier_and_shorter():
  reader, params = _reader()
  params["span"]["kernel"] *= 0
  best = jax.jit(lambda: reader.best_spans(params, _rows(), 10))()
  assert np.asarray(best.first)[:5].tolist() == [0] * 5
  assert np.asarray(best.last)[:5].tolist() == [0] * 5


def test_padding_and_chunks_change_nothing():
  reader, params = _reader()
  rows = _rows()
  wide = rows.replace(ids=np.pad(rows.ids, ((0, 0), (0, 4)), mode="edge"))
  chunked, _ = _reader(chunk_size=2, remat="layer")
  wanted, *others = jax.jit(
    lambda: (
      reader.scores(params, rows),
      reader.scores(params, wide),
      chunked.scores(params, rows),
    )
  )()
  for found in others:
    np.testing.assert_allclose(found.rank, wanted.rank, atol=1e-5)
    np.testing.assert_allclose(found.start[:, :12], wanted.start, atol=1e-5)
  with pytest.raises(errors.InputError, match="chunk_size=4 does not divide"):
    _reader(chunk_size=4)[0].scores(params, rows)
  with pytest.raises(errors.InputError, match="reader.remat='all'"):
    _reader(remat="all")


def test_token_types_matter():
  reader, params = _reader()
  rows = _rows()
  other = rows.replace(question_ends=rows.question_ends + 1)
  one, two = jax.jit(
    lambda: [reader.scores(params, x).rank for x in (rows, other)]
  )()
  assert jnp.abs(one - two).max() > 1e-4
