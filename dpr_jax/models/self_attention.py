"""Self-attention of a layer: projections, heads, and how positions enter.

`attend` is called by the layers of all encoders.  Projections of the same input
are one matrix product, which is faster than two; `fuse` prepares their
parameters once.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, UInt32

from dpr_jax.models import cudnn_attention, layer_ops, text_layout

_NEVER = -1e9  # added to the scores of what is not attended to
_DENSE = ("kernel", "bias")  # parameters of a dense layer
# (kernel, bias); None = no bias.
Dense = tuple[Float[ArrayLike, "inputs outputs"], Float[ArrayLike, " outputs"]]


@dataclasses.dataclass(frozen=True)
class Heads:
  """What a layer's attention computes, the same in every call.

  Attributes:
    count: number of heads; a divisor of dim.
    rate: dropout rate of the weights.
    first_only: queries of each text's position 0 alone.
    fused: use `fused_attention`; not with `first_only`.
    cudnn: use `cudnn_attention`; not with `first_only`.
    rotate: changes queries and keys [texts, heads, n, d] by their positions;
      None = no change.
  """

  count: int
  rate: float
  first_only: bool = False
  fused: bool = False
  cudnn: bool = False
  rotate: Callable[[Array], Array] | None = None


def attend(
  hidden: Float[Array, "rows n dim"],
  layout: text_layout.Layout,
  weights: Callable[[str], Any],
  ready: dict[str, Any],
  heads: Heads,
  site: Int[ArrayLike, ""],
  position_bias: Float[Array, "1 heads longest longest"] | None = None,
  reach: Int[ArrayLike, ""] | None = None,
) -> Float[Array, "_ positions dim"]:
  """Attention of every text with itself, before the output projection.

  Args:
    hidden: input of the layer.
    layout: where the texts are in `hidden`.
    weights: kernel and bias of a projection by name: query, key, value.
    ready: parameters of the layer; projections that `fuse` has joined are
      taken from there.
    heads: what to compute.
    site: number of the weights' place in the network, for dropout.
    position_bias: added to the scores, with a gradient; for the longest tile.
    reach: tokens that are farther apart do not attend to one another; None =
      all do.

  Returns:
    Values of all tokens; of the first of each text [texts, 1, dim] with
    `first_only`.
  """
  width = hidden.shape[-1]
  # One query per text with `first_only`; keys and values of all positions.
  asking = layout.firsts(hidden) if heads.first_only else hidden

  def project(names: tuple[str, ...]) -> Float[Array, "rows n several"]:
    layer = ready.get("_".join(names))
    if layer is None:
      layer = _side_by_side(
        [dict(zip(_DENSE, weights(name), strict=True)) for name in names]
      )
    kernel = layer["kernel"]
    zeros = jnp.zeros(kernel.shape[-1:], jnp.float32)  # where it has no bias
    x = asking if names == ("query",) else hidden
    return layer_ops.dense(x, kernel, layer.get("bias", zeros))

  projected = [project(names) for names in _projections(heads.first_only)]
  # Of each tile: [queries, keys and values], or [queries, keys and values].
  if heads.first_only:
    query, rest = projected
    tiles = zip(layout.split(query), layout.to_tiles(rest), strict=True)
  else:
    tiles = ((tile,) for tile in layout.to_tiles(*projected))
  contexts = tuple(
    _attend_tile(tile, mask, words, width, heads, position_bias, reach)
    for tile, mask, words in zip(
      tiles, layout.masks, layout.weight_words(heads.rate, site), strict=True
    )
  )
  if heads.first_only:
    return jnp.concatenate(contexts)
  return layout.from_tiles(contexts)


def _attend_tile(
  projected: tuple[Float[Array, "texts _ _"], ...],
  mask: Bool[Array, "texts length"],
  words: UInt32[Array, "texts two"] | None,
  width: int,
  heads: Heads,
  position_bias: Float[Array, "1 heads longest longest"] | None,
  reach: Int[ArrayLike, ""] | None,
) -> Float[Array, "texts positions dim"]:
  """Attention of the texts of a tile.

  Args:
    projected: queries, keys and values; or queries alone, and the others.
    mask: False where padded.
    words: dropout words of each text; None = no dropout.
    width: dim.
    heads: see `attend`.
    position_bias: see `attend`.
    reach: see `attend`.
  """
  # float32, added to the scores [texts, heads, q, k].
  bias = jnp.where(mask, 0.0, _NEVER)[:, None, None, :].astype(jnp.float32)
  if heads.fused and not heads.first_only:
    # Pallas is a tenth of all imports, and only TPUs use it.
    from dpr_jax.models import fused_attention

    return fused_attention.attention(
      *projected, bias[:, 0], words, heads.count, heads.rate
    )

  def split(x: Float[Array, "texts n dim"]) -> Float[Array, "texts heads n d"]:
    x = x.reshape(*x.shape[:2], heads.count, width // heads.count)
    return x.transpose(0, 2, 1, 3)

  query, key, value = (
    part
    for x in projected
    for part in jnp.split(x, x.shape[-1] // width, axis=-1)
  )
  asking, length = query.shape[1], key.shape[1]
  query = split(query * (width // heads.count) ** -0.5)
  key = split(key)
  if heads.rotate is not None:
    query, key = heads.rotate(query), heads.rotate(key)
  if reach is not None:
    distance = jnp.arange(asking)[:, None] - jnp.arange(length)
    near = jnp.abs(distance) <= reach
    bias = bias + jnp.where(near, 0.0, _NEVER).astype(jnp.float32)
  if position_bias is not None:
    position_bias = position_bias[:, :, :asking, :length]
  if heads.cudnn and not heads.first_only:
    cudnn_attention.check(words is not None)
    context = cudnn_attention.attention(query, key, split(value), bias)
  else:
    context = layer_ops.attention(
      query,
      key,
      split(value),
      bias,
      words,
      heads.rate,
      position_bias,
    )
  # [texts, heads, n, d] back to [texts, n, dim].
  return context.transpose(0, 2, 1, 3).reshape(-1, asking, width)


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
  """Prepares parameters once, so that `bert.Bert` need not do it in every call.

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
