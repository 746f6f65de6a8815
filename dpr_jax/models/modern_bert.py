"""The layers of ModernBERT (Warner et al. 2024), for `bert.Bert`.

LayerNorm is applied before attention and feed-forward part, not after; the
first layer has none before attention, as the embeddings are normalised.
Positions are rotations of queries and keys (RoPE; Su et al. 2021).  One layer
in three attends to all tokens, the others to near ones, with faster rotations.
The feed-forward part is gated (GeGLU), and there are no biases.

Local layers compute the scores of all pairs and mask the far ones, which is
exact, and as expensive as global attention.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key

from dpr_jax.models import dropout, layer_ops, layer_params, self_attention
from dpr_jax.models.encoder_config import ModernBertConfig

Biases = tuple[
  Float[Array, "rows 1 1 length"], Float[Array, "rows 1 length length"]
]


def biases(
  config: ModernBertConfig, bias: Float[Array, "rows 1 1 length"]
) -> Biases:
  """Biases of the scores in global and in local layers.

  Args:
    config: sizes of the model.
    bias: very negative at padding.
  """
  places = jnp.arange(bias.shape[-1])
  distance = jnp.abs(places[:, None] - places[None])
  far = jnp.where(distance <= config.local_attention // 2, 0.0, -1e9)
  return bias, bias + far.astype(jnp.float32)[None, None]


def rotate(
  x: Float[Array, "rows heads n d"], rates: Float[Array, " half"]
) -> Float[Array, "rows heads n d"]:
  """Turns pairs of values by an angle that grows with the position.

  Args:
    x: queries or keys of positions 0, 1, ...; value i forms a pair with value
      i + d / 2.
    rates: angle per position of each pair.
  """
  angles = jnp.arange(x.shape[2], dtype=jnp.float32)[:, None] * rates
  cosine, sine = jnp.cos(angles), jnp.sin(angles)
  left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = [left * cosine - right * sine, right * cosine + left * sine]
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)


class ModernBertLayer(nn.Module):
  """One layer; attributes as those of `bert.BertLayer`, and one more.

  Attributes:
    normalizes: LayerNorm before attention; not in the first layer.
  """

  config: ModernBertConfig
  first_only: bool = False
  remat: str = "none"
  attention: str = "plain"
  normalizes: bool = True

  @nn.compact
  def __call__(
    self,
    hidden: Float[Array, "rows length dim"],
    both: Biases,
    keys: Key[Array, " rows"] | None,
    number: Int[ArrayLike, ""],
    position_bias: None = None,
  ) -> Float[Array, "rows positions dim"]:
    """Returns new hidden states; arguments as those of `bert.BertLayer`.

    Args:
      hidden: output of the layer below.
      both: see `biases`.
      keys: dropout keys; None = no dropout.
      number: index of the layer, from 0.
      position_bias: not used.
    """
    del position_bias
    config = self.config
    width, inner = config.hidden_size, config.intermediate_size
    initializer = nn.initializers.normal(config.initializer_range)
    site = 3 * number  # dropout: attention weights, its output, feed-forward

    def weights(name: str, inputs: int = width, outputs: int = width):
      return layer_params.Weights(
        inputs, outputs, initializer, use_bias=False, name=name
      )()

    def norm(name: str, x: Float[Array, "rows n dim"]):
      return layer_params.LayerNorm(
        config.layer_norm_eps, use_bias=False, name=name
      )(x)

    rate = config.attention_probs_dropout_prob
    words = None
    if keys is not None and rate > 0:
      words = dropout.words(keys, site)
    bias, rates = self._of_layer(both, number)
    context = self_attention.attend(
      norm("attention_norm", hidden) if self.normalizes else hidden,
      bias,
      words,
      weights,
      self.variables.get("params", {}),
      self_attention.Heads(
        config.num_attention_heads,
        rate,
        self.first_only,
        rotate=functools.partial(rotate, rates=rates),
      ),
    )
    context = layer_ops.dense(context, *weights("attention_output"))
    context = dropout.drop(context, keys, rate, site + 1)
    hidden = (hidden[:, :1] if self.first_only else hidden) + context

    def drop(x: Float[Array, "rows n inner"]) -> Float[Array, "rows n inner"]:
      return dropout.drop(x, keys, config.hidden_dropout_prob, site + 2)

    return hidden + layer_ops.gated_feed_forward(
      norm("output_norm", hidden),
      weights("intermediate", width, 2 * inner)[0],
      weights("output", inner, width)[0],
      layer_ops.ACTIVATIONS[config.hidden_act],
      drop,
      self.remat != "inner",
    )

  def _of_layer(
    self, both: Biases, number: Int[ArrayLike, ""]
  ) -> tuple[Float[Array, "rows 1 _ length"], Float[Array, " half"]]:
    """Bias and rotation rates of a layer, whose number may be traced."""
    config = self.config
    everywhere = number % config.global_attn_every_n_layers == 0
    size = config.hidden_size // config.num_attention_heads
    powers = jnp.arange(0, size, 2, dtype=jnp.float32) / size
    theta = jnp.where(
      everywhere, config.global_rope_theta, config.local_rope_theta
    ).astype(jnp.float32)
    return jnp.where(everywhere, *both), 1.0 / theta**powers
