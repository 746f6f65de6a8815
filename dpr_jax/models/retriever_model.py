"""Builds a retriever: two towers, their parameters and their tokenizer.

`start` builds it from the config's pretrained checkpoint, for the beginning of
training; `stored_towers` opens what training has written.
"""

import copy
import dataclasses
import functools
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import tokenizers
from absl import logging

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors, setting_rules
from dpr_jax.data import tokenization
from dpr_jax.models import (
  bert,
  dual_encoder,
  model_settings,
  pooling_layers,
  tower_sources,
)

_KERNELS = {"fused": "tpu", "cudnn": "gpu"}  # devices of `bert.ATTENTIONS`


@dataclasses.dataclass(frozen=True)
class Towers:
  """A dual encoder with everything that it needs to encode text.

  Attributes:
    encoder: structure of the towers.
    params: parameters of the towers, in host memory.
    tokenizer: text to token ids; None where no text is encoded.
    step: training steps of the parameters; 0 = pretrained.
    head: what follows the hidden states, besides the settings.
  """

  encoder: dual_encoder.DualEncoder
  params: Any
  tokenizer: tokenization.TextTokenizer | None
  step: int = 0
  head: pooling_layers.Head = pooling_layers.Head()

  @functools.cached_property
  def fingerprint(self) -> str:
    """sha256 of weights, structure and text format: all a vector depends on."""
    digest = hashlib.sha256()
    _update(digest, self.params)
    structure: tuple[Any, ...] = (
      dataclasses.asdict(self.encoder.config),
      self.encoder.pooling,
      self.encoder.normalize,
      self.encoder.shared,
      self.tokenizer.text_format(),
      self.tokenizer.backend.to_str(),
    )
    if head := self.head.record():  # without one, as in older versions
      structure = (*structure, head)
    digest.update(repr(structure).encode())
    return digest.hexdigest()

  @property
  def settings(self) -> dict[str, Any]:
    """Settings of `config.model` that determine a vector (`DECIDING`)."""
    return {
      "pooling": self.encoder.pooling,
      "normalize": self.encoder.normalize,
      "shared_towers": self.encoder.shared,
      **self.tokenizer.text_format(),
    }


def _update(digest: Any, params: Any) -> None:
  """Adds names and bytes of all parameters to a hash."""
  for path, value in jax.tree.leaves_with_path(params):
    digest.update(jax.tree_util.keystr(path).encode())
    # A view as bytes, not a copy of them: hashing is half of the time.
    digest.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8))


def weights_digest(params: Any) -> str:
  """sha256 of all parameters."""
  digest = hashlib.sha256()
  _update(digest, params)
  return digest.hexdigest()


def compute_dtype(name: str) -> Any:
  """float32 or bfloat16; "auto" is float32 on CPUs, bfloat16 elsewhere."""
  config_lib.one_of(
    "model.compute_dtype", name, ("auto", "float32", "bfloat16")
  )
  if name == "auto":
    name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
  return jnp.dtype(name)


def attention(name: str) -> str:
  """`name` if it is a valid `attention` of `bert.Bert`, else `InputError`.

  The kernels compute the same everywhere, so that a model can be used on any
  machine; a warning says where that is slow.
  """
  config_lib.one_of("model.attention", name, bert.ATTENTIONS)
  platform, made_for = jax.default_backend(), _KERNELS.get(name)
  if made_for not in (None, platform):
    logging.warning(
      "config.model.attention=%s is made for a %s and is slower on this %s"
      " than plain",
      name,
      made_for.upper(),
      platform.upper(),
    )
  return name


def resolved(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """A copy of the config with what the checkpoint says in place of "auto".

  Raises:
    InputError: there is no such checkpoint.
  """
  source = tower_sources.of_model(config.model, config.seed)
  config = copy.deepcopy(config)
  model_settings.take(config.model, source.resolved(config.model))
  return config


def structure(
  model: ml_collections.ConfigDict,
  bert_config: bert.BertConfig,
  head: pooling_layers.Head | None = None,
  backend: tokenizers.Tokenizer | None = None,
) -> dual_encoder.DualEncoder:
  """The towers of `config.model`, for a checkpoint of these sizes.

  Args:
    model: section `model` of a resolved config.
    bert_config: sizes of the checkpoint.
    head: what follows the hidden states; None = nothing but the settings.
    backend: tokenizer of the checkpoint; needed if prefixes are not pooled.

  Raises:
    InputError: texts may be longer than the checkpoint has positions.
  """
  head = head or pooling_layers.Head()
  bert_config = with_dropout(bert_config, model.dropout)
  for name in ("question_length", "passage_length"):
    if model[name] > bert_config.max_position_embeddings:
      raise errors.InputError(
        f"config.model.{name}={model[name]}: checkpoint"
        f" {setting_rules.checkpoint_name(model)} has"
        f" {bert_config.max_position_embeddings} positions"
      )
  return dual_encoder.DualEncoder(
    bert_config,
    pooling=model.pooling,
    normalize=model.normalize,
    shared=model.shared_towers,
    dtype=compute_dtype(model.compute_dtype),
    attention=attention(model.attention),
    dense=head.dense,
    **skips(model, head, backend),
  )


def skips(
  model: Any,
  head: pooling_layers.Head,
  backend: tokenizers.Tokenizer | None,
) -> dict[str, int]:
  """`question_skip` and `passage_skip` of `DualEncoder`.

  Raises:
    InputError: a prefix is as long as the texts, so that nothing is pooled.
  """
  if head.pools_prefix or backend is None:
    return {}
  found = {}
  for kind in ("question", "passage"):
    prefix, length = model[f"{kind}_prefix"], model[f"{kind}_length"]
    count = tower_sources.prefix_tokens(backend, prefix)
    if count >= length - 1:
      raise errors.InputError(
        f"config.model.{kind}_prefix={prefix!r}: has {count} tokens, which this"
        f" checkpoint does not pool, and config.model.{kind}_length={length}"
        " leaves no others: set it higher"
      )
    found[f"{kind}_skip"] = count
  return found


def start(config: ml_collections.ConfigDict) -> Towers:
  """The towers before training, as `config.model` describes them."""
  source = tower_sources.of_model(config.model, config.seed)
  return from_source(source, config.model)


def from_source(
  source: tower_sources.Source, model: ml_collections.ConfigDict
) -> Towers:
  """The towers that `model` describes, with the parameters of a source.

  Args:
    source: a checkpoint.
    model: section `model` of a config, resolved or not.
  """
  model = tower_sources.with_values(model, source.resolved(model))
  backend = source.tokenizer()
  return assemble(model, source.sizes, backend, source.head, source.trees())


def assemble(
  model: ml_collections.ConfigDict,
  bert_config: bert.BertConfig,
  backend: tokenizers.Tokenizer,
  head: pooling_layers.Head,
  trees: tuple[Any, Any] | None,
) -> Towers:
  """Structure, text format and parameters of `config.model`.

  Args:
    model: section `model` of a resolved config.
    bert_config: sizes of the checkpoint.
    backend: tokenizer of the checkpoint.
    head: what follows the hidden states.
    trees: parameters of questions, or of both towers, and of passages, or None;
      None = none yet.
  """
  encoder = structure(model, bert_config, head, backend)
  tokenizer = tokenization.TextTokenizer(
    backend,
    question_length=model.question_length,
    passage_length=model.passage_length,
    title=model.title,
    question_prefix=model.question_prefix,
    passage_prefix=model.passage_prefix,
  )
  params = None if trees is None else encoder.towers(*trees)
  return Towers(encoder, params, tokenizer, head=head)


def with_dropout(config: bert.BertConfig, rate: float) -> bert.BertConfig:
  """Sets one dropout rate everywhere; negative = keep the checkpoint's."""
  if rate < 0:
    return config
  return dataclasses.replace(
    config, hidden_dropout_prob=rate, attention_probs_dropout_prob=rate
  )
