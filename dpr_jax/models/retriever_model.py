"""Builds a retriever: two towers, their parameters and their tokenizer.

`start` builds it from the config's pretrained checkpoint, for the beginning of
training; `stored_towers` opens what training has written.
"""

import dataclasses
import functools
import hashlib
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import tokenizers
from absl import logging

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.data import tokenization
from dpr_jax.models import bert, checkpoint_sources, dual_encoder, hf_weights


@dataclasses.dataclass(frozen=True)
class Towers:
  """A dual encoder with everything that it needs to encode text.

  Attributes:
    encoder: structure of the towers.
    params: parameters of the towers, in host memory.
    tokenizer: text to token ids; None where no text is encoded.
    step: training steps of the parameters; 0 = pretrained.
  """

  encoder: dual_encoder.DualEncoder
  params: Any
  tokenizer: tokenization.TextTokenizer | None
  step: int = 0

  @functools.cached_property
  def fingerprint(self) -> str:
    """sha256 of weights, structure and text format: all a vector depends on."""
    digest = hashlib.sha256()
    _update(digest, self.params)
    structure = (
      dataclasses.asdict(self.encoder.config),
      self.encoder.pooling,
      self.encoder.normalize,
      self.encoder.shared,
      self.tokenizer.text_format(),
      self.tokenizer.backend.to_str(),
    )
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
    digest.update(np.ascontiguousarray(value).tobytes())


def weights_digest(params: Any) -> str:
  """sha256 of all parameters."""
  digest = hashlib.sha256()
  _update(digest, params)
  return digest.hexdigest()


def compute_dtype(name: str) -> Any:
  """float32 or bfloat16; "auto" is bfloat16 on a TPU, float32 elsewhere."""
  config_lib.one_of(
    "model.compute_dtype", name, ("auto", "float32", "bfloat16")
  )
  if name == "auto":
    name = "bfloat16" if jax.default_backend() == "tpu" else "float32"
  return jnp.dtype(name)


def attention(name: str) -> str:
  """`name` if it is a valid `attention` of `bert.Bert`, else `InputError`."""
  return config_lib.one_of("model.attention", name, bert.ATTENTIONS)


def random_sizes(model: ml_collections.ConfigDict) -> bert.BertConfig:
  """Sizes of `config.model.checkpoint="random"`."""
  return bert.BertConfig(
    hidden_size=model.random_width,
    num_hidden_layers=model.random_layers,
    num_attention_heads=model.random_heads,
    intermediate_size=4 * model.random_width,
  )


def structure(
  model: ml_collections.ConfigDict, bert_config: bert.BertConfig
) -> dual_encoder.DualEncoder:
  """The towers of `config.model`, for a checkpoint of these sizes.

  Raises:
    InputError: texts may be longer than the checkpoint has positions.
  """
  bert_config = with_dropout(bert_config, model.dropout)
  for name in ("question_length", "passage_length"):
    if model[name] > bert_config.max_position_embeddings:
      raise errors.InputError(
        f"config.model.{name}={model[name]}: checkpoint {model.checkpoint} has"
        f" {bert_config.max_position_embeddings} positions"
      )
  return dual_encoder.DualEncoder(
    bert_config,
    pooling=model.pooling,
    normalize=model.normalize,
    shared=model.shared_towers,
    dtype=compute_dtype(model.compute_dtype),
    attention=attention(model.attention),
  )


def start(config: ml_collections.ConfigDict) -> Towers:
  """The towers before training, as `config.model` describes them."""
  folder, bert_config, tower = load_base(config, config.model.checkpoint)
  backend = checked_tokenizer(folder, bert_config)
  return assemble(config.model, bert_config, backend, tower)


def assemble(
  model: ml_collections.ConfigDict,
  bert_config: bert.BertConfig,
  backend: tokenizers.Tokenizer,
  tower: Any,
) -> Towers:
  """Structure, text format and parameters of `config.model`.

  Args:
    model: section `model` of the config.
    bert_config: sizes of the checkpoint.
    backend: tokenizer of the checkpoint.
    tower: parameters that both towers start from; None = none yet.
  """
  encoder = structure(model, bert_config)
  tokenizer = tokenization.TextTokenizer(
    backend,
    question_length=model.question_length,
    passage_length=model.passage_length,
    title=model.title,
    question_prefix=model.question_prefix,
    passage_prefix=model.passage_prefix,
  )
  params = None if tower is None else encoder.towers(tower)
  return Towers(encoder, params, tokenizer)


def load_base(
  config: ml_collections.ConfigDict, checkpoint: str
) -> tuple[pathlib.Path, bert.BertConfig, Any]:
  """Folder (for the tokenizer), sizes and parameters of a pretrained BERT.

  Args:
    config: its section `model` has the sizes of "random".
    checkpoint: name of the checkpoint, as in `config.model.checkpoint`.
  """
  folder, bert_config = load_sizes(config.model, checkpoint)
  if checkpoint != "random":
    logging.info("loading the pretrained model %s from %s", checkpoint, folder)
    return folder, *hf_weights.load_bert(folder)
  tower = bert.init_params(bert_config, jax.random.key(config.seed))
  return folder, bert_config, jax.tree.map(np.asarray, tower)


def load_sizes(
  model: ml_collections.ConfigDict, checkpoint: str
) -> tuple[pathlib.Path, bert.BertConfig]:
  """As `load_base`, without the parameters."""
  if checkpoint == "random":
    return checkpoint_sources.checkpoint_folder("starter"), random_sizes(model)
  folder = checkpoint_sources.checkpoint_folder(checkpoint)
  return folder, bert.BertConfig.read(folder)


def with_dropout(config: bert.BertConfig, rate: float) -> bert.BertConfig:
  """Sets one dropout rate everywhere; negative = keep the checkpoint's."""
  if rate < 0:
    return config
  return dataclasses.replace(
    config, hidden_dropout_prob=rate, attention_probs_dropout_prob=rate
  )


def checked_tokenizer(
  folder: pathlib.Path, config: bert.BertConfig
) -> tokenizers.Tokenizer:
  """The tokenizer of a folder; `InputError` where it is another model's."""
  backend = tokenization.load_tokenizer(folder)
  if backend.get_vocab_size() > config.vocab_size:
    raise errors.InputError(
      f"{folder}: the tokenizer has {backend.get_vocab_size()} tokens, the"
      f" model {config.vocab_size}: they are not of the same checkpoint; copy"
      " both from one"
    )
  return backend
