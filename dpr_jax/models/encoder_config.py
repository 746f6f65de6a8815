"""Sizes of the encoders that can be computed, one class per architecture.

Input: the `config.json` of a Hugging Face folder.  Output: a frozen
description that `bert.Bert` computes, `tensor_names` names the weights of and
`flops` counts.  All are BERTs with a few differences, so all are subclasses of
`BertConfig` and have its names for what they share.  This module does not
import JAX.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar

from dpr_jax.core import errors
from dpr_jax.models import config_json, modern_bert_json

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu")


@dataclasses.dataclass(frozen=True)
class BertConfig:
  """Sizes of a BERT; field names are those of Hugging Face's config.json.

  Attributes:
    max_position_embeddings: tokens of the longest text.  Hugging Face counts
      the `position_offset` unused rows of the table as well.
    type_vocab_size: number of token types; 0 = no token types.
  """

  vocab_size: int = 30522
  hidden_size: int = 768
  num_hidden_layers: int = 12
  num_attention_heads: int = 12
  intermediate_size: int = 3072
  hidden_act: str = "gelu"
  hidden_dropout_prob: float = 0.1
  attention_probs_dropout_prob: float = 0.1
  max_position_embeddings: int = 512
  type_vocab_size: int = 2
  initializer_range: float = 0.02
  layer_norm_eps: float = 1e-12

  title: ClassVar[str] = "BERT"  # in messages
  model_type: ClassVar[str] = "bert"
  # Class of transformers, and the prefix of its tensors where a head uses it.
  architecture: ClassVar[str] = "BertModel"
  prefix: ClassVar[str] = "bert."
  # Rows of the position table before that of the first token.
  position_offset: ClassVar[int] = 0
  # Width of the embeddings where it is not hidden_size; 0 = it is.
  embedding_size: ClassVar[int] = 0
  # Buckets of relative positions, whose biases all layers share; 0 = none.
  relative_attention_num_buckets: ClassVar[int] = 0
  # Tokens that a layer with local attention looks at; 0 = no such layers.
  local_attention: ClassVar[int] = 0
  # The shape of ModernBERT: LayerNorm before instead of after attention and
  # feed-forward part, which is gated, rotated positions, and no biases.
  pre_norm: ClassVar[bool] = False
  # Whether `fused_attention` computes its attention.
  fusible: ClassVar[bool] = True

  def __post_init__(self):
    if self.hidden_size % self.num_attention_heads:
      raise errors.InputError(
        f"hidden_size {self.hidden_size} is not a multiple of"
        f" num_attention_heads {self.num_attention_heads}"
      )
    if self.hidden_act not in ACTIVATIONS:
      raise errors.InputError(
        f"hidden_act {self.hidden_act!r} is not supported: it must be one of"
        f" {', '.join(ACTIVATIONS)}"
      )

  @property
  def has_segments(self) -> bool:
    """Whether token types tell the texts of a pair apart."""
    return self.type_vocab_size > 1

  @property
  def embedding_width(self) -> int:
    """Width of the embedding tables."""
    return self.embedding_size or self.hidden_size

  @property
  def position_rows(self) -> int:
    """Rows of the position table."""
    return self.max_position_embeddings + self.position_offset

  @classmethod
  def read(cls, folder: pathlib.Path) -> "BertConfig":
    """Reads `config.json`, whatever the architecture.

    Raises:
      InputError: it is not of a supported encoder.
    """
    path = pathlib.Path(folder) / "config.json"
    return from_json(path, config_json.read(path))

  @classmethod
  def build(cls, path: pathlib.Path, raw: Mapping[str, Any]) -> "BertConfig":
    """The description in the content of a `config.json`.

    Args:
      path: path of the file, for errors.
      raw: content of the file.
    """
    raw = dict(raw)
    if raw.get("position_embedding_type", "absolute") != "absolute":
      raise errors.InputError(
        f"{path}: position_embedding_type"
        f" {raw['position_embedding_type']!r}: only 'absolute' is supported"
      )
    return config_json.build(path, raw, cls)

  def to_json(self) -> dict[str, Any]:
    """Content of a `config.json` for transformers; `read` is its inverse."""
    return dataclasses.asdict(self) | {
      "model_type": self.model_type,
      "architectures": [self.architecture],
    }


@dataclasses.dataclass(frozen=True)
class RobertaConfig(BertConfig):
  """A RoBERTa, XLM-R or CamemBERT: a BERT whose positions start later.

  Attributes:
    model_type: as in Hugging Face's config.json; a key of `_ROBERTAS`.
    position_offset: the token id of padding, plus 1.
  """

  vocab_size: int = 50265
  type_vocab_size: int = 1
  model_type: str = "roberta"  # pyright: ignore
  position_offset: int = 2  # pyright: ignore

  title: ClassVar[str] = "RoBERTa"
  prefix: ClassVar[str] = "roberta."

  @property
  def has_segments(self) -> bool:
    """Its tokenizers give all tokens type 0, even where the table has two."""
    return False

  @property
  def architecture(self) -> str:
    """Class of transformers."""
    return _ROBERTAS[self.model_type]

  @classmethod
  def build(cls, path: pathlib.Path, raw: Mapping[str, Any]) -> "BertConfig":
    """See `BertConfig.build`."""
    raw = dict(raw)
    padding = raw.get("pad_token_id")
    padding = 1 if padding is None else padding
    if not isinstance(padding, int) or not 0 <= padding < 1 << 30:
      raise errors.InputError(
        f"{path}: pad_token_id is {str(padding)[:80]!r}, not a token id"
      )
    raw["position_offset"] = padding + 1
    return super().build(path, _without_offset(path, raw, padding + 1))

  def to_json(self) -> dict[str, Any]:
    """See `BertConfig.to_json`."""
    values = super().to_json()
    return values | {
      "pad_token_id": values.pop("position_offset") - 1,
      "max_position_embeddings": self.position_rows,
    }


_ROBERTAS = {
  "roberta": "RobertaModel",
  "xlm-roberta": "XLMRobertaModel",
  "camembert": "CamembertModel",
}


def _without_offset(
  path: pathlib.Path, raw: dict[str, Any], offset: int
) -> dict[str, Any]:
  """`max_position_embeddings` as tokens of the longest text."""
  rows = raw.get("max_position_embeddings", 512 + offset)
  if isinstance(rows, int) and rows <= offset:
    raise errors.InputError(
      f"{path}: max_position_embeddings is {rows}: the first {offset} positions"
      " are never used, so no text would fit"
    )
  whole = isinstance(rows, int) and not isinstance(rows, bool)
  return raw | {"max_position_embeddings": rows - offset if whole else rows}


@dataclasses.dataclass(frozen=True)
class MPNetConfig(BertConfig):
  """An MPNet: a RoBERTa without token types and with relative positions.

  Attributes:
    relative_attention_num_buckets: see `relative_positions.py`.
  """

  vocab_size: int = 30527
  type_vocab_size: int = 0
  relative_attention_num_buckets: int = 32  # pyright: ignore

  title: ClassVar[str] = "MPNet"
  model_type: ClassVar[str] = "mpnet"
  architecture: ClassVar[str] = "MPNetModel"
  prefix: ClassVar[str] = "mpnet."
  position_offset: ClassVar[int] = 2  # whatever pad_token_id is
  fusible: ClassVar[bool] = False

  def __post_init__(self):
    super().__post_init__()
    if self.relative_attention_num_buckets % 4:
      raise errors.InputError(
        f"relative_attention_num_buckets {self.relative_attention_num_buckets}"
        " is not a multiple of 4"
      )

  @classmethod
  def build(cls, path: pathlib.Path, raw: Mapping[str, Any]) -> "BertConfig":
    """See `BertConfig.build`."""
    raw = {key: raw[key] for key in raw if key != "type_vocab_size"}
    return super().build(path, _without_offset(path, raw, cls.position_offset))

  def to_json(self) -> dict[str, Any]:
    """See `BertConfig.to_json`."""
    values = super().to_json()
    del values["type_vocab_size"]
    return values | {"max_position_embeddings": self.position_rows}


@dataclasses.dataclass(frozen=True)
class DistilBertConfig(BertConfig):
  """A DistilBERT: a BERT without token types, under other names."""

  num_hidden_layers: int = 6
  type_vocab_size: int = 0

  title: ClassVar[str] = "DistilBERT"
  model_type: ClassVar[str] = "distilbert"
  architecture: ClassVar[str] = "DistilBertModel"
  prefix: ClassVar[str] = "distilbert."

  @classmethod
  def build(cls, path: pathlib.Path, raw: Mapping[str, Any]) -> "BertConfig":
    """See `BertConfig.build`."""
    # Its code has BERT's epsilon, whatever its config.json says.
    known = ("vocab_size", "max_position_embeddings", "initializer_range")
    ours = {key: raw[key] for key in known if key in raw}
    ours |= {_DISTILBERT[key]: raw[key] for key in _DISTILBERT if key in raw}
    return super().build(path, ours)

  def to_json(self) -> dict[str, Any]:
    """See `BertConfig.to_json`."""
    values = super().to_json()
    del values["type_vocab_size"], values["layer_norm_eps"]
    theirs = {name: values.pop(ours) for name, ours in _DISTILBERT.items()}
    return values | theirs


_DISTILBERT = {
  "dim": "hidden_size",
  "n_layers": "num_hidden_layers",
  "n_heads": "num_attention_heads",
  "hidden_dim": "intermediate_size",
  "activation": "hidden_act",
  "dropout": "hidden_dropout_prob",
  "attention_dropout": "attention_probs_dropout_prob",
}


@dataclasses.dataclass(frozen=True)
class ElectraConfig(BertConfig):
  """An ELECTRA, discriminator or generator: a BERT with narrow embeddings.

  Attributes:
    embedding_size: width of the embeddings, projected to hidden_size if that is
      another.
  """

  embedding_size: int = 128  # pyright: ignore
  hidden_size: int = 256
  num_attention_heads: int = 4
  intermediate_size: int = 1024

  title: ClassVar[str] = "ELECTRA"
  model_type: ClassVar[str] = "electra"
  architecture: ClassVar[str] = "ElectraModel"
  prefix: ClassVar[str] = "electra."


@dataclasses.dataclass(frozen=True)
class ModernBertConfig(BertConfig):
  """A ModernBERT, computed by `modern_bert.py`.

  Attributes:
    hidden_dropout_prob: dropout of embeddings and of the feed-forward part.
    attention_probs_dropout_prob: dropout of attention weights and output.
    global_attn_every_n_layers: every such layer, from the first on, attends to
      all tokens, the others to near ones.
    local_attention: a token and half of this number on each side are near.
    global_rope_theta: base of the wavelengths of positions in global layers.
    local_rope_theta: the same in the others.
  """

  vocab_size: int = 50368
  num_hidden_layers: int = 22
  intermediate_size: int = 1152
  hidden_dropout_prob: float = 0.0
  attention_probs_dropout_prob: float = 0.0
  max_position_embeddings: int = 8192
  type_vocab_size: int = 0
  layer_norm_eps: float = 1e-5
  global_attn_every_n_layers: int = 3
  local_attention: int = 128  # pyright: ignore
  global_rope_theta: int = 160_000
  local_rope_theta: int = 10_000

  title: ClassVar[str] = "ModernBERT"
  model_type: ClassVar[str] = "modernbert"
  architecture: ClassVar[str] = "ModernBertModel"
  prefix: ClassVar[str] = "model."
  pre_norm: ClassVar[bool] = True
  fusible: ClassVar[bool] = False

  def __post_init__(self):
    super().__post_init__()
    if self.hidden_size // self.num_attention_heads % 2:
      raise errors.InputError(
        f"heads of width {self.hidden_size // self.num_attention_heads}: an"
        " even width is needed to rotate positions"
      )

  @classmethod
  def build(cls, path: pathlib.Path, raw: Mapping[str, Any]) -> "BertConfig":
    """See `BertConfig.build`."""
    return super().build(path, modern_bert_json.ours(path, raw))

  def to_json(self) -> dict[str, Any]:
    """See `BertConfig.to_json`."""
    return modern_bert_json.theirs(super().to_json())


FAMILIES: dict[str, type[BertConfig]] = {
  "bert": BertConfig,
  "dpr": BertConfig,
  **dict.fromkeys(_ROBERTAS, RobertaConfig),
  **{
    family.model_type: family
    for family in (
      *(MPNetConfig, DistilBertConfig, ElectraConfig),
      ModernBertConfig,
    )
  },
}


def from_json(path: pathlib.Path, raw: Mapping[str, Any]) -> BertConfig:
  """The description in the content of a `config.json`.

  Args:
    path: path of the file, for errors.
    raw: content of the file; without a model_type it is a BERT's.

  Raises:
    InputError: it is not of a supported encoder, or a value is out of range.
  """
  name = raw.get("model_type", "bert")
  family = FAMILIES.get(name) if isinstance(name, str) else None
  if family is None:
    raise errors.InputError(
      f"{path}: model_type {name!r} is not supported: it must be one of"
      f" {', '.join(FAMILIES)}"
    )
  return family.build(path, raw)
