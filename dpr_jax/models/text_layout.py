"""Where the tokens of texts are: in the arrays of the layers, and by text.

Dense layers, LayerNorm and dropout see arrays [rows, n, dim] of tokens;
attention and pooling see tiles [texts, length, dim] of padded texts.  In a
padded batch (`Padded`) the two are the same array, a text per row.  In a packed
one (`Packed`, of `packed_texts.py`) tokens are gathered into tiles and back.
The layers are written once, for either.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key, Num, UInt32

from dpr_jax.models import dropout, packed_texts

Tiles = tuple[Num[Array, "_ _ dim"], ...]  # [texts, length, dim] of each tile


@flax.struct.dataclass
class Padded:
  """A text per row, padded at its end: one tile.

  Attributes:
    mask: False where padded.
    keys: dropout key of each text; None = no dropout.
  """

  mask: Bool[ArrayLike, "texts length"]
  keys: Key[ArrayLike, " texts"] | None = None

  @property
  def masks(self) -> tuple[Bool[Array, "_ _"], ...]:
    """False where padded, of each tile [texts, length]."""
    return (jnp.asarray(self.mask),)

  @property
  def longest(self) -> int:
    """Tokens of the longest tile."""
    return self.mask.shape[1]

  @property
  def positions(self) -> Int[Array, "_ n"]:
    """Position of each token in its text."""
    return jnp.arange(self.mask.shape[1])[None]

  def to_tiles(self, tokens: Num[Array, "rows n dim"]) -> Tiles:
    """Values of tokens by text; those beyond the end of a text are any."""
    return (tokens,)

  def from_tiles(self, tiles: Tiles) -> Num[Array, "rows n dim"]:
    """The inverse of `to_tiles`."""
    return tiles[0]

  def split(self, texts: Num[Array, "texts ..."]) -> tuple[Array, ...]:
    """Values of texts by tile."""
    return (texts,)

  def firsts(self, tokens: Num[Array, "rows n dim"]) -> Array:
    """Values of each text's first token, [texts, 1, dim]."""
    return tokens[:, :1]

  def only_firsts(self) -> "Padded":
    """The layout of `firsts`."""
    return Padded(self.mask[:, :1], self.keys)

  def drop(
    self, tokens: Float[Array, "rows n dim"], rate: float, site: ArrayLike
  ) -> Float[Array, "rows n dim"]:
    """Dropout of tokens' values at a place in the network."""
    if self.keys is None or rate == 0.0:
      return tokens
    words = dropout.words(self.keys, site)[:, None]
    return dropout.drop_values(tokens, words, self.positions, rate)

  def weight_words(
    self, rate: float, site: ArrayLike
  ) -> tuple[UInt32[Array, "_ two"] | None, ...]:
    """Dropout words of the texts of each tile; None = no dropout."""
    if self.keys is None or rate == 0.0:
      return (None,)
    return (dropout.words(self.keys, site),)


@flax.struct.dataclass
class Packed:
  """A row of packed texts; `rows` is 1 in the shapes of its functions.

  Attributes:
    texts: the texts; arrays with 1 row.
  """

  texts: packed_texts.PackedTexts

  @property
  def masks(self) -> tuple[Bool[Array, "_ _"], ...]:
    """See `Padded.masks`."""
    return tuple(
      jnp.arange(tile.places.shape[2]) < tile.lengths[0, :, None]
      for tile in self.texts.tiles
    )

  @property
  def longest(self) -> int:
    """See `Padded.longest`."""
    return max(tile.places.shape[2] for tile in self.texts.tiles)

  @property
  def positions(self) -> Int[Array, "_ n"]:
    """See `Padded.positions`."""
    return jnp.asarray(self.texts.positions)

  def to_tiles(self, tokens: Num[Array, "rows n dim"]) -> Tiles:
    """See `Padded.to_tiles`."""
    flat = _move(
      tokens[0], self._places(), self.texts.sources[0], self._is_used()
    )
    tiles, first = [], 0
    for tile in self.texts.tiles:
      _, texts, length = tile.places.shape
      end = first + texts * length
      tiles.append(flat[first:end].reshape(texts, length, -1))
      first = end
    return tuple(tiles)

  def from_tiles(self, tiles: Tiles) -> Num[Array, "rows n dim"]:
    """See `Padded.from_tiles`; values at unused places are any."""
    flat = jnp.concatenate([x.reshape(-1, x.shape[-1]) for x in tiles])
    inside = jnp.concatenate([mask.ravel() for mask in self.masks])
    return _move(flat, self.texts.sources[0], self._places(), inside)[None]

  def split(self, texts: Num[Array, "texts ..."]) -> tuple[Array, ...]:
    """See `Padded.split`."""
    counts = [tile.lengths.shape[1] for tile in self.texts.tiles]
    ends = [sum(counts[: n + 1]) for n in range(len(counts) - 1)]
    return tuple(jnp.split(texts, ends))

  def firsts(self, tokens: Num[Array, "rows n dim"]) -> Array:
    """See `Padded.firsts`."""
    places = jnp.concatenate(
      [tile.places[0, :, 0] for tile in self.texts.tiles]
    )
    is_first = self._is_used() & (self.texts.positions[0] == 0)
    return _move(tokens[0], places, self.texts.slots[0], is_first)[:, None]

  def only_firsts(self) -> Padded:
    """See `Padded.only_firsts`."""
    lengths = jnp.concatenate([tile.lengths[0] for tile in self.texts.tiles])
    keys = self.texts.dropout_keys
    return Padded(lengths[:, None] > 0, None if keys is None else keys[0])

  def drop(
    self, tokens: Float[Array, "rows n dim"], rate: float, site: ArrayLike
  ) -> Float[Array, "rows n dim"]:
    """See `Padded.drop`."""
    if self.texts.dropout_keys is None or rate == 0.0:
      return tokens
    words = dropout.words(self.texts.dropout_keys[0], site)
    words = words[self.texts.slots[0]][None]
    return dropout.drop_values(tokens, words, self.positions, rate)

  def weight_words(
    self, rate: float, site: ArrayLike
  ) -> tuple[UInt32[Array, "_ two"] | None, ...]:
    """See `Padded.weight_words`."""
    if self.texts.dropout_keys is None or rate == 0.0:
      return (None,) * len(self.texts.tiles)
    return self.split(dropout.words(self.texts.dropout_keys[0], site))

  def _places(self) -> Int[Array, " places"]:
    """Places in the row of all tiles' tokens."""
    return jnp.concatenate(
      [tile.places[0].ravel() for tile in self.texts.tiles]
    )

  def _is_used(self) -> Bool[Array, " width"]:
    tokens = sum(jnp.sum(tile.lengths[0]) for tile in self.texts.tiles)
    return jnp.arange(self.texts.token_ids.shape[1]) < tokens


Layout = Padded | Packed


@jax.custom_vjp
def _move(
  values: Num[Array, "n dim"],
  sources: Int[ArrayLike, " m"],
  targets: Int[ArrayLike, " n"],
  is_moved: Bool[ArrayLike, " n"],
) -> Num[Array, "m dim"]:
  """`values[sources]`, whose gradient is a gather too, and no scatter.

  Args:
    values: a row of values per place.
    sources: place that each place of the result is read from.  Of several that
      read the same place at most one is used further on: the gradients at the
      others are 0.
    targets: the place of the result where the value of a place is used.
    is_moved: False where it is used nowhere; its gradient is then exactly 0.
  """
  del targets, is_moved
  return jnp.take(values, sources, axis=0, mode="clip")


def _move_forward(values, sources, targets, is_moved):
  return _move(values, sources, targets, is_moved), (targets, is_moved)


def _move_backward(saved, gradient):
  targets, is_moved = saved
  back = jnp.take(gradient, targets, axis=0, mode="clip")
  return jnp.where(is_moved[:, None], back, 0).astype(back.dtype), *(None,) * 3


_move.defvjp(_move_forward, _move_backward)
