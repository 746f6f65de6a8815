"""The loss on 8 cores = on 1 core = the formula, gradients too."""

import jax
import numpy as np
import pytest

from dpr_jax import parallel
from dpr_jax.training import objectives

DIM, QUESTIONS = 12, 32


def _reference(questions, passages, labels, weights, valid, keys, temperature):
  """Equation 2 of the paper in float64 NumPy, and its gradients."""
  questions, passages = questions.astype(float), passages.astype(float)
  scores = questions @ passages.T / temperature
  keep = np.zeros(scores.shape, bool)
  for row, label in enumerate(labels):
    for column in range(len(passages)):
      copy = keys[column] == keys[label] and keys[label] >= 0
      keep[row, column] = column == label or (valid[column] and not copy)
  exponents = np.where(keep, np.exp(scores - scores.max()), 0)
  shares = exponents / exponents.sum(axis=1, keepdims=True)
  own = np.zeros_like(shares)
  own[np.arange(len(labels)), labels] = 1
  count = weights.sum()
  loss = -np.sum(weights * np.log(shares[np.arange(len(labels)), labels]))
  delta = weights[:, None] * (shares - own) / temperature / count
  return loss / count, delta @ passages, delta.T @ questions


def _problem(negatives, seed=0):
  generator = np.random.default_rng(seed)
  each = 1 + negatives
  count = QUESTIONS * each
  valid = generator.random(count) > 0.2
  valid[::each] = True
  keys = generator.integers(-1, count // 2, count).astype(np.int32)
  weights = np.ones(QUESTIONS, np.float32)
  weights[[3, 17]] = 0
  return {
    "questions": generator.normal(size=(QUESTIONS, DIM)).astype(np.float32),
    "passages": generator.normal(size=(count, DIM)).astype(np.float32),
    "negatives": objectives.Negatives(weights, valid, keys),
  }


def _on_cores(problem, temperature, devices):
  """Loss and gradients as the train step takes them, from all cores.

  The vectors themselves are the parameters, so that every core has its own
  and what flows back through the gather shows.
  """

  def one_core(_, batch):
    def loss(questions, passages):
      return objectives.in_batch_loss(
        questions,
        passages,
        batch["negatives"],
        temperature,
        parallel.AXIS,
      )

    (_, sums), gradients = jax.value_and_grad(
      loss, argnums=(0, 1), has_aux=True
    )(batch["questions"], batch["passages"])
    sums = jax.lax.psum(sums, parallel.AXIS)
    # pmean over cores of a gradient that only this core has: 1 / cores of it.
    gradients = jax.tree.map(lambda x: x / len(devices), gradients)
    return sums.loss / sums.count, gradients, sums

  mapped = parallel.map_over_cores(one_core, devices)
  loss, (questions, passages), sums = mapped(
    np.zeros(()), parallel.split_over_cores(problem, devices)
  )
  return (
    loss,
    np.asarray(questions).reshape(-1, DIM),
    np.asarray(passages).reshape(-1, DIM),
    sums,
  )


@pytest.mark.parametrize("cores", [1, 2, 8])
@pytest.mark.parametrize("negatives", [0, 1, 2])
@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_equals_the_formula_on_any_number_of_cores(
  cores, negatives, temperature
):
  """Loss and both gradients to 1e-5 relative."""
  problem = _problem(negatives)
  labels = np.arange(QUESTIONS) * (1 + negatives)
  given = problem["negatives"]
  wanted = _reference(
    problem["questions"],
    problem["passages"],
    labels,
    given.question_weights,
    given.passage_valid,
    given.passage_keys,
    temperature,
  )
  found = _on_cores(problem, temperature, jax.devices()[:cores])
  np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5)
  for one, other in zip(found[1:3], wanted[1:], strict=True):
    error = np.linalg.norm(one - other) / np.linalg.norm(other)
    assert error < 1e-5


def test_gradient_flows_back_through_the_gather():
  """A passage of core 7 gets gradient from the questions of core 0."""
  problem = _problem(0)
  given = problem["negatives"]
  weights = np.zeros(QUESTIONS, np.float32)
  weights[0] = 1
  problem["negatives"] = given.replace(question_weights=weights)
  _, _, passages, _ = _on_cores(problem, 1.0, jax.devices())
  assert np.abs(passages[-1]).max() > 1e-6


def test_copies_of_the_positive_are_counted_and_masked():
  """Two questions with one gold passage do not push it away."""
  vectors = np.eye(4, DIM, dtype=np.float32)
  vectors[1] = vectors[0]
  problem = {
    "questions": 5 * vectors,
    "passages": 5 * vectors,
    "negatives": objectives.Negatives(
      np.ones(4, np.float32),
      np.ones(4, bool),
      np.array([9, 9, 2, -1], np.int32),
    ),
  }
  loss, _, _, sums = _on_cores(problem, 1.0, jax.devices()[:2])
  assert np.asarray(sums.masked)[0] == 2
  assert np.asarray(sums.correct)[0] == 4
  assert np.asarray(loss)[0] < 1e-8
