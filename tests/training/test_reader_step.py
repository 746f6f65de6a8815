"""The reader's loss and step: the formula, and the same on 1 and 8 cores."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dpr_jax.core import devices as devices_lib
from dpr_jax.data import packing
from dpr_jax.models import bert, packed_texts, span_reader
from dpr_jax.training import reader_step, train_step

pytestmark = pytest.mark.compiles

QUESTIONS, PASSAGES, LENGTH, SPANS = 4, 4, 10, 3


def _config(dropout):
  return bert.BertConfig(
    vocab_size=40,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=12,
    max_position_embeddings=16,
    hidden_dropout_prob=dropout,
    attention_probs_dropout_prob=dropout,
  )


def _global_batch():
  generator = np.random.default_rng(0)
  count = QUESTIONS * PASSAGES
  rows = np.arange(count)
  spans = np.where(rows % PASSAGES == 0, 1 + rows // PASSAGES % SPANS, 0)
  starts = generator.integers(4, 7, (count, SPANS))
  return {
    "ids": generator.integers(1, 40, (count, LENGTH)),
    "lengths": generator.integers(8, LENGTH + 1, count),
    "question_ends": generator.integers(2, 4, count),
    "passages": np.full(count, 4),
    "counts": np.full(count, 4),
    "starts": starts,
    "ends": starts + generator.integers(0, 2, (count, SPANS)),
    "spans": spans,
    "rows": rows,
    "valid": (rows != 3) & (rows != 7),
  }


def _deal(batch, cores, groups, order):
  """The batch on some cores, in groups, in any order of its inputs."""
  each = len(order) // cores // groups
  dealt = np.reshape(order, (groups, cores, each))
  own = {"rows": batch["rows"], "valid": batch["valid"]}
  inputs = {k: v for k, v in batch.items() if k not in own}
  places = np.concatenate(list(dealt), axis=1).reshape(-1)

  def typed(x):
    return x if x.dtype == bool else x.astype(np.int32)

  return {
    "inputs": tuple(
      {k: typed(v[rows.reshape(-1)]) for k, v in inputs.items()}
      for rows in dealt
    ),
    **{k: typed(v[places]) for k, v in own.items()},
  }


PARTS = ("question_ends", "passages", "counts")


def _pack(batch, slots, width, tiles):
  """The batch in packed rows: the longest inputs in slot 0."""
  order = packing.deal(batch["lengths"], len(batch["rows"]) // slots)
  texts = packed_texts.pack(
    [[batch["ids"][i, : batch["lengths"][i]] for i in row] for row in order],
    width,
    tiles,
  )
  fields = {
    name: getattr(texts, name)
    for name in ("token_ids", "positions", "slots", "sources")
  }
  tiles = tuple(
    {"places": tile.places, "lengths": tile.lengths} for tile in texts.tiles
  )
  own = order.reshape(-1)
  return {
    "inputs": {
      "texts": {**fields, "tiles": tiles},
      **{name: batch[name][order].astype(np.int32) for name in PARTS},
      **{
        name: batch[name][own].astype(np.int32)
        for name in ("starts", "ends", "spans")
      },
    },
    "rows": own.astype(np.int32),
    "valid": batch["valid"][own],
  }


def _run(dropout, cores, groups=1, order=None, chunk_size=0, packed=None):
  """(metrics, update of the parameters) of one step of plain SGD."""
  reader = span_reader.SpanReader(_config(dropout), chunk_size=chunk_size)
  tower = bert.init_params(reader.config, jax.random.key(0))
  params = {"bert": tower} | reader.init_heads(1)
  params = jax.tree.map(lambda x: 8 * x if x.ndim == 2 else x, params)
  transformation = optax.sgd(1.0)
  step = reader_step.make_reader_step(
    reader,
    transformation,
    lambda _: 1.0,
    seed=3,
    questions=QUESTIONS,
    passages=PASSAGES,
  )
  devices = jax.devices()[:cores]
  state = train_step.TrainState(
    np.int32(2), params, transformation.init(params)
  )
  order = np.arange(16) if order is None else order
  batch = _global_batch()
  if packed:
    batch = _pack(batch, **packed)
  else:
    batch = _deal(batch, cores, groups, order)
  new, reported = devices_lib.map_train_step(step, devices)(
    devices_lib.replicate(state, devices),
    devices_lib.split_over_cores(batch, devices),
  )
  update = jax.tree.map(lambda a, b: np.asarray(a) - b, new.params, params)
  return jax.tree.map(float, reported), update


def _formula():
  """The loss in NumPy, from the heads' scores of every input."""
  reader = span_reader.SpanReader(_config(0.0))
  tower = bert.init_params(reader.config, jax.random.key(0))
  params = {"bert": tower} | reader.init_heads(1)
  params = jax.tree.map(lambda x: 8 * x if x.ndim == 2 else x, params)
  batch = _global_batch()
  fields = ("ids", "lengths", "question_ends", "passages", "counts")
  rows = span_reader.Rows(*(batch[f].astype(np.int32) for f in fields))
  scores = jax.jit(reader.scores)(params, rows)

  def softmax(x):
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()

  rank_losses, span_losses = [], []
  for question in range(QUESTIONS):
    some = slice(PASSAGES * question, PASSAGES * (question + 1))
    ranks = np.float64(scores.rank)[some][batch["valid"][some]]
    rank_losses.append(-np.log(softmax(ranks)[0]))
    row = PASSAGES * question
    start, end = (
      softmax(np.float64(x)[row, 4:8]) for x in (scores.start, scores.end)
    )
    total = sum(
      start[batch["starts"][row, i] - 4] * end[batch["ends"][row, i] - 4]
      for i in range(batch["spans"][row])
    )
    span_losses.append(-np.log(total))
  return np.mean(rank_losses), np.mean(span_losses)


def test_loss_is_the_formula():
  reported, _ = _run(0.0, 1)
  rank, span = _formula()
  assert reported["rank_loss"] == pytest.approx(rank, rel=1e-5)
  assert reported["span_loss"] == pytest.approx(span, rel=1e-5)
  assert reported["loss"] == pytest.approx(rank + span, rel=1e-5)


def test_same_on_any_cores_in_any_order():
  """Loss within 1e-5, every gradient leaf within 1e-4 of its norm."""
  order = np.random.default_rng(5).permutation(16)
  wanted, gradients = _run(0.1, 1)
  for found, others in (
    _run(0.1, 8),
    _run(0.1, 4, groups=2, order=order, chunk_size=1),
    # Four rows of four inputs of 8 to 10 tokens, on 2 devices.
    _run(0.1, 2, packed={"slots": 4, "width": 40, "tiles": ((1, 16), (3, 12))}),
  ):
    for key, value in wanted.items():
      assert found[key] == pytest.approx(value, rel=1e-5, abs=1e-6), key
    for one, other in zip(
      jax.tree.leaves(gradients), jax.tree.leaves(others), strict=True
    ):
      difference = np.linalg.norm(one - other)
      assert difference <= 1e-4 * np.linalg.norm(one) + 1e-6


def test_gradient_is_that_of_the_loss():
  """Along its own direction, the loss falls as the gradient says."""
  reader = span_reader.SpanReader(_config(0.0))
  _, update = _run(0.0, 8)
  slope = sum(float((x**2).sum()) for x in jax.tree.leaves(update))
  tower = bert.init_params(reader.config, jax.random.key(0))
  params = {"bert": tower} | reader.init_heads(1)
  params = jax.tree.map(lambda x: 8 * x if x.ndim == 2 else x, params)
  batch = _global_batch()
  fields = ("ids", "lengths", "question_ends", "passages", "counts")
  rows = span_reader.Rows(*(batch[f].astype(np.int32) for f in fields))

  @jax.jit
  def loss(scale):
    moved = jax.tree.map(lambda p, u: p + scale * u, params, update)
    scores = reader.scores(moved, rows)
    ranks = scores.rank.reshape(QUESTIONS, PASSAGES)
    valid = batch["valid"].reshape(QUESTIONS, PASSAGES)
    rank, _ = reader_step.rank_losses(ranks, jnp.asarray(valid))
    span = reader_step.span_losses(
      scores.start,
      scores.end,
      batch["starts"],
      batch["ends"],
      batch["spans"],
    )
    return jnp.mean(rank) + jnp.sum(span) / QUESTIONS

  small = 2e-3 / np.sqrt(slope)
  measured = (loss(-small) - loss(small)) / (2 * small)
  assert float(measured) == pytest.approx(slope, rel=2e-2)


def test_no_spans_no_loss():
  zeros = jnp.zeros((2, 5))
  places = np.ones((2, 3), np.int32)
  found = reader_step.span_losses(
    zeros, zeros, places, places, np.array([0, 2], np.int32)
  )
  np.testing.assert_allclose(found, [0.0, -np.log(2 / 25)], rtol=1e-5)
