"""Sizes and FLOPs of a model of which there are no weights."""

import jax
import pytest

from dpr_jax.core import errors
from dpr_jax.models import bert, dual_encoder
from dpr_jax.planning import sizes


def test_sizes_need_no_weights(tiny_checkpoint, tiny_config):
  config = tiny_config.copy_and_resolve_references()
  model = sizes.model_of(config)
  assert all(
    isinstance(leaf, jax.ShapeDtypeStruct)
    for leaf in jax.tree.leaves(model.params)
  )
  config.model.checkpoint = "hf:nobody/knows"
  with pytest.raises(
    errors.InputError, match="does not use the network.*starter"
  ):
    sizes.model_of(config)
  config.model.checkpoint = "hf:google-bert/bert-base-uncased"
  config.model.passage_length = 256
  params = sizes.model_of(config).params["question"]
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  assert count == 108_891_648  # BERT-base without its pooler


def test_model_flops_are_those_of_the_formula(tiny_config):
  """LIMITS: 45.9 GFLOP for 256 tokens through BERT-base, every position."""
  config = tiny_config.copy_and_resolve_references()
  config.model.checkpoint = "hf:google-bert/bert-base-uncased"
  config.model.pooling = "mean"
  encoder = sizes.model_of(config).encoder
  wanted = 256 * (169.87e6 + 36_864 * 256)
  assert sizes.encode_flops(encoder, 1, 256) == pytest.approx(wanted, rel=1e-3)


def test_planning_counts_by_the_same_formula():
  """2 layers of width 4, inner 8, texts of 3: by hand, pooling by pooling.

  A token of a layer: 2 * (4 * 16 + 2 * 32) + 4 * 3 * 4 = 304.
  """
  config = bert.BertConfig(
    vocab_size=10,
    hidden_size=4,
    num_hidden_layers=2,
    num_attention_heads=1,
    intermediate_size=8,
    max_position_embeddings=8,
  )
  mean, first = (
    dual_encoder.DualEncoder(config, pooling=pooling)
    for pooling in ("mean", "cls")
  )
  assert sizes.encode_flops(mean, 5, 3) == 5 * 2 * 3 * 304
  # The last layer: 304 at position 0, keys and values (64) at two others.
  assert sizes.encode_flops(first, 5, 3) == 5 * (3 * 304 + 304 + 2 * 64)


def test_shapes_and_flops_of_a_batch(tiny_config):
  """8 questions over 4 devices, 2 hard negatives each: 24 passages."""
  config = tiny_config.copy_and_resolve_references()
  config.train.batch_size, config.train.hard_negatives = 8, 2
  config.train.mask_answers = True
  found = sizes.batch(config, 4)
  shapes = {
    name: found[name].shape
    for name in found
    if name not in ("questions", "passages")
  }
  assert shapes == {
    **{f"question_{name}": (4, 2) for name in ("rows", "keys")},
    "labels": (4, 2),
    **{f"passage_{name}": (4, 6) for name in ("rows", "valid", "keys")},
    "excluded": (4, 2, 24),
  }
  assert found["questions"]["ids"].shape == (4, 2, 16)
  assert found["passages"]["mask"].shape == (4, 6, 48)
  encoder = sizes.model_of(config).encoder
  forward = (
    sizes.encode_flops(encoder, 8, 16)
    + sizes.encode_flops(encoder, 24, 48)
    + 2 * 8 * 24 * 32
  )
  assert sizes.train_flops(config, encoder) == 3 * forward
