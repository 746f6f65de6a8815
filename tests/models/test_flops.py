"""Counting work: by hand, and against what the model really multiplies."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpr_jax.models import bert, encoder_config
from dpr_jax.models import flops as flops_lib

CONFIG = bert.BertConfig(
  vocab_size=50,
  hidden_size=16,
  num_hidden_layers=3,
  num_attention_heads=2,
  intermediate_size=24,
  max_position_embeddings=12,
)


def test_a_layer_of_bert_base():
  """LIMITS.md of BERT-base: 169.87M + 36,864 S per token over 12 layers."""
  base = bert.BertConfig()
  assert 12 * flops_lib.layer_flops(base, 0) == 169_869_312
  assert 12 * (
    flops_lib.layer_flops(base, 7) - flops_lib.layer_flops(base, 0)
  ) == (36_864 * 7)


def test_padding_is_counted_apart():
  mask = np.arange(8)[None] < np.array([3, 8])[:, None]
  found = flops_lib.training_work(CONFIG, [mask, mask[:1]])
  assert (found.tokens, found.padded_tokens) == (14, 24)
  assert found.padding == pytest.approx(10 / 24)
  each = {n: flops_lib.layer_flops(CONFIG, n) for n in (3, 8)}
  assert found.flops == 3 * 3 * (2 * 3 * each[3] + 8 * each[8])
  assert found.padded_flops == 3 * 3 * 24 * each[8]


def test_packed_rows_pad_attention_alone():
  """Two rows of 12 places, 3 + 8 and 2 + 5 tokens in tiles of 8 and 4."""
  tiles = [(np.array([[8], [5]]), 8), (np.array([[3], [2]]), 4)]
  found = flops_lib.packed_training_work(CONFIG, tiles, 24)
  assert (found.tokens, found.padded_tokens) == (18, 24)
  each = {n: flops_lib.layer_flops(CONFIG, n) for n in (0, 2, 3, 5, 8)}
  useful = sum(n * each[n] for n in (8, 5, 3, 2))
  assert found.flops == 3 * 3 * useful
  # Scores and their sum: 4 * 16 FLOPs a pair, of 2 * 8 * 8 and 2 * 4 * 4.
  assert found.padded_flops == 3 * 3 * (24 * each[0] + 64 * (128 + 32))


def test_the_compiler_counts_about_the_same():
  """Forward, on full rows; elementwise work makes the small difference."""
  rows, length = 4, 12
  config = bert.BertConfig(
    **{**CONFIG.__dict__, "hidden_size": 128, "intermediate_size": 512}
  )
  params = bert.init_params(config, jax.random.key(0))
  ids = jnp.ones((rows, length), jnp.int32)
  cost = (
    jax.jit(lambda p: bert.Bert(config).apply({"params": p}, ids, ids > 0))
    .lower(params)
    .compile()
    .cost_analysis()
  )
  mask = np.ones((rows, length), bool)
  forward = flops_lib.training_work(config, [mask]).flops / flops_lib.TRAINING
  assert 0.98 * forward < cost["flops"] < 1.1 * forward


def test_narrow_embeddings_are_projected():
  """One product more per token, in an ELECTRA whose embeddings are narrow."""
  sizes = dataclasses.asdict(CONFIG)
  narrow = encoder_config.ElectraConfig(**sizes, embedding_size=4)
  wide = encoder_config.ElectraConfig(**sizes, embedding_size=16)
  plain = flops_lib.encoding_flops(CONFIG, 8)
  assert flops_lib.encoding_flops(wide, 8) == plain
  assert flops_lib.encoding_flops(narrow, 8) == plain + 2 * 8 * 4 * 16
  first = flops_lib.encoding_flops(CONFIG, 8, first_only=True)
  found = flops_lib.encoding_flops(narrow, 8, first_only=True)
  assert found == first + 2 * 8 * 4 * 16


def test_gated_and_local_layers():
  """Three kernels instead of two; local layers see 1 + 4 tokens."""
  modern = encoder_config.ModernBertConfig(
    vocab_size=50,
    hidden_size=16,
    num_hidden_layers=4,
    num_attention_heads=2,
    intermediate_size=24,
    local_attention=4,
  )
  dense = 2 * (4 * 16 * 16 + 3 * 16 * 24)
  near, far = dense + 4 * 5 * 16, dense + 4 * 8 * 16
  assert flops_lib.encoding_flops(modern, 8) == 8 * (2 * far + 2 * near)


def test_encoding_for_position_0_alone():
  """Of all positions a layer is whole; others give keys and values only."""
  each, length = flops_lib.layer_flops(CONFIG, 8), 8
  assert flops_lib.encoding_flops(CONFIG, length) == 3 * length * each
  keys = 2 * 2 * 16 * 16
  assert flops_lib.encoding_flops(CONFIG, length, first_only=True) == (
    2 * length * each + each + 7 * keys
  )
