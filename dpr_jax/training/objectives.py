"""The loss: every question against the passages of the whole global batch.

`in_batch_loss` is written for one core, against an axis name: it gathers the
passage vectors of all cores, scores the local questions against them and takes
the negative log-likelihood of each question's own positive (paper, section 3.2,
equation 2).  The gradient flows back through the gather, so that the mean of
the cores' gradients is the true gradient of the global mean.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

MASKED = -1e30


@flax.struct.dataclass
class Negatives:
  """What the loss must know about one core's passages, and its questions.

  Each question has the same number of passages, its own positive first, and
  they stand in the order of the questions: so the gathered passages are in the
  global batch's order, whatever the number of cores.

  Attributes:
    question_weights: 1, or 0 for a question that only pads the batch.
    passage_valid: False for a passage that only pads the batch.
    passage_keys: the passage's row in the corpus, so that a second copy of a
      question's own positive is not held against it; negative = unknown.
  """

  question_weights: Float[ArrayLike, "*cores questions"]
  passage_valid: Bool[ArrayLike, "*cores passages"]
  passage_keys: Int[ArrayLike, "*cores passages"]


@flax.struct.dataclass
class LossSums:
  """Sums over questions, to be divided by `count` over the global batch."""

  loss: Float[ArrayLike, "*cores"]
  correct: Float[ArrayLike, "*cores"]
  masked: Float[ArrayLike, "*cores"]
  count: Float[ArrayLike, "*cores"]


def nll_sums(
  question_vectors: Float[ArrayLike, "questions dim"],
  passage_vectors: Float[ArrayLike, "passages dim"],
  labels: Int[ArrayLike, " questions"],
  question_weights: Float[ArrayLike, " questions"],
  passage_valid: Bool[ArrayLike, " passages"],
  passage_keys: Int[ArrayLike, " passages"],
  temperature: float,
) -> LossSums:
  """Negative log-likelihood of each question's positive, summed.

  Args:
    question_vectors: questions of this core.
    passage_vectors: all passages that they compete over.
    labels: index of each question's positive among the passages.
    question_weights: 1, or 0 to leave a question out.
    passage_valid: False takes a passage out of every softmax.
    passage_keys: identity of a passage; one that equals the positive's (and is
      not negative) is taken out of that question's softmax.
    temperature: scores are divided by it.
  """
  scores = jnp.matmul(
    question_vectors.astype(jnp.float32),
    passage_vectors.astype(jnp.float32).T,
    precision=jax.lax.Precision.HIGHEST,
  )
  scores = scores / temperature
  own_key = passage_keys[labels][:, None]
  is_own = jnp.arange(passage_vectors.shape[0])[None] == labels[:, None]
  same = (passage_keys[None] == own_key) & (own_key >= 0) & ~is_own
  scores = jnp.where(passage_valid[None] & ~same, scores, MASKED)
  own = jnp.take_along_axis(scores, labels[:, None], axis=1)[:, 0]
  loss = jax.nn.logsumexp(scores, axis=1) - own
  correct = jnp.argmax(scores, axis=1) == labels
  counted = passage_valid[None] & same
  return LossSums(
    loss=jnp.sum(question_weights * loss),
    correct=jnp.sum(question_weights * correct),
    masked=jnp.sum(question_weights * jnp.sum(counted, axis=1)),
    count=jnp.sum(question_weights),
  )


def in_batch_loss(
  question_vectors: Float[ArrayLike, "questions dim"],
  passage_vectors: Float[ArrayLike, "passages dim"],
  negatives: Negatives,
  temperature: float,
  axis_name: str,
) -> tuple[Float[Array, ""], LossSums]:
  """Loss of one core's questions over the global batch's passages.

  Returns:
    A loss whose gradient, averaged over the cores (`lax.pmean`), is the
    gradient of the mean over the global batch's questions; and this core's
    sums, to be added up over the cores for metrics.
  """
  cores = jax.lax.axis_size(axis_name)
  local = passage_vectors.shape[0]

  def gather(x: Array) -> Array:
    return jax.lax.all_gather(x, axis_name, tiled=True)

  questions = question_vectors.shape[0]
  labels = jax.lax.axis_index(axis_name) * local + jnp.arange(questions) * (
    local // questions
  )
  sums = nll_sums(
    question_vectors,
    gather(passage_vectors),
    labels,
    negatives.question_weights,
    gather(negatives.passage_valid),
    gather(negatives.passage_keys),
    temperature,
  )
  counted = jax.lax.psum(sums.count, axis_name)
  return cores * sums.loss / jnp.maximum(counted, 1.0), sums
