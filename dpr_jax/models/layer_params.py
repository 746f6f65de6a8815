"""Parameters of a layer, as Flax modules for the functions of `layer_ops.py`.

Parameters are float32, whatever the dtype of the computation.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from dpr_jax.models import layer_ops


class Weights(nn.Module):
  """Kernel and bias of a dense layer, in float32.

  Attributes:
    inputs: width of the input.
    outputs: width of the output.
    initializer: initializer of the kernel.
    use_bias: has a bias; False = it is zero, and no parameter.
  """

  inputs: int
  outputs: int
  initializer: Any
  use_bias: bool = True

  @nn.compact
  def __call__(
    self,
  ) -> tuple[Float[ArrayLike, "inputs outputs"], Float[ArrayLike, " outputs"]]:
    """Returns (kernel, bias)."""
    kernel = self.param(
      "kernel", self.initializer, (self.inputs, self.outputs), jnp.float32
    )
    if not self.use_bias:
      return kernel, jnp.zeros((self.outputs,), jnp.float32)
    zeros = nn.initializers.zeros_init()
    return kernel, self.param("bias", zeros, (self.outputs,), jnp.float32)


class LayerNorm(nn.Module):
  """`layer_ops.layer_norm` with its parameters.

  Attributes:
    epsilon: added to the variance.
    use_bias: has a bias; False = it is zero, and no parameter.
  """

  epsilon: float
  use_bias: bool = True

  @nn.compact
  def __call__(
    self, x: Float[Array, "rows n dim"]
  ) -> Float[Array, "rows n dim"]:
    """Normalises the last axis."""
    width = (x.shape[-1],)
    ones, zeros = nn.initializers.ones_init(), nn.initializers.zeros_init()
    scale = self.param("scale", ones, width, jnp.float32)
    bias = jnp.zeros(width, jnp.float32)
    if self.use_bias:
      bias = self.param("bias", zeros, width, jnp.float32)
    return layer_ops.layer_norm(x, scale, bias, self.epsilon)
