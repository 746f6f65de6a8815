"""The shapes of a run's rounds: they hold all steps, and do not shrink."""

import copy
import dataclasses

import pytest

from dpr_jax.data import batches
from dpr_jax.models import retriever_model
from dpr_jax.training import packed_batches, retriever_batches, round_sources


@pytest.fixture(scope="module")
def model(tiny_config):
  """The towers of the tiny checkpoint; only their tokenizer is used."""
  return retriever_model.start(tiny_config)


def test_a_round_holds_the_texts_of_those_before_it(
  tiny_config, mined_workdir, model, monkeypatch, caplog
):
  """Longer texts in round 2 need larger rows, shorter ones keep theirs."""
  config = copy.deepcopy(tiny_config)
  config.train.chunk_size = 2
  source = retriever_batches.make_source(
    config, mined_workdir, model, store=False
  )
  short, long = (
    dataclasses.replace(
      source,
      tokenizer=dataclasses.replace(source.tokenizer, passage_length=length),
    )
    for length in (10, 40)
  )

  def shapes(first, second, *numbers):
    monkeypatch.setattr(
      retriever_batches, "make_source", lambda *_, **__: second
    )
    sources = round_sources.RoundSources(
      config, mined_workdir, model, (0, 3), first
    )
    found = [sources.source(number) for number in numbers]
    assert all(isinstance(f, packed_batches.PackedSource) for f in found)
    return [each.shapes for each in found]

  with caplog.at_level("INFO", logger="absl"):
    first, grown = shapes(short, long, 0, 1)
  assert "the texts of round 2 need larger rows" in caplog.text
  (_, read), (_, wider) = first.of_step(0), grown.of_step(3)
  assert read.width == 24  # two texts of 10 at most, rounded up
  assert wider.width > read.width
  caplog.clear()
  with caplog.at_level("INFO", logger="absl"):
    large, kept = shapes(long, short, 0, 1)
  assert kept.shapes == large.shapes
  assert "larger rows" not in caplog.text
  # A run that is resumed in round 2 counts round 1 as well.
  assert shapes(short, long, 1) == [grown]
  assert shapes(long, short, 1) == [kept]


def test_padded_batches_are_for_comparison(tiny_config, mined_workdir, model):
  """With tokens of the store."""
  config = copy.deepcopy(tiny_config)
  config.train.packing = False
  first = retriever_batches.make_source(
    config, mined_workdir, model, store=False
  )
  sources = round_sources.RoundSources(
    config, mined_workdir, model, (0,), first
  )
  source = sources.source(0)
  assert isinstance(source, batches.BatchSource)
  assert source.tokens is not None
