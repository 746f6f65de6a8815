"""Sizes of a config's BERT and shapes of its arrays, without any file of it.

What `plan` compiles must have the shapes of training, and needs neither
weights nor data nor a network.
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors, setting_rules
from dpr_jax.models import bert, retriever_model
from dpr_jax.models import flops as flops_lib

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
}


def bert_config(model: ml_collections.ConfigDict) -> bert.BertConfig:
  """Sizes of `config.model.checkpoint`.

  Raises:
    InputError: neither known nor a folder with a config.json.
  """
  name = model.checkpoint
  if name == "random":
    return retriever_model.random_sizes(model)
  if name in KNOWN:
    return KNOWN[name]
  folder = pathlib.Path(name).expanduser()
  if not folder.is_dir():
    raise errors.InputError(
      f"config.model.checkpoint={name!r}: plan looks nothing up in a network;"
      f" known are {', '.join(KNOWN)}, and any folder with a config.json"
    )
  return bert.BertConfig.read(folder)


def model_of(config: ml_collections.ConfigDict) -> retriever_model.Towers:
  """The towers with shapes for parameters, and no tokenizer."""
  sizes = bert_config(config.model)
  encoder = retriever_model.structure(config.model, sizes)
  params = jax.eval_shape(
    lambda: encoder.towers(bert.init_params(sizes, jax.random.key(0)))
  )
  return retriever_model.Towers(encoder, params, None)


def texts(cores: int, rows: int, length: int) -> dict[str, Any]:
  """One group of a batch, `rows` texts per core."""
  shape = (cores, rows, length)
  return {
    "ids": jax.ShapeDtypeStruct(shape, jnp.int32),
    "mask": jax.ShapeDtypeStruct(shape, jnp.bool_),
  }


def batch(config: ml_collections.ConfigDict, cores: int) -> dict[str, Any]:
  """Shapes of `batches.BatchSource`'s batch, dealt to the cores.

  With one group per kind of text, each of full length.

  Raises:
    InputError: the cores do not divide the batch.
  """
  train = config.train
  config_lib.at_least("train.batch_size", train.batch_size, 1)
  setting_rules.divides(train.batch_size, cores)
  questions = train.batch_size // cores
  passages = questions * (1 + train.hard_negatives)
  length = train.passage_length or config.model.passage_length

  def numbers(rows: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((cores, rows), dtype)

  found = {
    "questions": (texts(cores, questions, config.model.question_length),),
    "passages": (texts(cores, passages, length),),
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
  """FLOPs of the model's way forward over `rows` texts of `length` tokens."""
  return rows * flops_lib.encoding_flops(
    encoder.config, length, first_only=encoder.pooling == "cls"
  )


def train_flops(config: ml_collections.ConfigDict, encoder: Any) -> int:
  """Model FLOPs of a train step over all cores, forward and backward."""
  train = config.train
  questions = train.batch_size
  passages = questions * (1 + train.hard_negatives)
  length = train.passage_length or config.model.passage_length
  width = encoder.config.hidden_size
  forward = (
    encode_flops(encoder, questions, config.model.question_length)
    + encode_flops(encoder, passages, length)
    + 2 * questions * passages * width  # scores
  )
  return flops_lib.TRAINING * forward
