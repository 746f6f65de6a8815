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
from jaxtyping import Array, Float, Int

from dpr_jax.models import (
  layer_ops,
  layer_params,
  self_attention,
  text_layout,
)
from dpr_jax.models.encoder_config import ModernBertConfig


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
    layout: text_layout.Layout,
    number: Int[ArrayLike, ""],
    position_bias: None = None,
  ) -> Float[Array, "_ positions dim"]:
    """Returns new hidden states; arguments as those of `bert.BertLayer`.

    Args:
      hidden: output of the layer below.
      layout: where the texts are in `hidden`.
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

    reach, rates = self._of_layer(layout.longest, number)
    context = self_attention.attend(
      norm("attention_norm", hidden) if self.normalizes else hidden,
      layout,
      weights,
      self.variables.get("params", {}),
      self_attention.Heads(
        config.num_attention_heads,
        config.attention_probs_dropout_prob,
        self.first_only,
        rotate=functools.partial(rotate, rates=rates),
      ),
      site,
      reach=reach,
    )
    if self.first_only:
      hidden, layout = layout.firsts(hidden), layout.only_firsts()
    context = layer_ops.dense(context, *weights("attention_output"))
    rate = config.attention_probs_dropout_prob
    hidden = hidden + layout.drop(context, rate, site + 1)

    def drop(x: Float[Array, "rows n inner"]) -> Float[Array, "rows n inner"]:
      return layout.drop(x, config.hidden_dropout_prob, site + 2)

    return hidden + layer_ops.gated_feed_forward(
      norm("output_norm", hidden),
      weights("intermediate", width, 2 * inner)[0],
      weights("output", inner, width)[0],
      layer_ops.ACTIVATIONS[config.hidden_act],
      drop,
      self.remat != "inner",
    )

  def _of_layer(
    self, longest: int, number: Int[ArrayLike, ""]
  ) -> tuple[Int[Array, ""], Float[Array, " half"]]:
    """Reach and rotation rates of a layer, whose number may be traced."""
    config = self.config
    everywhere = number % config.global_attn_every_n_layers == 0
    size = config.hidden_size // config.num_attention_heads
    powers = jnp.arange(0, size, 2, dtype=jnp.float32) / size
    theta = jnp.where(
      everywhere, config.global_rope_theta, config.local_rope_theta
    ).astype(jnp.float32)
    reach = jnp.where(everywhere, longest, config.local_attention // 2)
    return reach, 1.0 / theta**powers
