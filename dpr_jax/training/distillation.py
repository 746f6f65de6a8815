"""The distance of a model's scores from those of a teacher.

Input: the model's and the teacher's scores of each question's own passages, its
positive first.  Output: one distance per question, and whether the question
counts.  "kl" compares the two softmaxes over the passages, "margin_mse"
(Hofstätter et al. 2020, arXiv 2010.02666) how far the positive scores above
each negative.  `objectives` averages the distances over the global batch and
adds them to the in-batch loss.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from dpr_jax.core import config as config_lib
from dpr_jax.training.score_tiles import MASKED

LOSSES = ("kl", "margin_mse")


@dataclasses.dataclass(frozen=True)
class Teacher:
  """How scores of a teacher are learnt.

  Attributes:
    loss: one of `LOSSES`.
    weight: share w of the teacher: the loss is (1 - w) * in-batch loss + w *
      mean distance.
    temperature: T of "kl": both sides' scores are divided by it, and the
      distance is multiplied by its square, so that gradients keep their size.
    scale: the teacher's scores are multiplied by it first.
  """

  loss: str = "kl"
  weight: float = 0.5
  temperature: float = 1.0
  scale: float = 1.0

  @classmethod
  def of(cls, train: Any) -> "Teacher":
    """The teacher of section `train` of a config.

    Raises:
      InputError: an unknown loss.
    """
    config_lib.one_of("train.distill_loss", train.distill_loss, LOSSES)
    return cls(
      train.distill_loss,
      train.distill_weight,
      train.distill_temperature,
      train.distill_scale,
    )

  def distances(
    self,
    scores: Float[Array, "questions candidates"],
    teacher_scores: Float[ArrayLike, "questions candidates"],
    known: Bool[ArrayLike, "questions candidates"],
  ) -> tuple[Float[Array, " questions"], Float[Array, " questions"]]:
    """The distance of each question, and 1 or 0 = it does not count.

    With "kl" a question counts if the teacher knows two of its passages, with
    "margin_mse" if it knows the positive and a negative.

    Args:
      scores: of the model, as in the in-batch loss (divided by its
        temperature); the positive in the first column.
      teacher_scores: of the teacher.
      known: where the teacher has a score; the others do not count.
    """
    wanted = self.scale * jnp.asarray(teacher_scores, jnp.float32)
    if self.loss == "margin_mse":
      # Of each passage: how far the positive is above it.
      margins = scores[:, :1] - scores
      differences = margins - (wanted[:, :1] - wanted)
      pairs = jnp.asarray(known, jnp.float32)[:, 1:] * known[:, :1]
      number = jnp.sum(pairs, axis=1)
      total = jnp.sum(pairs * jnp.square(differences[:, 1:]), axis=1)
      return total / jnp.maximum(number, 1.0), jnp.minimum(number, 1.0)

    def log_shares(values):
      values = jnp.where(known, values / self.temperature, MASKED)
      return jax.nn.log_softmax(values, axis=1)

    ours, theirs = log_shares(scores), log_shares(wanted)
    distances = jnp.sum(
      jnp.where(known, jnp.exp(theirs) * (theirs - ours), 0.0), axis=1
    )
    counts = jnp.sum(known, axis=1) >= 2
    return self.temperature**2 * distances, counts.astype(jnp.float32)
