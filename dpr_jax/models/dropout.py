"""Dropout masks that depend only on (seed, step, text).

They do not depend on the device, the position in the batch, or the chunk: a
mask follows from the text's key and the place in the network.  The backward
pass computes masks again, which is cheaper than storing and loading them.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Key, UInt32


def words(
  keys: Key[Array, " rows"], site: ArrayLike
) -> UInt32[Array, "rows two"]:
  """Two random 32-bit words per text, for `keep_mask`.

  Args:
    keys: one random key per text.
    site: number of the place in the network, so that every mask differs.
  """
  site_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, site)
  return jax.vmap(lambda key: jax.random.bits(key, (2,), jnp.uint32))(site_keys)


def keep_mask(
  words: UInt32[Array, "rows two"], shape: tuple[int, ...], rate: float
) -> Bool[Array, "rows ..."]:
  """Which values of each text dropout keeps.

  A value's bits come from its index and the text's words through an integer
  hash ("lowbias32", C. Wellons, https://github.com/skeeto/hash-prospector).
  JAX's own generator, called for every value, would take a large part of a
  step's time on a TPU.

  Args:
    words: two words of each text, from `words`.
    shape: shape of one text's values.
    rate: share of values dropped, exact to 2**-32.
  """
  first, second = (
    words[:, n].reshape(-1, *(1 for _ in shape)) for n in range(2)
  )
  # Row-major index of every value, from iotas: XLA fuses them into the
  # consumer, and no array of indexes is stored.
  places, stride = jnp.zeros((1, *shape), jnp.uint32), 1
  for axis in reversed(range(len(shape))):
    index = jax.lax.broadcasted_iota(jnp.uint32, (1, *shape), axis + 1)
    places += index * jnp.uint32(stride)
    stride *= shape[axis]
  return _keep(places, first, second, rate)


def keep_matrix(
  words: tuple[ArrayLike, ArrayLike],
  shape: tuple[int, int],
  number: int,
  rate: float,
) -> Bool[Array, "n m"]:
  """One matrix of `keep_mask`, for kernels that compute one head at a time.

  Args:
    words: the two words of the text, int32 or uint32 scalars.
    shape: shape of the matrix.
    number: index of the matrix within the text's values, from 0.
    rate: share of values dropped.
  """
  down, across = (
    jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in range(2)
  )
  places = down * shape[1] + across + number * math.prod(shape)
  first, second = (jnp.asarray(word).astype(jnp.uint32) for word in words)
  return _keep(places.astype(jnp.uint32), first, second, rate)


def _keep(places: Array, first: Array, second: Array, rate: float) -> Array:
  # The two words enter before and after the first hash.  Were both added to
  # the index, the masks of two texts could be shifts of one another.
  bits = _hash(_hash(places ^ first) + second)
  return bits >= jnp.uint32(round(rate * 2**32))


def _hash(x: Array) -> Array:
  """Mixes the bits of 32-bit integers, one to one."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x21F0AAAD)
  x = (x ^ (x >> 15)) * jnp.uint32(0xD35A2D97)
  return x ^ (x >> 15)


def drop(
  values: Float[ArrayLike, "rows ..."],
  keys: Key[Array, " rows"] | None,
  rate: float,
  site: ArrayLike,
) -> Float[Array, "rows ..."]:
  """Values with some set to zero and the rest scaled by 1 / (1 - rate).

  Args:
    values: any activations, one row per text.
    keys: one random key per text; None turns dropout off.
    rate: share of values set to zero.
    site: number of the place in the network, see `words`.
  """
  if keys is None or rate == 0.0:
    return values
  return masked(values, words(keys, site), rate)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def masked(
  values: Float[ArrayLike, "rows ..."],
  words: UInt32[Array, "rows two"],
  rate: float,
) -> Float[Array, "rows ..."]:
  """`drop`, with the words already made."""
  keep = keep_mask(words, values.shape[1:], rate)
  return jnp.where(keep, values / (1.0 - rate), 0.0).astype(values.dtype)


# Saves the two words per text instead of the mask.  Dropout is linear in its
# input, so that the gradient is the same function, applied to the gradient.
def _masked_forward(values, words, rate):
  return masked(values, words, rate), words


def _masked_backward(rate, words, gradient):
  return masked(gradient, words, rate), None


masked.defvjp(_masked_forward, _masked_backward)
