"""The loss: a softmax of every question over all passages of the global batch.

`in_batch_loss` is the function of one device, with a named axis of devices: it
scores the local questions against the passages of all devices and takes the
negative log-likelihood of each question's positive (paper, section 3.2,
equation 2).  The gradient flows back to the devices that encoded the passages,
so that the mean of the devices' gradients is the gradient of the global mean.

The matrix of scores (local questions x global passages) is held in memory
completely ("gathered"), in tiles ("tiled": vectors are gathered, scores are
computed tile by tile), or one device's passages at a time ("ring": vectors are
not gathered either; each device's passages, and their gradient, are passed
around all devices).  All three give the same loss.  The derivative is written
by hand, because scores are cheap to recompute and expensive to store.

Scores may be large (5e4 and more without temperature), where float32 is exact
to 4e-3 only, and so would be a log-sum of that size.  So the softmax is never
computed from the log-sum, but from its two parts, the highest score and the
logarithm of the rest: differences of scores are exact where they matter.
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
    loss: negative log-likelihood of the question's positive.
    correct: number of questions whose positive scores above all others.
    duplicates: number of passages masked as copies of the question's positive,
      or as its other positives.
    alone: number of questions without any negative: they have no gradient.
    answers: number of passages masked because they contain an answer.
    count: number of questions, without padding.
  """

  loss: Float[ArrayLike, "*cores"]
  correct: Float[ArrayLike, "*cores"]
  duplicates: Float[ArrayLike, "*cores"]
  alone: Float[ArrayLike, "*cores"]
  answers: Float[ArrayLike, "*cores"]
  count: Float[ArrayLike, "*cores"]


class _Tile(NamedTuple):
  """A tile of passages, with their part of `Competition`."""

  vectors: Array  # [tile, dim]
  keys: Array  # [tile]
  valid: Array  # [tile]
  places: Array  # [tile], global positions
  excluded: Array | None  # [questions, tile]


class _Normalizer(NamedTuple):
  """Log-sum-exp of each question's scores, as two terms to be added."""

  highest: Array  # highest score, [questions]
  log_total: Array  # log(sum exp(score - highest)), [questions]

  def log_shares(self, scores: Array) -> Array:
    """Log-softmax of scores [questions, tile]."""
    return (scores - self.highest[:, None]) - self.log_total[:, None]


class _Running(NamedTuple):
  """Each question's softmax over the tiles so far; all arrays [questions]."""

  highest: Array  # score
  total: Array  # sum of exp(score - highest)
  own: Array  # score of the positive, 0 before its tile
  best_other: Array  # highest score of another passage
  duplicates: Array  # number of masked passages
  answers: Array  # number of masked passages


def _matmul(left: Array, right: Array) -> Array:
  return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


def _scores(
  questions, tile: _Tile, competition: Competition, temperature: float
):
  """Scores of a tile, MASKED for excluded pairs, and the masks.

  Returns:
    Scores and three masks, all [questions, tile]: the question's positive, a
    copy of one of its positives, a passage with one of its answers.
  """
  scores = _matmul(questions, tile.vectors.T) / temperature
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
  return scores, own, duplicate, answer


def _equal(passage_keys: Array, question_keys: Array) -> Array:
  """[questions, passages]: True where both keys are known and equal."""
  keys = question_keys[:, None]
  return (passage_keys[None] == keys) & (keys >= 0)


def _start(questions: Array) -> _Running:
  zeros = jnp.zeros(questions.shape[0], jnp.float32)
  low = jnp.full_like(zeros, MASKED)
  return _Running(low, zeros, zeros, low, zeros, zeros)


def _add_tile(so_far: _Running, questions, tile, competition, temperature):
  """Online softmax: adds a tile, rescaling the sum if the maximum rises."""
  scores, own, duplicate, answer = _scores(
    questions, tile, competition, temperature
  )
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


def _tile_gradients(
  questions, tile, competition, normalizer, weights, temperature
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
    weights: derivative of the final loss by each question's, [questions].
    temperature: t.
  """
  scores, own, _, _ = _scores(questions, tile, competition, temperature)
  shares = jnp.exp(normalizer.log_shares(scores))  # softmax; 0 where masked
  delta = weights[:, None] * (shares - own) / temperature
  return _matmul(delta, tile.vectors), _matmul(delta.T, questions)


def _cut(all_passages: _Tile, size: int) -> _Tile:
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


def _scan_forward(so_far, questions, passages, competition, temperature, size):
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


def _scan_backward(
  to_questions,
  questions,
  passages,
  competition,
  normalizer,
  weights,
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
      questions, tile, competition, normalizer, weights, temperature
    )
    return carry + to_these_questions, to_tile

  if not size or size >= passages.keys.shape[0]:
    return add(to_questions, passages)
  to_questions, to_tiles = jax.lax.scan(add, to_questions, _cut(passages, size))
  return to_questions, to_tiles.reshape(passages.vectors.shape)


def _of_core(vectors, competition: Competition, core) -> _Tile:
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
  return _Tile(
    vectors,
    competition.passage_keys,
    competition.passage_valid,
    places,
    excluded,
  )


def _gathered(vectors, competition: Competition, axis: str) -> _Tile:
  """The passages of all devices as one tile, by an all-gather."""

  def gather(x: Array) -> Array:
    return jax.lax.all_gather(x, axis, tiled=True)

  keys = gather(competition.passage_keys)
  return _Tile(
    gather(vectors),
    keys,
    gather(competition.passage_valid),
    jnp.arange(keys.shape[0]),
    competition.excluded,
  )


def _pass_on(tree, axis: str):
  """Each device receives the arrays of the next one (index + 1)."""
  cores = jax.lax.axis_size(axis)
  ring = [(core, (core - 1) % cores) for core in range(cores)]
  return jax.tree.map(lambda x: jax.lax.ppermute(x, axis, ring), tree)


def _around(vectors, competition: Competition, axis: str, carry, visit):
  """Passes the passages of all devices around a ring, visiting each block.

  In turn n, device i holds the passages of device i + n.  A second array
  travels with them, in which the backward pass adds up the passages' gradient:
  after as many turns as there are devices both are back where they started.

  Args:
    vectors: of this device's passages.
    competition: labels and masks of this device.
    axis: name of the axis of devices.
    carry: initial state of the visits on this device.
    visit: function called for each block, `visit(carry, tile, travelling)`
      -> `(carry, travelling)`.

  Returns:
    The last carry, and the array that travelled with this device's passages
    (initially zeros like `vectors`).
  """
  cores, me = jax.lax.axis_size(axis), jax.lax.axis_index(axis)

  def turn(state, number):
    carry, vectors, keys, valid, travelling = state
    here = competition.replace(passage_keys=keys, passage_valid=valid)
    tile = _of_core(vectors, here, (me + number) % cores)
    carry, travelling = visit(carry, tile, travelling)
    moved = _pass_on((vectors, keys, valid, travelling), axis)
    return (carry, *moved), None

  start = (
    carry,
    vectors,
    competition.passage_keys,
    competition.passage_valid,
    jnp.zeros_like(vectors),
  )
  (carry, _, _, _, travelling), _ = jax.lax.scan(turn, start, jnp.arange(cores))
  return carry, travelling


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def _softmax(questions, passages, masks, temperature, axis, kind, size):
  """Each question's negative log-likelihood, and its final `_Running`.

  A function with its own derivative (`_softmax_backward`).

  Args:
    questions: vectors of this device, [questions, dim], float32.
    passages: vectors of this device, [passages, dim], float32.
    masks: the fields of a `Competition`, as a plain tuple.
    temperature: scores are divided by it.
    axis: name of the axis of devices.
    kind: one of KINDS.
    size: passages of a tile; 0 = all that there are.
  """
  return _softmax_forward(
    questions, passages, masks, temperature, axis, kind, size
  )[0]


def _softmax_forward(questions, passages, masks, temperature, axis, kind, size):
  """The value, and what the backward pass needs: no scores, only log sums."""
  competition = Competition(*masks)
  if kind == "ring":

    def visit(so_far, tile, travelling):
      so_far = _scan_forward(
        so_far, questions, tile, competition, temperature, size
      )
      return so_far, travelling

    done, _ = _around(passages, competition, axis, _start(questions), visit)
    everyone = None
  else:
    everyone = _gathered(passages, competition, axis)
    done = _scan_forward(
      _start(questions), questions, everyone, competition, temperature, size
    )
  normalizer = _Normalizer(done.highest, jnp.log(done.total))
  losses = -normalizer.log_shares(done.own[:, None])[:, 0]
  saved = (questions, passages, masks, everyone, normalizer)
  return (losses, done), saved


def _softmax_backward(temperature, axis, kind, size, saved, gradients):
  """Recomputes the scores tile by tile, and sends gradients to their devices.

  `_Running` only feeds metrics, so that its gradient is ignored.
  """
  questions, passages, masks, everyone, normalizer = saved
  competition = Competition(*masks)
  weights = gradients[0]
  if kind == "ring":

    def visit(to_questions, tile, travelling):
      to_questions, to_tile = _scan_backward(
        to_questions,
        questions,
        tile,
        competition,
        normalizer,
        weights,
        temperature,
        size,
      )
      return to_questions, travelling + to_tile

    to_questions, to_passages = _around(
      passages, competition, axis, jnp.zeros_like(questions), visit
    )
  else:
    to_questions, to_all = _scan_backward(
      jnp.zeros_like(questions),
      questions,
      everyone,
      competition,
      normalizer,
      weights,
      temperature,
      size,
    )
    # The transpose of the all-gather: each device gets the sum of all devices'
    # gradients to its own passages.
    to_passages = jax.lax.psum_scatter(to_all, axis, tiled=True)
  return to_questions, to_passages, None


_softmax.defvjp(_softmax_forward, _softmax_backward)


def in_batch_loss(
  question_vectors: Float[ArrayLike, "questions dim"],
  passage_vectors: Float[ArrayLike, "passages dim"],
  competition: Competition,
  temperature: float,
  axis_name: str,
  *,
  kind: str = "gathered",
  tile: int = 0,
) -> tuple[Float[Array, ""], LossSums]:
  """Loss of one device's questions over the global batch's passages.

  Args:
    question_vectors: vectors of this device.
    passage_vectors: vectors of this device; the same number on all devices.
    competition: labels and masks.
    temperature: scores are divided by it.
    axis_name: name of the axis of devices.
    kind: one of KINDS: the same loss and gradient with other memory and
      traffic.
    tile: passages scored at once, for "tiled" and "ring"; 0 = those of one
      device.

  Returns:
    A loss whose gradient, averaged over the devices (`lax.pmean`), is the
    gradient of the mean over the global batch's questions; and this device's
    sums, to be added over the devices for metrics.
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
    tuple(
      getattr(competition, field.name)
      for field in dataclasses.fields(competition)
    ),
    temperature,
    axis_name,
    kind,
    size,
  )
  weights = competition.question_weights
  sums = LossSums(
    loss=jnp.sum(weights * losses),
    correct=jnp.sum(weights * (done.own > done.best_other)),
    duplicates=jnp.sum(weights * done.duplicates),
    alone=jnp.sum(weights * (done.best_other <= MASKED)),
    answers=jnp.sum(weights * done.answers),
    count=jnp.sum(weights),
  )
  # Times the number of devices: the caller averages over them, not sums.
  counted = jax.lax.psum(sums.count, axis_name)
  return cores * sums.loss / jnp.maximum(counted, 1.0), sums
