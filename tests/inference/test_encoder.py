"""Texts become vectors: the same ones on any number of devices."""

import numpy as np
import pytest

from dpr_jax.data import records
from dpr_jax.inference import encoder as encoder_lib
from dpr_jax.models import retriever_model


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
