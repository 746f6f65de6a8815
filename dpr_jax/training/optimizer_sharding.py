"""Averages gradients over devices, and shards the optimizer state over them.

Replicated: every device gets the mean gradient and takes the same step.

Sharded (`train.shard_optimizer`; ZeRO stage 1, Rajbhandari et al. 2020, arXiv
1910.02054): a device gets its part of the mean gradient (reduce-scatter), keeps
Adam's moments of that part only, and sends its part of the new parameters to
the others (all-gather).  The traffic is the same, an all-reduce being the sum
of the two; the moments take 1 / devices of the memory and time.  The result
differs only by the order in which the squares of the gradient norm are added.

An array is split along one axis; it is replicated if the number of devices
divides none of its axes.  On the host and in checkpoints the state is complete.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dpr_jax.core import devices as devices_lib

LEAST = 8  # elements per device; smaller arrays are replicated


@dataclasses.dataclass(frozen=True)
class Sharing:
  """How gradients are averaged, and which device keeps which optimizer state.

  Attributes:
    cores: number of devices to shard the optimizer state over; 0 = replicated.
    dtype: dtype in which gradients are sent; the update itself is float32.
  """

  cores: int = 0
  dtype: Any = jnp.float32

  def axis(self, shape: tuple[int, ...]) -> int | None:
    """The axis along which to split an array; None = replicate it.

    On a TPU the second to last axis is the cheapest, and the last axis, which
    is tiled over the 128 lanes of a register, the most expensive.
    """
    if not self.cores or np.prod(shape) < LEAST * self.cores:
      return None
    last = len(shape) - 1
    order = [last - 1, *range(last - 1), last] if last else [0]
    return next((n for n in order if shape[n] % self.cores == 0), None)

  def mean(self, gradients: Any) -> Any:
    """This device's part of the mean of the gradients over the devices."""

    def reduce(x: Array) -> Array:
      axis, x = self.axis(x.shape), x.astype(self.dtype)
      if axis is None:
        return jax.lax.pmean(x, devices_lib.AXIS).astype(jnp.float32)
      part = jax.lax.psum_scatter(
        x, devices_lib.AXIS, scatter_dimension=axis, tiled=True
      )
      return part.astype(jnp.float32) / self.cores

    return jax.tree.map(reduce, gradients)

  def norm(self, parts: Any, whole: Any) -> Float[Array, ""]:
    """Global norm of gradients that are split over the devices.

    Args:
      parts: this device's parts, from `mean`.
      whole: tree of complete arrays of the same structure, as the parameters.
    """
    # Keys: is the array replicated?  Only the squares of split arrays are
    # summed over the devices; a psum would count replicated ones several times.
    squares = {True: jnp.float32(0), False: jnp.float32(0)}
    for part, like in zip(
      jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True
    ):
      squares[self.axis(like.shape) is None] += jnp.sum(part**2)
    if self.cores:
      squares[False] = jax.lax.psum(squares[False], devices_lib.AXIS)
    return jnp.sqrt(squares[True] + squares[False])

  def part(self, whole: Any) -> Any:
    """This device's part of replicated arrays."""
    if not self.cores:
      return whole

    def cut(x: Array) -> Array:
      axis = self.axis(x.shape)
      if axis is None:
        return x
      size = x.shape[axis] // self.cores
      first = jax.lax.axis_index(devices_lib.AXIS) * size
      return jax.lax.dynamic_slice_in_dim(x, first, size, axis)

    return jax.tree.map(cut, whole)

  def whole(self, parts: Any, like: Any) -> Any:
    """Replicated arrays from the devices' parts.

    Args:
      parts: this device's parts.
      like: tree of arrays of the complete shapes.
    """
    if not self.cores:
      return parts

    def gather(part: Array, x: Array) -> Array:
      axis = self.axis(x.shape)
      if axis is None:
        return part
      return jax.lax.all_gather(part, devices_lib.AXIS, axis=axis, tiled=True)

    return jax.tree.map(gather, parts, like)

  def cut(self, tree: Any) -> Any:
    """On the host: splits complete arrays; adds a leading axis of devices."""

    def cut(x: Any) -> np.ndarray:
      x = np.asarray(x)
      axis = self.axis(x.shape)
      if axis is None:
        return np.broadcast_to(x, (self.cores, *x.shape))
      return np.stack(np.split(x, self.cores, axis))

    return jax.tree.map(cut, tree) if self.cores else tree

  def cut_shapes(self, tree: Any) -> Any:
    """The shapes that `cut` returns for arrays of these shapes."""

    def cut(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
      shape, axis = list(x.shape), self.axis(x.shape)
      if axis is not None:
        shape[axis] //= self.cores
      return jax.ShapeDtypeStruct((self.cores, *shape), x.dtype)

    return jax.tree.map(cut, tree) if self.cores else tree

  def join(self, tree: Any, like: Any) -> Any:
    """On the host: the inverse of `cut`; `like` has the complete shapes."""

    def join(x: Any, whole: Any) -> np.ndarray:
      axis = self.axis(np.shape(whole))
      return np.asarray(x[0] if axis is None else np.concatenate(list(x), axis))

    return jax.tree.map(join, tree, like) if self.cores else tree
