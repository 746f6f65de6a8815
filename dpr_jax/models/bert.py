"""BERT in Flax Linen: token ids in, hidden states out.

The model of Devlin et al. 2018 in Hugging Face's layout, with two additions.
Dropout takes one random key per text, so that the mask of a text does not
depend on the device or chunk that encodes it.  The last layer can be computed
for position 0 alone, which is exact and all that [CLS] pooling needs.
`dual_encoder.py` and `span_reader.py` add heads, `hf_weights.py` reads weights.
"""

import dataclasses
import math
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key

from dpr_jax.core import errors
from dpr_jax.models import (
  config_json,
  dropout,
  fused_attention,
  layer_ops,
  stacked_layers,
)

WORDS = "word_embeddings"
_DENSE = ("kernel", "bias")  # parameters of a dense layer
REMATS = ("none", "inner", "layer")
ATTENTIONS = ("plain", "fused")
ACTIVATIONS = {
  # With erf: jax.nn.gelu uses erfc, which costs 2.5 times as much on a CPU.
  "gelu": lambda x: 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5))),
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
    """Reads `config.json`; `InputError` if it is not of a supported BERT."""
    path = pathlib.Path(folder) / "config.json"
    raw = config_json.read(path)
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
    return config_json.build(path, raw, cls)


class Weights(nn.Module):
  """Kernel and bias of a dense layer, in float32.

  Attributes:
    inputs: width of the input.
    outputs: width of the output.
    initializer: initializer of the kernel.
  """

  inputs: int
  outputs: int
  initializer: Any

  @nn.compact
  def __call__(
    self,
  ) -> tuple[Float[ArrayLike, "inputs outputs"], Float[ArrayLike, " outputs"]]:
    """Returns (kernel, bias)."""
    kernel = self.param(
      "kernel", self.initializer, (self.inputs, self.outputs), jnp.float32
    )
    zeros = nn.initializers.zeros_init()
    return kernel, self.param("bias", zeros, (self.outputs,), jnp.float32)


class LayerNorm(nn.Module):
  """`layer_ops.layer_norm` with its parameters.

  Attributes:
    epsilon: added to the variance.
  """

  epsilon: float

  @nn.compact
  def __call__(
    self, x: Float[Array, "rows n dim"]
  ) -> Float[Array, "rows n dim"]:
    """Normalises the last axis."""
    width = (x.shape[-1],)
    ones, zeros = nn.initializers.ones_init(), nn.initializers.zeros_init()
    scale = self.param("scale", ones, width, jnp.float32)
    bias = self.param("bias", zeros, width, jnp.float32)
    return layer_ops.layer_norm(x, scale, bias, self.epsilon)


class BertLayer(nn.Module):
  """One transformer layer: self-attention, then two dense layers, post-norm.

  Attributes:
    config: sizes of the model.
    first_only: compute position 0 alone.
    remat: see `Bert`.
    attention: see `Bert`.
  """

  config: BertConfig
  first_only: bool = False
  remat: str = "none"
  attention: str = "plain"

  @nn.compact
  def __call__(
    self,
    hidden: Float[Array, "rows length dim"],
    bias: Float[Array, "rows 1 1 length"],
    keys: Key[Array, " rows"] | None,
    number: Int[ArrayLike, ""],
  ) -> Float[Array, "rows positions dim"]:
    """Returns new hidden states, computed in the dtype of `hidden`.

    Args:
      hidden: output of the layer below.
      bias: added to the attention scores; very negative at padding.
      keys: dropout keys; None = no dropout.
      number: index of the layer, from 0; keeps dropout masks apart.
    """
    config = self.config
    width, heads = config.hidden_size, config.num_attention_heads
    initializer = nn.initializers.normal(config.initializer_range)
    site = 3 * number  # dropout: attention weights, its output, feed-forward

    def weights(name: str, inputs: int = width, outputs: int = width):
      return Weights(inputs, outputs, initializer, name=name)()

    def norm(name: str, x: Float[Array, "rows n dim"]):
      return LayerNorm(config.layer_norm_eps, name=name)(x)

    def split(x: Float[Array, "rows n dim"]) -> Float[Array, "rows heads n d"]:
      x = x.reshape(*x.shape[:2], heads, width // heads)
      return x.transpose(0, 2, 1, 3)

    def project(x: Float[Array, "rows n dim"], names: tuple[str, ...]):
      ready = self.variables.get("params", {}).get("_".join(names))
      if ready is None:
        layers = [
          dict(zip(_DENSE, weights(name), strict=True)) for name in names
        ]
        ready = _side_by_side(layers)
      return layer_ops.dense(x, *(ready[part] for part in _DENSE))

    # One query per text with `first_only`; keys and values of all positions.
    asking = hidden[:, :1] if self.first_only else hidden
    rate = config.attention_probs_dropout_prob
    words = None
    if keys is not None and rate > 0:
      words = dropout.words(keys, site)
    projected = [
      project(asking if names == ("query",) else hidden, names)
      for names in _projections(self.first_only)
    ]
    if self.attention == "fused" and not self.first_only:
      context = fused_attention.attention(
        *projected, bias[:, 0], words, heads, rate
      )
    else:
      query, key, value = (
        part
        for x in projected
        for part in jnp.split(x, x.shape[-1] // width, axis=-1)
      )
      context = layer_ops.attention(
        split(query * (width // heads) ** -0.5),
        split(key),
        split(value),
        bias,
        words,
        rate,
      )
      # [rows, heads, n, d] back to [rows, n, dim].
      context = context.transpose(0, 2, 1, 3).reshape(asking.shape)
    context = layer_ops.dense(context, *weights("attention_output"))
    rate = config.hidden_dropout_prob
    context = dropout.drop(context, keys, rate, site + 1)
    attended = norm("attention_norm", asking + context)

    inner = config.intermediate_size
    output = layer_ops.feed_forward(
      attended,
      *weights("intermediate", width, inner),
      *weights("output", inner, width),
      ACTIVATIONS[config.hidden_act],
      self.remat != "inner",
    )
    output = dropout.drop(output, keys, rate, site + 2)
    return norm("output_norm", attended + output)


def _projections(first_only: bool) -> tuple[tuple[str, ...], ...]:
  """Dense layers to compute as one matrix product, which is faster than two."""
  if first_only:
    return ("query",), ("key", "value")
  return (("query", "key", "value"),)


def _side_by_side(layers: list[dict[str, Any]]) -> dict[str, Any]:
  """Concatenates dense layers that have the same input."""
  if len(layers) == 1:
    return layers[0]
  return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=-1), *layers)


def fuse(params: dict[str, Any], first_only: bool, dtype: Any = None) -> Any:
  """Prepares parameters once, so that `Bert` need not do it in every call.

  Args:
    params: parameters of a Bert, its layers separate or stacked.
    first_only: value of `first_only` in the calls of `Bert`.
    dtype: kernels are cast to it; None = left as they are.

  Returns:
    Parameters that give the same output: dense layers that are one product are
    concatenated, under their joined names (`query_key_value`).
  """
  last = max(
    (name for name in params if name.startswith("layer_")),
    key=lambda name: int(name.removeprefix("layer_")),
  )

  def layer(node: dict[str, Any], first_only: bool) -> dict[str, Any]:
    node = dict(node)
    for names in _projections(first_only):
      parts = [node.pop(name) for name in names]
      node["_".join(names)] = _side_by_side(parts)
    if dtype is None:
      return node
    return jax.tree.map_with_path(
      lambda path, x: x.astype(dtype) if path[-1].key == "kernel" else x, node
    )

  return {
    name: layer(node, first_only and name == last)
    if name.startswith("layer")
    else node
    for name, node in params.items()
  }


class Bert(nn.Module):
  """The encoder: embeddings and layers, no pooler.

  Attributes:
    config: sizes of the model.
    dtype: dtype of the computation; parameters are float32.
    remat: what the backward pass of a layer recomputes: "none" = no matrix
      product, "inner" = the first product of the feed-forward part (1/9 more
      work, 1/3 less memory), "layer" = the whole layer.
    attention: "plain" = `layer_ops.attention`, "fused" = a TPU kernel that
      keeps scores on the chip (`fused_attention`); slow on other devices.
  """

  config: BertConfig
  dtype: Any = jnp.float32
  remat: str = "none"
  attention: str = "plain"

  @nn.compact
  def __call__(
    self,
    token_ids: Int[ArrayLike, "rows length"],
    mask: Bool[ArrayLike, "rows length"],
    token_types: Int[ArrayLike, "rows length"] | None = None,
    dropout_keys: Key[ArrayLike, " rows"] | None = None,
    first_only: bool = False,
    words: Float[ArrayLike, "rows length dim"] | None = None,
  ) -> Float[Array, "rows positions dim"]:
    """Encodes texts.

    Args:
      token_ids: WordPiece ids, padded.
      mask: False where padded.
      token_types: segment numbers; None means all 0, as DPR encodes.
      dropout_keys: one key per text; None turns dropout off.
      first_only: return position 0 alone (positions = 1, else = length).
      words: `look_up(params, token_ids)`; None = looked up here.
    """
    config = self.config
    length = token_ids.shape[1]
    if length > config.max_position_embeddings:
      raise errors.InputError(
        f"texts of {length} tokens: this model has"
        f" {config.max_position_embeddings} positions"
      )

    def table(rows: int, name: str) -> nn.Embed:
      # In float32: of another dtype, Embed would cast the table, not the rows.
      return nn.Embed(
        rows,
        config.hidden_size,
        embedding_init=nn.initializers.normal(config.initializer_range),
        name=name,
      )

    types = table(config.type_vocab_size, "token_type_embeddings")
    if token_types is None:
      token_types = jnp.zeros((1, 1), jnp.int32)
    if words is None:
      words = table(config.vocab_size, WORDS)(token_ids)
    hidden = (
      words
      + table(config.max_position_embeddings, "position_embeddings")(
        jnp.arange(length)[None]
      )
      + types(token_types)
    ).astype(self.dtype)
    hidden = LayerNorm(config.layer_norm_eps, name="embeddings_norm")(hidden)
    layers = config.num_hidden_layers
    hidden = dropout.drop(
      hidden, dropout_keys, config.hidden_dropout_prob, 3 * layers
    )
    bias = jnp.where(mask, 0.0, -1e9)[:, None, None, :].astype(jnp.float32)
    layer = nn.remat(BertLayer) if self.remat == "layer" else BertLayer
    stack = self.variables.get("params", {}).get(stacked_layers.STACK)
    if stack is not None:
      # Applied functionally: `scan` slices the stacked parameters by layer.
      one = layer(config, False, self.remat, self.attention, parent=None)

      def apply(hidden, numbered):
        number, params = numbered
        variables = {"params": params}
        return one.apply(variables, hidden, bias, dropout_keys, number), None

      hidden, _ = jax.lax.scan(apply, hidden, (jnp.arange(layers - 1), stack))
    # All layers, or only the last one where the others are stacked.
    for number in range(0 if stack is None else layers - 1, layers):
      last = number == layers - 1
      hidden = layer(
        config,
        first_only and last,
        self.remat,
        self.attention,
        name=f"layer_{number}",
      )(hidden, bias, dropout_keys, number)
    return hidden


def look_up(
  params: dict[str, Any], token_ids: Int[ArrayLike, "rows length"]
) -> Float[Array, "rows length dim"]:
  """Word embeddings of token ids, in float32."""
  return jnp.take(params[WORDS]["embedding"], token_ids, axis=0)


def init_params(config: BertConfig, key: Key[Array, ""]) -> dict[str, Any]:
  """Fresh float32 parameters, as BERT initialises them."""
  tokens = jnp.zeros((1, 2), jnp.int32)
  return Bert(config).init(key, tokens, tokens == 0)["params"]
