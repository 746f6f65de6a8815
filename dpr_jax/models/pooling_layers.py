"""From the hidden states of a text to its vector: pooling, dense layers, norm.

The poolings are those of Sentence-Transformers, computed in float32.  Dense
layers after pooling are its `Dense` modules; their parameters are part of the
tower's tree, as `dense_0`, `dense_1`, ..., and are trained with it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from dpr_jax.core import settings_model

POOLINGS = settings_model.POOLINGS
ACTIVATIONS = {"identity": lambda x: x, "tanh": jnp.tanh}


@dataclasses.dataclass(frozen=True)
class DenseLayer:
  """Structure of a dense layer after pooling.

  Attributes:
    inputs: width of the input.
    outputs: width of the output.
    bias: whether the layer has a bias.
    activation: a name in `ACTIVATIONS`.
  """

  inputs: int
  outputs: int
  bias: bool
  activation: str

  def shapes(self) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters."""
    found: dict[str, tuple[int, ...]] = {"kernel": (self.inputs, self.outputs)}
    return found | ({"bias": (self.outputs,)} if self.bias else {})


def dense_name(number: int) -> str:
  """Name of a dense layer among the parameters of a tower."""
  return f"dense_{number}"


def pool(
  hidden: Float[Array, "rows positions dim"],
  mask: Bool[ArrayLike, "rows length"],
  how: str,
  skip: int = 0,
) -> Float[Array, "rows dim"]:
  """Float32 vectors of texts.

  Args:
    hidden: last hidden states of all positions, or of position 0 alone for
      "cls" without `skip`.
    mask: False where padded; every text is padded at its end.
    how: one of `POOLINGS`.
    skip: number of tokens at the beginning of every text, [CLS] and a prefix,
      that are attended to but not pooled.
  """
  if how == "cls":
    return hidden[:, skip].astype(jnp.float32)
  hidden = hidden.astype(jnp.float32)
  mask = jnp.asarray(mask)
  places = jnp.arange(mask.shape[1])
  if skip:
    mask = mask & (places >= skip)
  if how == "lasttoken":
    last = jnp.max(jnp.where(mask, places, 0), axis=1)
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
  if how == "max":
    lowest = jnp.finfo(jnp.float32).min
    largest = jnp.max(jnp.where(mask[:, :, None], hidden, lowest), axis=1)
    # Finite for a text of which nothing is pooled.
    return jnp.where(jnp.any(mask, axis=1)[:, None], largest, 0.0)
  weights = mask.astype(jnp.float32)[:, :, None]  # [rows, length, 1]
  if how == "weightedmean":  # weights 1, 2, ... by position
    weights = weights * (places + 1.0)[None, :, None]
  vectors = jnp.sum(hidden * weights, axis=1)
  total = jnp.maximum(jnp.sum(weights, axis=1), 1.0)
  return vectors / (jnp.sqrt(total) if how == "mean_sqrt_len" else total)


def apply_dense(
  tower: dict[str, Any],
  layers: tuple[DenseLayer, ...],
  vectors: Float[Array, "rows inputs"],
) -> Float[Array, "rows outputs"]:
  """The dense layers, in float32 on every device: they cost next to nothing."""
  for number, layer in enumerate(layers):
    params = tower[dense_name(number)]
    vectors = jnp.matmul(
      vectors,
      params["kernel"].astype(jnp.float32),
      precision=jax.lax.Precision.HIGHEST,
    )
    if layer.bias:
      vectors = vectors + params["bias"]
    vectors = ACTIVATIONS[layer.activation](vectors)
  return vectors


def unit(vectors: Float[Array, "rows dim"]) -> Float[Array, "rows dim"]:
  """Vectors scaled to length 1."""
  # The constant keeps the gradient of a zero vector finite.
  norms = jnp.sqrt(jnp.sum(vectors**2, axis=-1, keepdims=True) + 1e-24)
  return vectors / norms


@dataclasses.dataclass(frozen=True)
class Head:
  """What makes a vector of hidden states, besides the settings.

  Attributes:
    dense: dense layers after pooling.
    pools_prefix: whether the tokens of a prefix, and [CLS] before it, are
      pooled.
  """

  dense: tuple[DenseLayer, ...] = ()
  pools_prefix: bool = True

  def record(self) -> dict[str, Any]:
    """As plain data, to be stored; {} for a head of settings alone."""
    return {} if self == Head() else dataclasses.asdict(self)

  @classmethod
  def of(cls, record: Mapping[str, Any]) -> "Head":
    """The inverse of `record`."""
    layers = tuple(DenseLayer(**layer) for layer in record.get("dense", ()))
    return cls(layers, record.get("pools_prefix", True))

  def shapes(self) -> dict[str, Any]:
    """Shapes of the parameters, to be added to those of the encoder."""
    return {
      dense_name(number): layer.shapes()
      for number, layer in enumerate(self.dense)
    }
