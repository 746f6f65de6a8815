"""The loss: every question against the passages of the whole global batch.

`in_batch_loss` is written for one core, against an axis name: it scores the
local questions against the passages of all cores and takes the negative
log-likelihood of each question's own positive (paper, section 3.2, equation 2).
The gradient flows back to the cores that encoded the passages, so that the mean
of the cores' gradients is the true gradient of the global mean.

A score row (local questions x global passages) exists whole ("gathered"),
in tiles ("tiled": vectors are gathered, scores come and go), or not at all
("ring": not even the vectors are gathered; each core's passages travel around
all cores, and their gradient travels with them).  All three are one function of
the batch; the derivative is written out, because every score is cheap to make
again and dear to keep.

Scores may be large (5e4 and more without temperature): float32 holds them to
4e-3 there, and a log-sum of the same size too.  So the softmax is never taken
with that sum, but with its two parts, the highest score and the logarithm of
what is left: differences of scores are exact where they matter.
"""

import dataclasses
import functools
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from dpr_jax.core import errors

KINDS = ("gathered", "tiled", "ring")
MASKED = -1e30


@flax.struct.dataclass
class Competition:
  """What decides which passages a question competes over, on one core.

  Every core has as many passages as the others; global places count the
  passages of core 0, then those of core 1, ...  The order in which passages
  stand changes nothing.

  Attributes:
    labels: global place of each question's own positive.
    question_keys: key of that positive, the same for the same title and text
      (see `data.negative_sampling`); negative = unknown.
    question_weights: 1, or 0 for a question that only pads the batch.
    passage_valid: False for a passage that only pads the batch.
    passage_keys: the passage's key, so that a second copy of a question's own
      positive is not held against it; negative = unknown.
    excluded: True where a passage of the global batch is no negative of a
      question, because it holds one of its answers; None = nowhere.
    question_positives: keys of the question's other positives, which are no
      negatives of it either; negative = none; None = no question has any.
  """

  labels: Int[ArrayLike, "*cores questions"]
  question_keys: Int[ArrayLike, "*cores questions"]
  question_weights: Float[ArrayLike, "*cores questions"]
  passage_valid: Bool[ArrayLike, "*cores passages"]
  passage_keys: Int[ArrayLike, "*cores passages"]
  excluded: Bool[ArrayLike, "*cores questions all_passages"] | None = None
  question_positives: Int[ArrayLike, "*cores questions columns"] | None = None


@flax.struct.dataclass
class LossSums:
  """Sums over questions, to be divided by `count` over the global batch.

  Attributes:
    loss: negative log-likelihood of the own positive.
    correct: questions whose own positive scores above all others.
    duplicates: passages masked as copies of the own positive, or as other
      positives of the question.
    alone: questions without any negative: they have no gradient.
    answers: passages masked because they hold an answer.
    count: questions.
  """

  loss: Float[ArrayLike, "*cores"]
  correct: Float[ArrayLike, "*cores"]
  duplicates: Float[ArrayLike, "*cores"]
  alone: Float[ArrayLike, "*cores"]
  answers: Float[ArrayLike, "*cores"]
  count: Float[ArrayLike, "*cores"]


class _Tile(NamedTuple):
  """Some passages with all that the loss must know about them."""

  vectors: Array  # [tile, dim]
  keys: Array  # [tile]
  valid: Array  # [tile]
  places: Array  # [tile]
  excluded: Array | None  # [questions, tile]


class _Normalizer(NamedTuple):
  """Of each question's softmax; the log-sum is the sum of the two."""

  highest: Array  # [questions]
  log_total: Array  # [questions], of exp(score - highest)

  def log_shares(self, scores: Array) -> Array:
    """Logarithms of the softmax of scores [questions, tile]."""
    return (scores - self.highest[:, None]) - self.log_total[:, None]


class _Running(NamedTuple):
  """What is known of each question's softmax after some tiles."""

  highest: Array
  total: Array  # of exp(score - highest)
  own: Array
  best_other: Array
  duplicates: Array
  answers: Array


def _matmul(left: Array, right: Array) -> Array:
  return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


def _scores(questions, tile: _Tile, given: Competition, temperature: float):
  """Scores of a tile, MASKED where it takes no part, and the masks."""
  scores = _matmul(questions, tile.vectors.T) / temperature
  own = tile.places[None] == given.labels[:, None]
  same = _equal(tile.keys, given.question_keys)
  if given.question_positives is not None:
    # One comparison a column: a [questions, tile, columns] array never exists.
    for column in range(given.question_positives.shape[1]):
      same |= _equal(tile.keys, given.question_positives[:, column])
  duplicate = same & ~own & tile.valid[None]
  answer = jnp.zeros_like(duplicate)
  if tile.excluded is not None:
    answer = tile.excluded & ~own & ~duplicate & tile.valid[None]
  scores = jnp.where(duplicate | answer | ~tile.valid[None], MASKED, scores)
  return scores, own, duplicate, answer


def _equal(passage_keys: Array, question_keys: Array) -> Array:
  """[questions, passages]: True where both keys are known and equal."""
  keys = question_keys[:, None]
  return (passage_keys[None] == keys) & (keys >= 0)


def _start(questions: Array) -> _Running:
  zeros = jnp.zeros(questions.shape[0], jnp.float32)
  low = jnp.full_like(zeros, MASKED)
  return _Running(low, zeros, zeros, low, zeros, zeros)


def _add_tile(so_far: _Running, questions, tile, given, temperature):
  scores, own, duplicate, answer = _scores(questions, tile, given, temperature)
  highest = jnp.maximum(so_far.highest, jnp.max(scores, axis=1))
  total = so_far.total * jnp.exp(so_far.highest - highest)
  others = jnp.max(jnp.where(own, MASKED, scores), axis=1)
  return _Running(
    highest=highest,
    total=total + jnp.sum(jnp.exp(scores - highest[:, None]), axis=1),
    own=so_far.own + jnp.sum(jnp.where(own, scores, 0.0), axis=1),
    best_other=jnp.maximum(so_far.best_other, others),
    duplicates=so_far.duplicates + jnp.sum(duplicate, axis=1),
    answers=so_far.answers + jnp.sum(answer, axis=1),
  )


def _tile_gradients(questions, tile, given, normalizer, weights, temperature):
  """Gradients to the questions and to the tile's vectors."""
  scores, own, _, _ = _scores(questions, tile, given, temperature)
  shares = jnp.exp(normalizer.log_shares(scores))  # 0 where masked
  delta = weights[:, None] * (shares - own) / temperature
  return _matmul(delta, tile.vectors), _matmul(delta.T, questions)


def _cut(all_passages: _Tile, size: int) -> _Tile:
  """A tile as a stack of smaller ones, for `lax.scan`."""
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


def _scan_forward(so_far, questions, passages, given, temperature, size):
  """Adds `passages` tile by tile."""
  if not size or size >= passages.keys.shape[0]:
    return _add_tile(so_far, questions, passages, given, temperature)
  return jax.lax.scan(
    lambda carry, tile: (
      _add_tile(carry, questions, tile, given, temperature),
      None,
    ),
    so_far,
    _cut(passages, size),
  )[0]


def _scan_backward(
  to_questions,
  questions,
  passages,
  given,
  normalizer,
  weights,
  temperature,
  size,
):
  """Gradients through `passages`, tile by tile."""

  def add(carry, tile):
    one, other = _tile_gradients(
      questions, tile, given, normalizer, weights, temperature
    )
    return carry + one, other

  if not size or size >= passages.keys.shape[0]:
    return add(to_questions, passages)
  to_questions, to_tiles = jax.lax.scan(add, to_questions, _cut(passages, size))
  return to_questions, to_tiles.reshape(passages.vectors.shape)


def _of_core(vectors, given: Competition, core) -> _Tile:
  """The passages of core `core`, whose vectors, keys and masks are given."""
  count = vectors.shape[0]
  excluded = given.excluded
  if excluded is not None:
    excluded = jax.lax.dynamic_slice_in_dim(excluded, core * count, count, 1)
  places = core * count + jnp.arange(count)
  return _Tile(
    vectors, given.passage_keys, given.passage_valid, places, excluded
  )


def _gathered(vectors, given: Competition, axis: str) -> _Tile:
  """The passages of all cores."""

  def gather(x: Array) -> Array:
    return jax.lax.all_gather(x, axis, tiled=True)

  keys = gather(given.passage_keys)
  return _Tile(
    gather(vectors),
    keys,
    gather(given.passage_valid),
    jnp.arange(keys.shape[0]),
    given.excluded,
  )


def _pass_on(tree, axis: str):
  """Every core gets what the next one holds."""
  cores = jax.lax.axis_size(axis)
  ring = [(core, (core - 1) % cores) for core in range(cores)]
  return jax.tree.map(lambda x: jax.lax.ppermute(x, axis, ring), tree)


def _around(vectors, given: Competition, axis: str, carry, visit):
  """Visits the passages of every core as they come by.

  Args:
    vectors: of this core's passages.
    given: its masks.
    axis: of the cores.
    carry: handed from visit to visit.
    visit: `visit(carry, tile, travelling) -> (carry, travelling)`.

  Returns:
    The last carry, and what travelled with this core's passages (zeros like
    `vectors` at first), home again.
  """
  cores, me = jax.lax.axis_size(axis), jax.lax.axis_index(axis)

  def turn(state, number):
    carry, vectors, keys, valid, travelling = state
    here = given.replace(passage_keys=keys, passage_valid=valid)
    tile = _of_core(vectors, here, (me + number) % cores)
    carry, travelling = visit(carry, tile, travelling)
    moved = _pass_on((vectors, keys, valid, travelling), axis)
    return (carry, *moved), None

  start = (
    carry,
    vectors,
    given.passage_keys,
    given.passage_valid,
    jnp.zeros_like(vectors),
  )
  (carry, _, _, _, travelling), _ = jax.lax.scan(turn, start, jnp.arange(cores))
  return carry, travelling


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def _softmax(questions, passages, masks, temperature, axis, kind, size):
  """Each question's -log-likelihood, and its `_Running` figures.

  `masks` are the fields of a `Competition`, as a plain tuple.
  """
  return _softmax_forward(
    questions, passages, masks, temperature, axis, kind, size
  )[0]


def _softmax_forward(questions, passages, masks, temperature, axis, kind, size):
  given = Competition(*masks)
  if kind == "ring":

    def visit(so_far, tile, travelling):
      so_far = _scan_forward(so_far, questions, tile, given, temperature, size)
      return so_far, travelling

    done, _ = _around(passages, given, axis, _start(questions), visit)
    everyone = None
  else:
    everyone = _gathered(passages, given, axis)
    done = _scan_forward(
      _start(questions), questions, everyone, given, temperature, size
    )
  normalizer = _Normalizer(done.highest, jnp.log(done.total))
  losses = -normalizer.log_shares(done.own[:, None])[:, 0]
  saved = (questions, passages, masks, everyone, normalizer)
  return (losses, done), saved


def _softmax_backward(temperature, axis, kind, size, saved, gradients):
  questions, passages, masks, everyone, normalizer = saved
  given = Competition(*masks)
  weights = gradients[0]
  if kind == "ring":

    def visit(to_questions, tile, travelling):
      to_questions, to_tile = _scan_backward(
        to_questions,
        questions,
        tile,
        given,
        normalizer,
        weights,
        temperature,
        size,
      )
      return to_questions, travelling + to_tile

    to_questions, to_passages = _around(
      passages, given, axis, jnp.zeros_like(questions), visit
    )
  else:
    to_questions, to_all = _scan_backward(
      jnp.zeros_like(questions),
      questions,
      everyone,
      given,
      normalizer,
      weights,
      temperature,
      size,
    )
    to_passages = jax.lax.psum_scatter(to_all, axis, tiled=True)
  return to_questions, to_passages, None


_softmax.defvjp(_softmax_forward, _softmax_backward)


def in_batch_loss(
  question_vectors: Float[ArrayLike, "questions dim"],
  passage_vectors: Float[ArrayLike, "passages dim"],
  given: Competition,
  temperature: float,
  axis_name: str,
  *,
  kind: str = "gathered",
  tile: int = 0,
) -> tuple[Float[Array, ""], LossSums]:
  """Loss of one core's questions over the global batch's passages.

  Args:
    question_vectors: of this core.
    passage_vectors: of this core; every core has as many.
    given: labels and masks.
    temperature: scores are divided by it.
    axis_name: of the cores.
    kind: one of KINDS; the same loss and gradient, other memory and traffic.
    tile: passages scored at once, "tiled" and "ring"; 0 = those of one core.

  Returns:
    A loss whose gradient, averaged over the cores (`lax.pmean`), is the
    gradient of the mean over the global batch's questions; and this core's
    sums, to be added up over the cores for metrics.
  """
  cores = jax.lax.axis_size(axis_name)
  size = 0
  if kind == "tiled":
    size = tile or passage_vectors.shape[0]
  elif kind == "ring":
    size = tile
  losses, done = _softmax(
    question_vectors.astype(jnp.float32),
    passage_vectors.astype(jnp.float32),
    tuple(getattr(given, field.name) for field in dataclasses.fields(given)),
    temperature,
    axis_name,
    kind,
    size,
  )
  weights = given.question_weights
  sums = LossSums(
    loss=jnp.sum(weights * losses),
    correct=jnp.sum(weights * (done.own > done.best_other)),
    duplicates=jnp.sum(weights * done.duplicates),
    alone=jnp.sum(weights * (done.best_other <= MASKED)),
    answers=jnp.sum(weights * done.answers),
    count=jnp.sum(weights),
  )
  counted = jax.lax.psum(sums.count, axis_name)
  return cores * sums.loss / jnp.maximum(counted, 1.0), sums
