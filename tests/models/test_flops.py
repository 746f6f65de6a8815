"""Counting work: by hand, and against what the model really multiplies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpr_jax.models import bert
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


def test_encoding_for_position_0_alone():
  """Of all positions a layer is whole; others give keys and values only."""
  each, length = flops_lib.layer_flops(CONFIG, 8), 8
  assert flops_lib.encoding_flops(CONFIG, length) == 3 * length * each
  keys = 2 * 2 * 16 * 16
  assert flops_lib.encoding_flops(CONFIG, length, first_only=True) == (
    2 * length * each + each + 7 * keys
  )
