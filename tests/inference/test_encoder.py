"""Tiles: every text once, little padding, the same on any number of cores."""

import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from dpr_jax.data import records
from dpr_jax.inference import encoder as encoder_lib
from dpr_jax.inference import length_tiles
from dpr_jax.models import retriever_model

LENGTHS = strategies.lists(strategies.integers(1, 40), min_size=1, max_size=60)


def _padded(histogram, widths):
  lengths = np.repeat(np.arange(len(histogram)), histogram)
  places = np.searchsorted(widths, lengths)
  return int(np.array(widths)[places].sum())


@hypothesis.given(LENGTHS, strategies.integers(1, 4))
def test_widths_pad_the_least(lengths, shapes):
  """Not more padding than any other choice, by trying all of them."""
  histogram = np.bincount(lengths, minlength=43)
  widths = length_tiles.choose_widths(histogram, shapes)
  assert len(widths) <= shapes
  assert list(widths) == sorted(set(widths))
  assert widths[-1] >= max(lengths)
  assert all(width % 8 == 0 for width in widths)
  every = range(8, 41, 8)
  best = min(
    _padded(histogram, choice)
    for count in range(1, shapes + 1)
    for choice in itertools.combinations(every, count)
    if choice[-1] >= max(lengths)
  )
  assert _padded(histogram, widths) == best


def test_widths_end_where_texts_are_cut():
  """No text is longer than the limit, which need not be a multiple of 8."""
  histogram = np.bincount([3, 9, 21, 21])
  assert length_tiles.choose_widths(histogram, 9) == (8, 16, 21)
  assert length_tiles.choose_widths(histogram, 1) == (21,)


@hypothesis.given(
  LENGTHS, strategies.integers(1, 3), strategies.integers(1, 120)
)
def test_every_text_is_in_one_tile(lengths, shapes, tokens):
  """Tiles fit, only the last of the widest is not filled."""
  lengths = np.array(lengths)
  widths = length_tiles.choose_widths(np.bincount(lengths), shapes)
  tiles = length_tiles.plan(lengths, widths, tokens)
  rows = np.concatenate([tile.rows for tile in tiles])
  assert sorted(rows) == list(range(len(lengths)))
  for tile in tiles:
    assert len(tile.rows) <= tile.size
    assert tile.size * tile.width <= max(tokens, tile.width)
    assert lengths[tile.rows].max() <= tile.width
    assert tile.full == (
      tile.width == widths[-1]
      and len(tile.rows) == tile.size
      and bool((lengths[tile.rows] == tile.width).all())
    )
    assert len(tile.rows) == tile.size or tile.width == widths[-1]
  for cores in (1, 3):
    found = list(length_tiles.calls(tiles, cores))
    assert sum(map(len, found)) == len(tiles)
    assert all(len(some) <= cores for some in found)
    assert all(
      len({(t.width, t.size, t.full) for t in some}) == 1 for some in found
    )


@pytest.fixture(scope="module")
def model(tiny_config):
  """The tiny towers."""
  return retriever_model.start(tiny_config)


def _texts(count):
  generator = np.random.default_rng(1)
  return [
    ("city", "the river " * int(n)) for n in generator.integers(1, 26, count)
  ]


def test_vectors_do_not_depend_on_the_cores(model, monkeypatch):
  """Bytes on 8, 3 and 1 of the devices; full tiles and the rest."""
  import jax

  passages, found = _texts(60), []
  for devices in (8, 3, 1):
    chosen = jax.local_devices()[:devices]
    monkeypatch.setattr(jax, "local_devices", lambda chosen=chosen: chosen)
    encoder = encoder_lib.Encoder(model, tokens_per_core=100, length_step=24)
    found.append(encoder.encode_passages(passages))
    monkeypatch.undo()
  np.testing.assert_array_equal(found[0], found[1])
  np.testing.assert_array_equal(found[0], found[2])


def test_padding_is_counted_and_programs_are_few(model):
  """A second call compiles nothing; one text is a call of one row."""
  encoder = encoder_lib.Encoder(model, tokens_per_core=96, length_step=24)
  encoder.encode_passages(_texts(40))
  assert encoder.programs <= 3  # two widths, and the widest when full
  programs, work = encoder.programs, encoder.work
  lengths = [
    len(ids)
    for ids in model.tokenizer.passage_ids(
      [records.Passage("", *text) for text in _texts(40)]
    )
  ]
  assert work.tokens == sum(lengths)
  assert work.padded_tokens % 24 == 0
  assert 0 < work.padding < 0.8
  encoder.encode_passages(_texts(40))
  assert encoder.programs == programs
  before = encoder.work.padded_tokens
  one = encoder.encode_questions(["where is the city"])
  assert encoder.work.padded_tokens == before + 16
  many = encoder.encode_questions(["where is the city", "the river"] * 5)
  np.testing.assert_allclose(one[0], many[0], atol=2e-6)
