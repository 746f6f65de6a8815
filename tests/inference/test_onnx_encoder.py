"""Encoding with ONNX Runtime and 8 bits: order, padding, same vectors."""

import numpy as np
import pytest

from dpr_jax.data import records
from dpr_jax.inference import encoder as encoder_lib
from dpr_jax.inference import onnx_encoder
from dpr_jax.models import retriever_model

pytest.importorskip("onnx", reason="no onnx: extra `onnx`")
pytest.importorskip("onnxruntime", reason="no onnxruntime: extra `onnx`")


@pytest.fixture(scope="module")
def model(tiny_config):
  """The tiny towers."""
  return retriever_model.start(tiny_config)


def _cosines(first, second):
  return np.sum(first * second, axis=1) / (
    np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
  )


@pytest.mark.compiles
def test_vectors_are_close_to_float32(model):
  """In the order of the texts, of both towers, the same in every call."""
  generator = np.random.default_rng(1)
  passages = [
    ("city", "the river " * int(n)) for n in generator.integers(1, 20, 30)
  ]
  questions = ["where is the city", "river", "the city river of"]
  wanted = encoder_lib.Encoder(model, tokens_per_core=96, length_step=24)
  encoder = onnx_encoder.OnnxEncoder(model, tokens_per_core=96)
  vectors = encoder.encode_passages(passages)
  assert vectors.dtype == np.float32
  cosines = _cosines(vectors, wanted.encode_passages(passages))
  assert cosines.min() > 0.98
  np.testing.assert_array_equal(vectors, encoder.encode_passages(passages))
  cosines = _cosines(
    encoder.encode_questions(questions), wanted.encode_questions(questions)
  )
  assert cosines.min() > 0.98
  assert encoder.encode_passages([]).shape == (0, 32)
  assert encoder.programs == 0


def test_tiles_are_cut_to_their_longest_text(model):
  """Lengths 3, 3, 5, 9 in tiles of at most 12 tokens planned for 8 and 16."""
  encoder = onnx_encoder.OnnxEncoder(model, tokens_per_core=16, length_step=8)
  lengths = np.array([3, 9, 3, 5])

  class Tokens:
    def ids(self, row):
      return np.full(lengths[row - 7], 5)

  found = list(encoder.stream("passage", Tokens(), lengths, (8, 16), first=7))
  # Width 8 has tiles of two texts: (3, 3); 5 alone does not fill one and goes
  # to width 16, where a tile has one text; the widest come first.
  assert [rows.tolist() for rows, _ in found] == [[1], [3], [0, 2]]
  assert encoder.work.tokens == encoder.work.padded_tokens == 20
  assert encoder.widths(np.bincount(lengths), 1) == (8, 9)


def test_towers_share_a_graph_where_they_are_the_same(model):
  import dataclasses

  shared = dataclasses.replace(
    model,
    encoder=dataclasses.replace(model.encoder, shared=True),
    params={"shared": model.params["passage"]},
  )
  counts = []
  for towers in (model, shared):
    encoder = onnx_encoder.OnnxEncoder(towers)
    encoder.encode_questions(["river"])
    encoder.encode_passages([records.Passage("", "city", "river")])
    counts.append(len(encoder._sessions))
  assert counts == [2, 1]
