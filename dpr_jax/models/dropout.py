"""Dropout masks that depend only on (seed, step, text).

They do not depend on the device, the position in the batch, the chunk, or the
padding: a mask follows from the text's key, the place in the network, and the
position in the text.  The backward pass computes masks again, which is cheaper
than storing and loading them.
"""

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

# An attention weight's index: head, query and key in bits of their own, so that
# it does not depend on how long a text is padded.
_HEAD, _QUERY = 26, 13


def words(
  keys: Key[Array, " rows"], site: ArrayLike
) -> UInt32[Array, "rows two"]:
  """Two random 32-bit words per text, for the masks below.

  Args:
    keys: one random key per text.
    site: number of the place in the network, so that every mask differs.
  """
  site_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, site)
  return jax.vmap(lambda key: jax.random.bits(key, (2,), jnp.uint32))(site_keys)


def keep_values(
  words: UInt32[Array, "rows _ two"],
  positions: Int[ArrayLike, "_ n"],
  width: int,
  rate: float,
) -> Bool[Array, "rows n width"]:
  """Which hidden values dropout keeps.

  A value's bits come from its index and its text's words through an integer
  hash ("lowbias32", C. Wellons, https://github.com/skeeto/hash-prospector).
  JAX's own generator, called for every value, would take a large part of a
  step's time on a TPU.

  Args:
    words: two words of each token's text, from `words`; of all tokens of a row
      [rows, n, two], or one for all [rows, 1, two].
    positions: position of each token in its text, of each row or [1, n].
    width: values of a token.
    rate: share of values dropped, exact to 2**-32.
  """
  rows = jnp.asarray(positions).astype(jnp.uint32)[..., None]
  # From an iota: XLA fuses it into the consumer, no array of indexes is stored.
  columns = jax.lax.broadcasted_iota(jnp.uint32, (1, 1, width), 2)
  return _keep(
    rows * jnp.uint32(width) + columns, words[..., :1], words[..., 1:], rate
  )


def keep_weights(
  words: UInt32[Array, "texts two"],
  shape: tuple[int, int, int],
  rate: float,
) -> Bool[Array, "texts heads q k"]:
  """Which attention weights dropout keeps; does not depend on the padding.

  Args:
    words: two words of each text, from `words`.
    shape: heads, queries and keys of a text; queries and keys from position 0.
    rate: share of weights dropped, exact to 2**-32.

  Raises:
    ValueError: more than 64 heads or 8,192 tokens.
  """
  heads, *_, length = shape
  if heads > 1 << 32 - _HEAD or length > 1 << _QUERY:
    raise ValueError(
      f"{heads} heads, texts of {length} tokens: dropout tells apart"
      f" {1 << 32 - _HEAD} heads and {1 << _QUERY} tokens"
    )
  head, query, key = (
    jax.lax.broadcasted_iota(jnp.uint32, (1, *shape), axis)
    for axis in range(1, 4)
  )
  first, second = (words[:, n, None, None, None] for n in range(2))
  return _keep(head << _HEAD | query << _QUERY | key, first, second, rate)


def keep_head(
  words: tuple[ArrayLike, ArrayLike],
  shape: tuple[int, int],
  head: int,
  rate: float,
) -> Bool[Array, "q k"]:
  """One head of `keep_weights`, for kernels that compute one at a time.

  Args:
    words: the two words of the text, int32 or uint32 scalars.
    shape: queries and keys of the text.
    head: number of the head, from 0.
    rate: share of weights dropped.
  """
  # In int32, which is what a TPU's iota makes; the bits are the same.
  query, key = (
    jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in range(2)
  )
  places = (query << _QUERY | key).astype(jnp.uint32)
  first, second = (jnp.asarray(word).astype(jnp.uint32) for word in words)
  return _keep(places | jnp.uint32(head << _HEAD), first, second, rate)


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def drop_values(
  values: Float[ArrayLike, "rows n width"],
  words: UInt32[Array, "rows _ two"],
  positions: Int[ArrayLike, "_ n"],
  rate: float,
) -> Float[Array, "rows n width"]:
  """Hidden values, some set to zero and the rest scaled by 1 / (1 - rate).

  Args:
    values: a row of `width` values per token.
    words: see `keep_values`.
    positions: see `keep_values`.
    rate: share of values set to zero.
  """
  keep = keep_values(words, positions, values.shape[-1], rate)
  return _scaled(values, keep, rate)


# Saves the two words per text instead of the mask.  Dropout is linear in its
# input, so that the gradient is the same function, applied to the gradient.
def _values_forward(values, words, positions, rate):
  return drop_values(values, words, positions, rate), (words, positions)


def _values_backward(rate, saved, gradient):
  return drop_values(gradient, *saved, rate), None, None


drop_values.defvjp(_values_forward, _values_backward)


def drop_weights(
  weights: Float[Array, "texts heads q k"],
  words: UInt32[Array, "texts two"],
  rate: float,
) -> Float[Array, "texts heads q k"]:
  """Attention weights, some set to zero and the rest scaled up.

  Without a derivative of its own: `layer_ops.attention` has one.
  """
  return _scaled(weights, keep_weights(words, weights.shape[1:], rate), rate)


def _scaled(values: Array, keep: Array, rate: float) -> Array:
  return jnp.where(keep, values / (1.0 - rate), 0.0).astype(values.dtype)
