"""From the cores' gradients to one update, and who keeps the optimizer's state.

Replicated, every core gets the mean gradient and takes the same step.  Cut
(`train.shard_optimizer`; ZeRO, Rajbhandari et al. 2020, arXiv 1910.02054,
stage 1), a core gets its part of the mean gradient, keeps Adam's moments of
that part alone, and hands its part of the new parameters to the others: as many
bytes travel, and the moments take 1 / cores of the memory and time.  The
trajectory is the same but for the order in which the squares of the gradient's
norm are added up.

An array is cut along one axis; one that no axis of which the cores divide stays
whole.  On the host (and in checkpoints) an optimizer's state is always whole.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dpr_jax.core import devices as devices_lib

LEAST = 8  # elements of an array that a core keeps; smaller ones stay whole


@dataclasses.dataclass(frozen=True)
class Sharing:
  """How gradients are averaged and who keeps the optimizer's state.

  Attributes:
    cores: over which the optimizer's state is cut; 0 = all have all of it.
    dtype: gradients travel in it; sums into parameters are float32.
  """

  cores: int = 0
  dtype: Any = jnp.float32

  def axis(self, shape: tuple[int, ...]) -> int | None:
    """The axis along which an array of this shape is cut; None = it is not.

    The second to last is the cheapest on a TPU, the last one the dearest.
    """
    if not self.cores or np.prod(shape) < LEAST * self.cores:
      return None
    last = len(shape) - 1
    order = [last - 1, *range(last - 1), last] if last else [0]
    return next((n for n in order if shape[n] % self.cores == 0), None)

  def mean(self, gradients: Any) -> Any:
    """This core's part of the gradients' mean over the cores."""

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
    """Global norm of gradients whose parts the cores hold.

    Args:
      parts: from `mean`.
      whole: a tree of whole arrays of the same structure, as the parameters.
    """
    squares = {True: jnp.float32(0), False: jnp.float32(0)}
    for part, like in zip(
      jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True
    ):
      squares[self.axis(like.shape) is None] += jnp.sum(part**2)
    if self.cores:
      squares[False] = jax.lax.psum(squares[False], devices_lib.AXIS)
    return jnp.sqrt(squares[True] + squares[False])

  def part(self, whole: Any) -> Any:
    """This core's part of replicated arrays."""
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
    """Replicated arrays from the cores' parts; `like` has the whole shapes."""
    if not self.cores:
      return parts

    def gather(part: Array, x: Array) -> Array:
      axis = self.axis(x.shape)
      if axis is None:
        return part
      return jax.lax.all_gather(part, devices_lib.AXIS, axis=axis, tiled=True)

    return jax.tree.map(gather, parts, like)

  def cut(self, tree: Any) -> Any:
    """On the host: whole arrays to parts, with a leading axis of cores."""

    def cut(x: Any) -> np.ndarray:
      x = np.asarray(x)
      axis = self.axis(x.shape)
      if axis is None:
        return np.broadcast_to(x, (self.cores, *x.shape))
      return np.stack(np.split(x, self.cores, axis))

    return jax.tree.map(cut, tree) if self.cores else tree

  def cut_shapes(self, tree: Any) -> Any:
    """Shapes of what `cut` makes of arrays of these shapes."""

    def cut(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
      shape, axis = list(x.shape), self.axis(x.shape)
      if axis is not None:
        shape[axis] //= self.cores
      return jax.ShapeDtypeStruct((self.cores, *shape), x.dtype)

    return jax.tree.map(cut, tree) if self.cores else tree

  def join(self, tree: Any, like: Any) -> Any:
    """On the host: the inverse of `cut`; `like` has the whole shapes."""

    def join(x: Any, whole: Any) -> np.ndarray:
      axis = self.axis(np.shape(whole))
      return np.asarray(x[0] if axis is None else np.concatenate(list(x), axis))

    return jax.tree.map(join, tree, like) if self.cores else tree
