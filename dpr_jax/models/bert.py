"""Encoders of BERT's shape in Flax Linen: token ids in, hidden states out.

The model of Devlin et al. 2018 in Hugging Face's layout, and its relatives in
`encoder_config.py`: positions that start later (RoBERTa), relative positions
(MPNet), narrow embeddings (ELECTRA), no token types.  There are two additions.
Dropout takes one random key per text, so that the mask of a text does not
depend on the device or chunk that encodes it.  The last layer can be computed
for position 0 alone, which is exact and all that [CLS] pooling needs.
`dual_encoder.py` and `span_reader.py` add heads, `hf_weights.py` reads weights.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key

from dpr_jax.core import errors
from dpr_jax.models import (
  layer_ops,
  layer_params,
  modern_bert,
  relative_positions,
  self_attention,
  stacked_layers,
  text_layout,
)
from dpr_jax.models.encoder_config import BertConfig

WORDS = "word_embeddings"
REMATS = ("none", "inner", "layer")
ATTENTIONS = ("plain", "fused", "cudnn")
fuse = self_attention.fuse


def check_attention(config: BertConfig, attention: str) -> None:
  """`InputError` if an encoder's attention cannot be computed in this way.

  Args:
    config: sizes of the encoder.
    attention: one of `ATTENTIONS`.
  """
  if attention != "plain" and not config.fusible:
    raise errors.InputError(
      f"config.model.attention={attention!r}: the kernel does not compute the"
      f" attention of {config.title}: use 'plain'"
    )


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
    hidden: Float[Array, "rows n dim"],
    layout: text_layout.Layout,
    number: Int[ArrayLike, ""],
    position_bias: Float[Array, "1 heads longest longest"] | None = None,
  ) -> Float[Array, "_ positions dim"]:
    """Returns new hidden states, computed in the dtype of `hidden`.

    Args:
      hidden: output of the layer below.
      layout: where the texts are in `hidden`, and their dropout keys.
      number: index of the layer, from 0; keeps dropout masks apart.
      position_bias: added to the scores of every text; None = nothing.
    """
    config = self.config
    width = config.hidden_size
    initializer = nn.initializers.normal(config.initializer_range)
    site = 3 * number  # dropout: attention weights, its output, feed-forward

    def weights(name: str, inputs: int = width, outputs: int = width):
      return layer_params.Weights(inputs, outputs, initializer, name=name)()

    def norm(name: str, x: Float[Array, "rows n dim"]):
      return layer_params.LayerNorm(config.layer_norm_eps, name=name)(x)

    context = self_attention.attend(
      hidden,
      layout,
      weights,
      self.variables.get("params", {}),
      self_attention.Heads(
        config.num_attention_heads,
        config.attention_probs_dropout_prob,
        self.first_only,
        self.attention == "fused",
        self.attention == "cudnn",
      ),
      site,
      position_bias,
    )
    context = layer_ops.dense(context, *weights("attention_output"))
    rate = config.hidden_dropout_prob
    if self.first_only:
      hidden, layout = layout.firsts(hidden), layout.only_firsts()
    context = layout.drop(context, rate, site + 1)
    attended = norm("attention_norm", hidden + context)

    inner = config.intermediate_size
    output = layer_ops.feed_forward(
      attended,
      *weights("intermediate", width, inner),
      *weights("output", inner, width),
      layer_ops.ACTIVATIONS[config.hidden_act],
      self.remat != "inner",
    )
    output = layout.drop(output, rate, site + 2)
    return norm("output_norm", attended + output)


class Bert(nn.Module):
  """The encoder: embeddings and layers, no pooler.

  Attributes:
    config: sizes of the model.
    dtype: dtype of the computation; parameters are float32.
    remat: what the backward pass of a layer recomputes: "none" = no matrix
      product, "inner" = the first product of the feed-forward part (1/9 more
      work, 1/3 less memory), "layer" = the whole layer.
    attention: "plain" = `layer_ops.attention`, "fused" = a TPU kernel that
      keeps scores on the chip (`fused_attention`); slow on other devices;
      "cudnn" = the same on NVIDIA GPUs (`cudnn_attention`).
  """

  config: BertConfig
  dtype: Any = jnp.float32
  remat: str = "none"
  attention: str = "plain"

  @nn.compact
  def __call__(
    self,
    token_ids: Int[ArrayLike, "rows n"],
    mask: Bool[ArrayLike, "rows n"] | text_layout.Layout,
    token_types: Int[ArrayLike, "rows n"] | None = None,
    dropout_keys: Key[ArrayLike, " rows"] | None = None,
    first_only: bool = False,
    words: Float[ArrayLike, "rows n width"] | None = None,
  ) -> Float[Array, "_ positions dim"]:
    """Encodes texts.

    Args:
      token_ids: ids of the tokens, padded; or a row of packed texts.
      mask: False where padded; or the layout of the texts, which has their
        dropout keys.
      token_types: segment numbers; None means all 0, as DPR encodes.  Models
        without segments ignore them.
      dropout_keys: one key per text, for a mask; None turns dropout off.
      first_only: return position 0 of every text alone, [texts, 1, dim].
      words: `look_up(params, token_ids)`, as wide as the embeddings; None =
        looked up here.
    """
    config = self.config
    check_attention(config, self.attention)
    layout = mask
    if not isinstance(layout, text_layout.Padded | text_layout.Packed):
      layout = text_layout.Padded(mask, dropout_keys)
    _check_length(config, layout)

    hidden = _embed(config, self.dtype, token_ids, layout, token_types, words)
    layers = config.num_hidden_layers
    hidden = layout.drop(hidden, config.hidden_dropout_prob, 3 * layers)
    if config.embedding_width != config.hidden_size:
      project = layer_params.Weights(
        config.embedding_width,
        config.hidden_size,
        nn.initializers.normal(config.initializer_range),
        name="embeddings_project",
      )
      hidden = layer_ops.dense(hidden, *project())
    position_bias = None
    if config.relative_attention_num_buckets:
      position_bias = relative_positions.bias(
        config.relative_attention_num_buckets,
        config.num_attention_heads,
        layout.longest,
        nn.initializers.normal(config.initializer_range),
      )
    layer: Any = BertLayer
    if config.pre_norm:
      layer = modern_bert.ModernBertLayer
    if self.remat == "layer":
      layer = nn.remat(layer)
    settings = (self.remat, self.attention)

    def run(number: int, hidden: Array) -> Array:
      more: dict[str, Any] = {"name": f"layer_{number}"}
      if config.pre_norm:
        more["normalizes"] = number > 0
      first = first_only and number == last
      one = layer(config, first, *settings, **more)
      return one(hidden, layout, number, position_bias)

    stack = self.variables.get("params", {}).get(stacked_layers.STACK)
    count = 0 if stack is None else len(jax.tree.leaves(stack)[0])
    # The last layer is never stacked, nor is a first one that is different.
    last = layers - 1
    for number in range(last - count):
      hidden = run(number, hidden)
    if count:
      # Applied functionally: `scan` slices the stacked parameters by layer.
      one = layer(config, False, *settings, parent=None)

      def apply(hidden, numbered):
        number, params = numbered
        variables = {"params": params}
        return one.apply(variables, hidden, layout, number, position_bias), None

      numbers = jnp.arange(last - count, last)
      hidden, _ = jax.lax.scan(apply, hidden, (numbers, stack))
    hidden = run(last, hidden)
    if config.pre_norm:
      norm = layer_params.LayerNorm(
        config.layer_norm_eps, use_bias=False, name="final_norm"
      )
      hidden = norm(hidden)
    return hidden


def _check_length(config: BertConfig, layout: text_layout.Layout) -> None:
  """`InputError` if texts may be longer than the model's positions."""
  length, most = layout.longest, config.max_position_embeddings
  if isinstance(layout, text_layout.Packed):
    most = -(-most // 8) * 8  # tiles are multiples of 8 tokens
  if length > most:
    raise errors.InputError(
      f"texts of {length} tokens: this model has"
      f" {config.max_position_embeddings} positions"
    )


def _embed(
  config: BertConfig,
  dtype: Any,
  token_ids: Int[ArrayLike, "rows n"],
  layout: text_layout.Layout,
  token_types: Int[ArrayLike, "rows n"] | None,
  words: Float[ArrayLike, "rows n dim"] | None,
) -> Float[Array, "rows n dim"]:
  """Sum of the embeddings of words, positions and types, normalised.

  Called by a module, whose parameters they become; arguments as in `Bert`.
  """

  def table(rows: int, name: str) -> nn.Embed:
    # In float32: of another dtype, Embed would cast the table, not the rows.
    return nn.Embed(
      rows,
      config.embedding_width,
      embedding_init=nn.initializers.normal(config.initializer_range),
      name=name,
    )

  if words is None:
    words = table(config.vocab_size, WORDS)(token_ids)
  hidden = words
  if not config.pre_norm:
    positions = table(config.position_rows, "position_embeddings")
    hidden += positions(layout.positions + config.position_offset)
  if config.type_vocab_size:
    if token_types is None or not config.has_segments:
      token_types = jnp.zeros((1, 1), jnp.int32)
    types = table(config.type_vocab_size, "token_type_embeddings")
    hidden += types(token_types)
  norm = layer_params.LayerNorm(
    config.layer_norm_eps, use_bias=not config.pre_norm, name="embeddings_norm"
  )
  return norm(hidden.astype(dtype))


def look_up(
  params: dict[str, Any], token_ids: Int[ArrayLike, "rows n"]
) -> Float[Array, "rows n dim"]:
  """Word embeddings of token ids, in float32."""
  return jnp.take(params[WORDS]["embedding"], token_ids, axis=0)


def init_params(config: BertConfig, key: Key[Array, ""]) -> dict[str, Any]:
  """Fresh float32 parameters, as BERT initialises them."""
  tokens = jnp.zeros((1, 2), jnp.int32)
  return Bert(config).init(key, tokens, tokens == 0)["params"]
