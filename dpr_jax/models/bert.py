"""BERT in Flax Linen: token ids in, hidden states out.

The model of Devlin et al. 2018 as Hugging Face lays it out, with two habits of
its own: dropout takes one random key per text, so that what is dropped from a
text does not depend on which core or chunk it is encoded in; and the last layer
can be computed for position 0 alone, which is exact and all that [CLS] pooling
needs.  `pretrained.py` maps the parameters to Hugging Face names, the dual
encoder and the reader put heads on top.
"""

import dataclasses
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key

from dpr_jax import errors, workdir

ACTIVATIONS = {
  "gelu": lambda x: nn.gelu(x, approximate=False),
  "gelu_new": lambda x: nn.gelu(x, approximate=True),
  "relu": nn.relu,
}


@dataclasses.dataclass(frozen=True)
class BertConfig:
  """Sizes of a BERT; field names are those of Hugging Face's config.json."""

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

  @classmethod
  def read(cls, folder: pathlib.Path) -> "BertConfig":
    """Reads `config.json` of a Hugging Face folder.

    Raises:
      InputError: no such file, not JSON, or not a BERT with absolute positions.
    """
    path = pathlib.Path(folder) / "config.json"
    raw: dict[str, Any] = workdir.read_json(path)
    if raw.get("model_type", "bert") not in ("bert", "dpr"):
      raise errors.InputError(
        f"{path}: model_type {raw['model_type']!r}: only 'bert' and 'dpr'"
        " checkpoints can be loaded"
      )
    if raw.get("position_embedding_type", "absolute") != "absolute":
      raise errors.InputError(
        f"{path}: position_embedding_type"
        f" {raw['position_embedding_type']!r}: only 'absolute' is supported"
      )
    if raw.get("projection_dim", 0):
      raise errors.InputError(
        f"{path}: projection_dim {raw['projection_dim']}: DPR checkpoints with"
        " a projection are not supported"
      )
    known = {field.name for field in dataclasses.fields(cls)}
    return cls(**{key: raw[key] for key in known & raw.keys()})


def row_dropout(
  values: Float[ArrayLike, "rows ..."],
  keys: Key[Array, " rows"] | None,
  rate: float,
  site: int,
) -> Float[Array, "rows ..."]:
  """Dropout whose mask for a row depends on that row's key and site alone.

  Args:
    values: any activations, one row per text.
    keys: one random key per text; None turns dropout off.
    rate: share of values set to zero; the rest is scaled by 1 / (1 - rate).
    site: number of the place in the network, so that no two masks are alike.
  """
  if keys is None or rate == 0.0:
    return values
  site_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, site)
  keep = jax.vmap(
    lambda key: jax.random.bernoulli(key, 1.0 - rate, values.shape[1:])
  )(site_keys)
  return jnp.where(keep, values / (1.0 - rate), 0.0).astype(values.dtype)


class BertLayer(nn.Module):
  """One transformer layer: self-attention, then two dense layers, post-norm.

  Attributes:
    config: sizes.
    number: place in the stack, from 0; keeps dropout masks apart.
    dtype: of the computation; parameters and softmax are float32.
  """

  config: BertConfig
  number: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    hidden: Float[Array, "rows length dim"],
    bias: Float[Array, "rows 1 1 length"],
    keys: Key[Array, " rows"] | None,
    first_only: bool = False,
  ) -> Float[Array, "rows positions dim"]:
    """Returns new hidden states; of position 0 alone if `first_only`."""
    config = self.config
    width, heads = config.hidden_size, config.num_attention_heads
    initializer = nn.initializers.normal(config.initializer_range)

    def dense(size: int, name: str) -> nn.Dense:
      return nn.Dense(
        size, dtype=self.dtype, kernel_init=initializer, name=name
      )

    def norm(name: str) -> nn.LayerNorm:
      return nn.LayerNorm(
        epsilon=config.layer_norm_eps, dtype=self.dtype, name=name
      )

    def split(x: Float[Array, "rows n dim"]) -> Float[Array, "rows n heads d"]:
      return x.reshape(*x.shape[:2], heads, width // heads)

    asking = hidden[:, :1] if first_only else hidden
    query = split(dense(width, "query")(asking)) * (width // heads) ** -0.5
    key = split(dense(width, "key")(hidden))
    value = split(dense(width, "value")(hidden))
    scores = jnp.einsum(
      "rqhd,rkhd->rhqk", query, key, preferred_element_type=jnp.float32
    )
    weights = jax.nn.softmax(scores + bias, axis=-1).astype(self.dtype)
    weights = row_dropout(
      weights, keys, config.attention_probs_dropout_prob, 3 * self.number
    )
    context = jnp.einsum("rhqk,rkhd->rqhd", weights, value)
    context = dense(width, "attention_output")(context.reshape(asking.shape))
    context = row_dropout(
      context, keys, config.hidden_dropout_prob, 3 * self.number + 1
    )
    attended = norm("attention_norm")(asking + context)

    inner = dense(config.intermediate_size, "intermediate")(attended)
    inner = ACTIVATIONS[config.hidden_act](inner)
    output = row_dropout(
      dense(width, "output")(inner),
      keys,
      config.hidden_dropout_prob,
      3 * self.number + 2,
    )
    return norm("output_norm")(attended + output)


class Bert(nn.Module):
  """The encoder: embeddings and layers, no pooler.

  Attributes:
    config: sizes.
    dtype: of the computation; parameters are float32.
  """

  config: BertConfig
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    token_ids: Int[ArrayLike, "rows length"],
    mask: Bool[ArrayLike, "rows length"],
    token_types: Int[ArrayLike, "rows length"] | None = None,
    dropout_keys: Key[ArrayLike, " rows"] | None = None,
    first_only: bool = False,
  ) -> Float[Array, "rows positions dim"]:
    """Encodes texts.

    Args:
      token_ids: WordPiece ids, padded.
      mask: False where padded.
      token_types: segment numbers; None means all 0, as DPR encodes.
      dropout_keys: one key per text; None turns dropout off.
      first_only: return position 0 alone (positions = 1, else = length).
    """
    config = self.config
    length = token_ids.shape[1]
    if length > config.max_position_embeddings:
      raise errors.InputError(
        f"texts of {length} tokens: this model has"
        f" {config.max_position_embeddings} positions"
      )

    def table(rows: int, name: str) -> nn.Embed:
      return nn.Embed(
        rows,
        config.hidden_size,
        dtype=self.dtype,
        embedding_init=nn.initializers.normal(config.initializer_range),
        name=name,
      )

    types = table(config.type_vocab_size, "token_type_embeddings")
    if token_types is None:
      token_types = jnp.zeros((1, 1), jnp.int32)
    hidden = (
      table(config.vocab_size, "word_embeddings")(token_ids)
      + table(config.max_position_embeddings, "position_embeddings")(
        jnp.arange(length)[None]
      )
      + types(token_types)
    )
    hidden = nn.LayerNorm(
      epsilon=config.layer_norm_eps, dtype=self.dtype, name="embeddings_norm"
    )(hidden)
    layers = config.num_hidden_layers
    hidden = row_dropout(
      hidden, dropout_keys, config.hidden_dropout_prob, 3 * layers
    )
    bias = jnp.where(mask, 0.0, -1e9)[:, None, None, :].astype(jnp.float32)
    for number in range(layers):
      hidden = BertLayer(config, number, self.dtype, name=f"layer_{number}")(
        hidden, bias, dropout_keys, first_only and number == layers - 1
      )
    return hidden


def init_params(config: BertConfig, key: Key[Array, ""]) -> dict[str, Any]:
  """Fresh float32 parameters, as BERT initialises them."""
  tokens = jnp.zeros((1, 2), jnp.int32)
  return Bert(config).init(key, tokens, tokens == 0)["params"]
