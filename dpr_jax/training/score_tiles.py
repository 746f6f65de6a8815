"""Scores of questions and passages in tiles: their softmax and its gradients.

A tile is a block of passages.  Forward, tiles are added to a running softmax;
backward, the scores of each tile are computed again, because they are cheap to
recompute and expensive to store.  `objectives` decides which tiles a device
sees: those of all devices, gathered, or one device's after the other's.

Scores may be large (5e4 and more without temperature), where float32 is exact
to 4e-3 only, and so would be a log-sum of that size.  So the softmax is never
computed from the log-sum, but from its two parts, the highest score and the
logarithm of the rest: differences of scores are exact where they matter.
"""

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from dpr_jax.core import errors

# Score of an excluded pair; finite, because -inf - -inf is NaN.
MASKED = -1e30


@flax.struct.dataclass
class Competition:
  """Labels and masks of one device: the passages a question is compared with.

  All devices have the same number of passages.  Global positions count the
  passages of device 0, then those of device 1, and so on.  The order of the
  passages does not change the loss.

  Attributes:
    labels: global position of each question's positive.
    question_keys: key of that positive, the same for the same title and text
      (see `data.negative_sampling`); negative = unknown.
    question_weights: 1, or 0 for a question that only pads the batch.
    passage_valid: False for a passage that only pads the batch.
    passage_keys: key of each passage, so that a copy of a question's positive
      does not count as a negative; negative = unknown.
    excluded: True where a passage of the global batch must not be a negative
      of a question because it contains one of its answers; None = nowhere.
    question_positives: keys of the question's other positives, which must not
      be negatives either; negative = padding; None = no question has any.
    candidates: global positions of the question's own passages whose scores a
      teacher knows, the positive in the first column; negative = none; None =
      there is no teacher.
  """

  labels: Int[ArrayLike, "*cores questions"]
  question_keys: Int[ArrayLike, "*cores questions"]
  question_weights: Float[ArrayLike, "*cores questions"]
  passage_valid: Bool[ArrayLike, "*cores passages"]
  passage_keys: Int[ArrayLike, "*cores passages"]
  excluded: Bool[ArrayLike, "*cores questions all_passages"] | None = None
  question_positives: Int[ArrayLike, "*cores questions columns"] | None = None
  candidates: Int[ArrayLike, "*cores questions candidates"] | None = None


class Tile(NamedTuple):
  """A tile of passages, with their part of `Competition`."""

  vectors: Array  # [tile, dim]
  keys: Array  # [tile]
  valid: Array  # [tile]
  places: Array  # [tile], global positions, one after the other
  excluded: Array | None  # [questions, tile]


class Normalizer(NamedTuple):
  """Log-sum-exp of each question's scores, as two terms to be added."""

  highest: Array  # highest score, [questions]
  log_total: Array  # log(sum exp(score - highest)), [questions]

  def log_shares(self, scores: Array) -> Array:
    """Log-softmax of scores [questions, tile]."""
    return (scores - self.highest[:, None]) - self.log_total[:, None]


class Derivatives(NamedTuple):
  """Derivatives of the final loss, as the backward pass receives them."""

  losses: Array  # by each question's loss, [questions]
  candidates: Array | None  # by the candidates' scores; None = no teacher


class Running(NamedTuple):
  """Each question's softmax over the tiles so far; all arrays [questions]."""

  highest: Array  # score
  total: Array  # sum of exp(score - highest)
  own: Array  # score of the positive, 0 before its tile
  best_other: Array  # highest score of another passage
  duplicates: Array  # number of masked passages
  answers: Array  # number of masked passages
  # Scores of the candidates, masked or not, [questions, candidates]: 0 before
  # their tile, and where there is none; None = there is no teacher.
  candidates: Array | None


def _matmul(left: Array, right: Array) -> Array:
  return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


def _scores(
  questions, tile: Tile, competition: Competition, temperature: float
):
  """Scores of a tile, MASKED for excluded pairs, and the masks.

  Returns:
    Scores and three masks, all [questions, tile]: the question's positive, a
    copy of one of its positives, a passage with one of its answers; and the
    scores of the candidates in this tile, see `Running`.
  """
  scores = _matmul(questions, tile.vectors.T) / temperature
  taught = None
  if competition.candidates is not None:
    columns, here = _columns(tile, competition.candidates)
    taught = jnp.where(here, jnp.take_along_axis(scores, columns, 1), 0.0)
  own = tile.places[None] == competition.labels[:, None]
  same = _equal(tile.keys, competition.question_keys)
  if competition.question_positives is not None:
    # Column by column, to avoid an array [questions, tile, columns].
    for column in range(competition.question_positives.shape[1]):
      same |= _equal(tile.keys, competition.question_positives[:, column])
  duplicate = same & ~own & tile.valid[None]
  answer = jnp.zeros_like(duplicate)
  if tile.excluded is not None:
    answer = tile.excluded & ~own & ~duplicate & tile.valid[None]
  scores = jnp.where(duplicate | answer | ~tile.valid[None], MASKED, scores)
  return scores, own, duplicate, answer, taught


def _columns(tile: Tile, candidates: Array) -> tuple[Array, Array]:
  """Column of each candidate in a tile, and whether it is in this tile."""
  columns = candidates - tile.places[0]
  size = tile.places.shape[0]
  here = (candidates >= 0) & (columns >= 0) & (columns < size)
  return jnp.clip(columns, 0, size - 1), here


def _equal(passage_keys: Array, question_keys: Array) -> Array:
  """[questions, passages]: True where both keys are known and equal."""
  keys = question_keys[:, None]
  return (passage_keys[None] == keys) & (keys >= 0)


def start(questions: Array, competition: Competition) -> Running:
  """The softmax of each question before its first tile."""
  zeros = jnp.zeros(questions.shape[0], jnp.float32)
  low = jnp.full_like(zeros, MASKED)
  taught = None
  if competition.candidates is not None:
    taught = jnp.zeros(competition.candidates.shape, jnp.float32)
  return Running(low, zeros, zeros, low, zeros, zeros, taught)


def _add_tile(so_far: Running, questions, tile, competition, temperature):
  """Online softmax: adds a tile, rescaling the sum if the maximum rises."""
  scores, own, duplicate, answer, taught = _scores(
    questions, tile, competition, temperature
  )
  highest = jnp.maximum(so_far.highest, jnp.max(scores, axis=1))
  total = so_far.total * jnp.exp(so_far.highest - highest)
  others = jnp.max(jnp.where(own, MASKED, scores), axis=1)
  return Running(
    highest=highest,
    total=total + jnp.sum(jnp.exp(scores - highest[:, None]), axis=1),
    own=so_far.own + jnp.sum(jnp.where(own, scores, 0.0), axis=1),
    best_other=jnp.maximum(so_far.best_other, others),
    duplicates=so_far.duplicates + jnp.sum(duplicate, axis=1),
    answers=so_far.answers + jnp.sum(answer, axis=1),
    candidates=None if taught is None else so_far.candidates + taught,
  )


def _tile_gradients(
  questions, tile, competition, normalizer, derivatives, temperature
):
  """Gradients to the questions and to the tile's vectors.

  With s = q p / t and the loss log(sum exp s) - s_own, the derivative by s is
  softmax(s) - own, as for any cross-entropy.  `normalizer` of the forward pass
  gives the softmax of a tile without the other tiles.

  Args:
    questions: vectors, [questions, dim].
    tile: of passages.
    competition: labels and masks.
    normalizer: log(sum exp s) over all passages, in two parts.
    derivatives: of the final loss, by each question's loss and by the scores
      of its candidates.
    temperature: t.
  """
  scores, own, *_ = _scores(questions, tile, competition, temperature)
  shares = jnp.exp(normalizer.log_shares(scores))  # softmax; 0 where masked
  delta = derivatives.losses[:, None] * (shares - own)
  if competition.candidates is not None:
    # The transpose of taking the candidates' scores: each derivative returns to
    # its passage's column, also where the softmax has none (masked passages).
    columns, here = _columns(tile, competition.candidates)
    rows = jnp.arange(questions.shape[0])[:, None]
    delta = delta.at[rows, columns].add(
      jnp.where(here, derivatives.candidates, 0.0)
    )
  delta = delta / temperature
  return _matmul(delta, tile.vectors), _matmul(delta.T, questions)


def _cut(all_passages: Tile, size: int) -> Tile:
  """Splits a tile into smaller ones along a new first axis, for `lax.scan`."""
  count = all_passages.keys.shape[0]
  if count % size:
    raise errors.InputError(
      f"config.train.loss_tile={size} does not divide the {count} passages that"
      " are scored: choose a divisor, or 0"
    )
  excluded = all_passages.excluded
  if excluded is not None:
    excluded = excluded.reshape(-1, count // size, size).swapaxes(0, 1)
  stacked = jax.tree.map(
    lambda x: x.reshape(count // size, size, *x.shape[1:]),
    all_passages._replace(excluded=None),
  )
  return stacked._replace(excluded=excluded)


def scan_forward(so_far, questions, passages, competition, temperature, size):
  """Adds `passages` to the softmax, `size` at a time; size 0 = all at once."""
  if not size or size >= passages.keys.shape[0]:
    return _add_tile(so_far, questions, passages, competition, temperature)
  return jax.lax.scan(
    lambda carry, tile: (
      _add_tile(carry, questions, tile, competition, temperature),
      None,
    ),
    so_far,
    _cut(passages, size),
  )[0]


def scan_backward(
  to_questions,
  questions,
  passages,
  competition,
  normalizer,
  derivatives,
  temperature,
  size,
):
  """Gradients through `passages`, `size` at a time; size 0 = all at once.

  Returns:
    `to_questions` plus the gradient to the questions [questions, dim], and the
    gradient to the passages' vectors [passages, dim].
  """

  def add(carry, tile):
    to_these_questions, to_tile = _tile_gradients(
      questions, tile, competition, normalizer, derivatives, temperature
    )
    return carry + to_these_questions, to_tile

  if not size or size >= passages.keys.shape[0]:
    return add(to_questions, passages)
  to_questions, to_tiles = jax.lax.scan(add, to_questions, _cut(passages, size))
  return to_questions, to_tiles.reshape(passages.vectors.shape)


def tile_of_core(vectors, competition: Competition, core) -> Tile:
  """The passages of device `core` as a tile.

  Args:
    vectors: of that device.
    competition: keys and validity of that device's passages; `excluded` has the
      columns of all devices.
    core: index of the device, a traced integer.
  """
  count = vectors.shape[0]
  excluded = competition.excluded
  if excluded is not None:
    excluded = jax.lax.dynamic_slice_in_dim(excluded, core * count, count, 1)
  places = core * count + jnp.arange(count)
  return Tile(
    vectors,
    competition.passage_keys,
    competition.passage_valid,
    places,
    excluded,
  )


def gathered(vectors, competition: Competition, axis: str) -> Tile:
  """The passages of all devices as one tile, by an all-gather."""

  def gather(x: Array) -> Array:
    return jax.lax.all_gather(x, axis, tiled=True)

  keys = gather(competition.passage_keys)
  return Tile(
    gather(vectors),
    keys,
    gather(competition.passage_valid),
    jnp.arange(keys.shape[0]),
    competition.excluded,
  )
