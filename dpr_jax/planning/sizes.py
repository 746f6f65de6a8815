"""Sizes of a config's model and shapes of its batches, without any weights.

`plan` compiles the training step for these shapes; it needs no weights, no data
and no network.
"""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors, setting_rules
from dpr_jax.data import packing
from dpr_jax.models import (
  bert,
  encoder_config,
  retriever_model,
  tower_sources,
)
from dpr_jax.models import flops as flops_lib
from dpr_jax.planning import text_lengths
from dpr_jax.training import packed_batches

_XLM_R = encoder_config.RobertaConfig(
  model_type="xlm-roberta", vocab_size=250002, layer_norm_eps=1e-5
)
# `config.json` of checkpoints that `config.model.checkpoint` may name.
KNOWN = {
  "starter": bert.BertConfig(
    hidden_size=384, num_hidden_layers=6, intermediate_size=1536
  ),
  "hf:google-bert/bert-base-uncased": bert.BertConfig(),
  "hf:google-bert/bert-large-uncased": bert.BertConfig(
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    intermediate_size=4096,
  ),
  "hf:FacebookAI/roberta-base": encoder_config.RobertaConfig(
    layer_norm_eps=1e-5
  ),
  "hf:FacebookAI/xlm-roberta-base": _XLM_R,
  "hf:intfloat/multilingual-e5-base": _XLM_R,
  "hf:BAAI/bge-m3": encoder_config.RobertaConfig(
    model_type="xlm-roberta",
    vocab_size=250002,
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    intermediate_size=4096,
    max_position_embeddings=8192,
    layer_norm_eps=1e-5,
  ),
  "hf:sentence-transformers/all-mpnet-base-v2": encoder_config.MPNetConfig(
    layer_norm_eps=1e-5
  ),
  "hf:answerdotai/ModernBERT-base": encoder_config.ModernBertConfig(),
  "hf:distilbert/distilbert-base-uncased": encoder_config.DistilBertConfig(),
}


def _said(pooling: str, length: int) -> dict[str, Any]:
  """What the files of a Sentence-Transformers checkpoint say."""
  return {
    "pooling": pooling,
    "normalize": True,
    "title": "joined",
    "question_length": length,
    "passage_length": length,
  }


# What their files say, where it differs from DPR's settings.
SAID = {
  "starter": _said("mean", 256),
  "hf:intfloat/multilingual-e5-base": _said("mean", 512),
  "hf:BAAI/bge-m3": _said("cls", 8192),
  "hf:sentence-transformers/all-mpnet-base-v2": _said("mean", 384),
}


def source(model: ml_collections.ConfigDict) -> tower_sources.Source:
  """The checkpoint of a section `model`; no weights are read.

  Raises:
    InputError: the checkpoint is neither a known name nor a folder.
  """
  names = [model.question_checkpoint, model.passage_checkpoint]
  for name in filter(None, names if any(names) else [model.checkpoint]):
    if name in KNOWN and not any(names):
      sizes, said = KNOWN[name], SAID.get(name, {})
      return tower_sources.Source.of_sizes(name, sizes, said)
    if name != "random" and not pathlib.Path(name).expanduser().exists():
      raise errors.InputError(
        f"config.model.checkpoint={name!r}: plan does not use the network: give"
        f" {', '.join(KNOWN)}, or a folder with a config.json"
      )
  return tower_sources.of_model(model, 0)


def resolved(model: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """A copy of section `model` with "auto" as the checkpoint says."""
  return tower_sources.with_values(model, source(model).resolved(model))


def model_of(config: ml_collections.ConfigDict) -> retriever_model.Towers:
  """The towers with shapes in place of parameters, and without tokenizer."""
  checkpoint = source(config.model)
  sizes, head = checkpoint.sizes, checkpoint.head
  encoder = retriever_model.structure(resolved(config.model), sizes, head)
  dense = jax.tree.map(
    lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
    head.shapes(),
    is_leaf=lambda x: isinstance(x, tuple),
  )
  params = jax.eval_shape(
    lambda dense: encoder.towers(
      bert.init_params(sizes, jax.random.key(0)) | dense
    ),
    dense,
  )
  return retriever_model.Towers(encoder, params, None, head=head)


def texts(cores: int, rows: int, length: int) -> dict[str, Any]:
  """Shapes of the padded texts of one kind, `rows` texts per device."""
  shape = (cores, rows, length)
  return {
    "ids": jax.ShapeDtypeStruct(shape, jnp.int32),
    "mask": jax.ShapeDtypeStruct(shape, jnp.bool_),
  }


def packed(
  cores: int, layout: packed_batches.Layout, shapes: packing.Shapes
) -> dict[str, Any]:
  """Shapes of the packed texts of one kind in a batch."""

  def numbers(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((cores, layout.rows, *sizes), jnp.int32)

  flat = ("token_ids", "positions", "slots", "sources")
  return {name: numbers(shapes.width) for name in flat} | {
    "tiles": tuple(
      {
        "places": numbers(tile.slots, tile.length),
        "lengths": numbers(tile.slots),
      }
      for tile in shapes.tiles
    )
  }


def limits(config: ml_collections.ConfigDict) -> tuple[int, int]:
  """Maximum tokens of a question and of a passage in training."""
  model = resolved(config.model)
  length = config.train.passage_length or model.passage_length
  return model.question_length, length


def batch(
  config: ml_collections.ConfigDict,
  cores: int,
  rows: text_lengths.Rows | None = None,
) -> dict[str, Any]:
  """Shapes of a batch, split over the devices.

  Args:
    config: configuration of the experiment.
    cores: number of devices.
    rows: rows of packed texts, as in `packed_batches`; None = texts are padded
      to full length (`batches.BatchSource`).

  Raises:
    InputError: the number of devices does not divide the batch size.
  """
  train = config.train
  config_lib.at_least("train.batch_size", train.batch_size, 1)
  setting_rules.divides(train.batch_size, cores)
  questions = train.batch_size // cores
  passages = questions * (1 + train.hard_negatives)
  if rows is None:
    counts = questions, passages
    of_texts = [
      texts(cores, count, length)
      for count, length in zip(counts, limits(config), strict=True)
    ]
  else:
    of_texts = [
      packed(cores, layout, shapes)
      for layout, shapes in zip(rows.layouts, rows.shapes, strict=True)
    ]

  def numbers(rows: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((cores, rows), dtype)

  found = {
    **dict(zip(packed_batches.KINDS, of_texts, strict=True)),
    "question_rows": numbers(questions),
    "question_keys": numbers(questions),
    "labels": numbers(questions),
    "passage_rows": numbers(passages),
    "passage_valid": numbers(passages, jnp.bool_),
    "passage_keys": numbers(passages),
  }
  if train.mask_answers:
    found["excluded"] = jax.ShapeDtypeStruct(
      (cores, questions, cores * passages), jnp.bool_
    )
  return found


def encode_flops(encoder: Any, rows: int, length: int) -> int:
  """FLOPs of the forward pass over `rows` texts of `length` tokens."""
  dense = sum(2 * layer.inputs * layer.outputs for layer in encoder.dense)
  return rows * (
    dense
    + flops_lib.encoding_flops(
      encoder.config, length, first_only=encoder.first_only
    )
  )


def train_flops(
  config: ml_collections.ConfigDict,
  encoder: Any,
  lengths: text_lengths.Lengths | None = None,
) -> int:
  """Model FLOPs of a train step, forward and backward, over all devices.

  Args:
    config: configuration of the experiment.
    encoder: structure of the towers.
    lengths: texts have these lengths, and the mean of their FLOPs; None = all
      are as long as they may be.
  """
  train = config.train
  questions = train.batch_size
  passages = questions * (1 + train.hard_negatives)
  of_text = [encode_flops(encoder, 1, limit) for limit in limits(config)]
  if lengths is not None:
    of_text = [
      text_lengths.mean(each, functools.partial(encode_flops, encoder, 1))
      for each in lengths.of_kinds
    ]
  forward = (
    questions * of_text[0]
    + passages * of_text[1]
    + 2 * questions * passages * encoder.dim  # scores
  )
  return round(flops_lib.TRAINING * forward)
