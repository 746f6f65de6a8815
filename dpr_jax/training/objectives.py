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
by hand, from the tiles of `score_tiles`.

With a teacher the same pass over the tiles also takes the scores of each
question's own passages, wherever they were encoded; `distillation` compares
them with the teacher's.
"""

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from dpr_jax.training import distillation, score_tiles
from dpr_jax.training.score_tiles import MASKED, Competition

KINDS = ("gathered", "tiled", "ring")


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
    distill: distance from the teacher, see `distillation`; 0 without one.
    distilled: number of questions that have one.
  """

  loss: Float[ArrayLike, "*cores"]
  correct: Float[ArrayLike, "*cores"]
  duplicates: Float[ArrayLike, "*cores"]
  alone: Float[ArrayLike, "*cores"]
  answers: Float[ArrayLike, "*cores"]
  count: Float[ArrayLike, "*cores"]
  distill: Float[ArrayLike, "*cores"] = 0.0
  distilled: Float[ArrayLike, "*cores"] = 0.0


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
    tile = score_tiles.tile_of_core(vectors, here, (me + number) % cores)
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
  """Each question's negative log-likelihood, candidates' scores, and softmax.

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
      so_far = score_tiles.scan_forward(
        so_far, questions, tile, competition, temperature, size
      )
      return so_far, travelling

    done, _ = _around(
      passages,
      competition,
      axis,
      score_tiles.start(questions, competition),
      visit,
    )
    everyone = None
  else:
    everyone = score_tiles.gathered(passages, competition, axis)
    done = score_tiles.scan_forward(
      score_tiles.start(questions, competition),
      questions,
      everyone,
      competition,
      temperature,
      size,
    )
  normalizer = score_tiles.Normalizer(done.highest, jnp.log(done.total))
  losses = -normalizer.log_shares(done.own[:, None])[:, 0]
  saved = (questions, passages, masks, everyone, normalizer)
  return (losses, done.candidates, done), saved


def _softmax_backward(temperature, axis, kind, size, saved, gradients):
  """Recomputes the scores tile by tile, and sends gradients to their devices.

  The final softmax only feeds metrics, so that its gradient is ignored.
  """
  questions, passages, masks, everyone, normalizer = saved
  competition = Competition(*masks)
  derivatives = score_tiles.Derivatives(*gradients[:2])
  if kind == "ring":

    def visit(to_questions, tile, travelling):
      to_questions, to_tile = score_tiles.scan_backward(
        to_questions,
        questions,
        tile,
        competition,
        normalizer,
        derivatives,
        temperature,
        size,
      )
      return to_questions, travelling + to_tile

    to_questions, to_passages = _around(
      passages, competition, axis, jnp.zeros_like(questions), visit
    )
  else:
    to_questions, to_all = score_tiles.scan_backward(
      jnp.zeros_like(questions),
      questions,
      everyone,
      competition,
      normalizer,
      derivatives,
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
  teacher: distillation.Teacher | None = None,
  teacher_scores: Float[ArrayLike, "questions candidates"] | None = None,
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
    teacher: how the teacher's scores are learnt; read if there are some.
    teacher_scores: of `competition.candidates`; None = there is no teacher.

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
  losses, scores, done = _softmax(
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
  share = 1.0
  if scores is not None:
    known = competition.candidates >= 0
    distances, counts = teacher.distances(scores, teacher_scores, known)
    counts = counts * weights
    sums = sums.replace(
      distill=jnp.sum(counts * distances), distilled=jnp.sum(counts)
    )
    share = 1.0 - teacher.weight
  # Means over the questions of all devices.  Times the number of devices: the
  # caller averages over them, not sums.
  counted, distilled = jax.lax.psum((sums.count, sums.distilled), axis_name)
  loss = share * cores * sums.loss / jnp.maximum(counted, 1.0)
  if scores is not None:
    mean = cores * sums.distill / jnp.maximum(distilled, 1.0)
    loss += teacher.weight * mean
  return loss, sums
