"""Distances from a teacher, worked out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.training import distillation

ALL = np.ones((1, 2), bool)


def _distance(teacher, scores, wanted, known=ALL):
  found = teacher.distances(
    jnp.asarray(scores, jnp.float32), np.asarray(wanted, np.float32), known
  )
  return [np.asarray(each).tolist() for each in found]


def test_the_distance_of_two_softmaxes():
  """The model: 3/4 and 1/4; the teacher: 1/2 and 1/2.

  KL = ln(1/2 / 3/4) / 2 + ln(1/2 / 1/4) / 2 = (ln 2/3 + ln 2) / 2 = 0.143841.
  """
  scores = [[np.log(3), 0]]
  (found,), counts = _distance(distillation.Teacher("kl"), scores, [[5, 5]])
  np.testing.assert_allclose(found, 0.143841, rtol=1e-5)
  assert counts == [1]
  # The other way round: 3/4 ln 3/2 + 1/4 ln 1/2 = 0.130812.
  (found,), _ = _distance(distillation.Teacher("kl"), [[5, 5]], scores)
  np.testing.assert_allclose(found, 0.130812, rtol=1e-5)


def test_temperature_divides_both_and_scale_multiplies_the_teacher():
  """The teacher's 2 ln 3 times 1/2 * 2 and over 2, the model's 0 over 2."""
  teacher = distillation.Teacher("kl", temperature=2.0, scale=1.0)
  (found,), _ = _distance(teacher, [[0, 0]], [[2 * np.log(3), 0]])
  np.testing.assert_allclose(found, 4 * 0.130812, rtol=1e-5)
  teacher = distillation.Teacher("kl", scale=0.5)
  (found,), _ = _distance(teacher, [[0, 0]], [[2 * np.log(3), 0]])
  np.testing.assert_allclose(found, 0.130812, rtol=1e-5)
  # The model's scores are divided, too: 2 ln 3 becomes 3/4 and 1/4.
  teacher = distillation.Teacher("kl", temperature=2.0)
  (found,), _ = _distance(teacher, [[2 * np.log(3), 0]], [[0, 0]])
  np.testing.assert_allclose(found, 4 * 0.143841, rtol=1e-5)


def test_margins():
  """The model's 3 - 1 and 3 - 2, the teacher's 5 - 4 and 5 - 0, at half."""
  known = np.ones((1, 3), bool)
  teacher = distillation.Teacher("margin_mse", scale=0.5)
  (found,), counts = _distance(teacher, [[3, 1, 2]], [[5, 4, 0]], known)
  # (2 - 0.5)^2 and (1 - 2.5)^2: 2.25 each.
  assert (found, counts) == (2.25, [1])
  known[0, 1] = False
  (found,), _ = _distance(teacher, [[3, 1, 1]], [[5, 4, 0]], known)
  assert found == 0.25  # 2 - 2.5


@pytest.mark.parametrize(
  ("known", "kl", "margin"),
  [
    ([1, 1, 0], 1, 1),
    ([0, 1, 1], 1, 0),
    ([1, 0, 0], 0, 0),
    ([0, 0, 1], 0, 0),
    ([0, 0, 0], 0, 0),
  ],
)
def test_questions_that_count(known, kl, margin):
  """Two passages for a softmax; the positive and a negative for a margin."""
  known = np.array([known], bool)
  for loss, counts in (("kl", kl), ("margin_mse", margin)):
    found = _distance(
      distillation.Teacher(loss), [[3, 1, 2]], [[5, 4, 0]], known
    )
    assert found[1] == [counts]
    assert np.isfinite(found[0]).all()


def test_what_is_not_known_does_not_matter():
  """Passage 1 may have any scores."""
  known = np.array([[True, False, True]])
  teacher = distillation.Teacher("kl")
  (found,), _ = _distance(teacher, [[np.log(3), 9, 0]], [[5, -9, 5]], known)
  np.testing.assert_allclose(found, 0.143841, rtol=1e-5)


def test_an_unknown_loss_is_refused():
  """Also from Python."""
  train = config_lib.base_config().train
  train.distill_loss = "mse"
  with pytest.raises(errors.InputError, match="distill_loss='mse': must be"):
    distillation.Teacher.of(train)
