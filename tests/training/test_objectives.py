"""The loss on 8 cores = on 1 core = the formula, gradients too."""

import jax
import numpy as np
import pytest

from dpr_jax.core import devices as devices_lib
from dpr_jax.core import errors
from dpr_jax.training import distillation, objectives, score_tiles

DIM, QUESTIONS = 12, 32


def _reference(problem, temperature):
  """Equation 2 of the paper in float64 NumPy, and its gradients."""
  questions = problem["questions"].astype(float)
  passages = problem["passages"].astype(float)
  given = problem["given"]
  scores = questions @ passages.T / temperature
  keep = np.zeros(scores.shape, bool)
  for row, (label, key) in enumerate(
    zip(given.labels, given.question_keys, strict=True)
  ):
    for column in range(len(passages)):
      copy = given.passage_keys[column] == key and key >= 0
      if given.question_positives is not None:
        others = given.question_positives[row]
        copy |= given.passage_keys[column] in others[others >= 0]
      answer = given.excluded is not None and given.excluded[row, column]
      valid = given.passage_valid[column]
      keep[row, column] = column == label or (valid and not copy and not answer)
  exponents = np.where(keep, np.exp(scores - scores.max()), 0)
  shares = exponents / exponents.sum(axis=1, keepdims=True)
  rows = np.arange(len(questions))
  own = np.zeros_like(shares)
  own[rows, given.labels] = 1
  weights = given.question_weights
  loss = -np.sum(weights * np.log(shares[rows, given.labels]))
  delta = weights[:, None] * (shares - own) / temperature / weights.sum()
  return loss / weights.sum(), delta @ passages, delta.T @ questions


def _problem(negatives, seed=0, answers=False, columns=0):
  """A batch whose passages stand in no particular order."""
  generator = np.random.default_rng(seed)
  each = 1 + negatives
  count = QUESTIONS * each
  labels = generator.permutation(count)[:QUESTIONS].astype(np.int32)
  valid = generator.random(count) > 0.2
  valid[labels] = True
  keys = generator.integers(-1, count // 2, count).astype(np.int32)
  weights = np.ones(QUESTIONS, np.float32)
  weights[[3, 17]] = 0
  excluded = generator.random((QUESTIONS, count)) > 0.9 if answers else None
  positives = None
  if columns:
    shape = (QUESTIONS, columns)
    positives = generator.integers(-1, count // 2, shape).astype(np.int32)
  return {
    "questions": generator.normal(size=(QUESTIONS, DIM)).astype(np.float32),
    "passages": generator.normal(size=(count, DIM)).astype(np.float32),
    "given": score_tiles.Competition(
      labels, keys[labels], weights, valid, keys, excluded, positives
    ),
  }


def _with_teacher(problem, columns=3):
  """Candidates anywhere in the batch, and a teacher that knows most of them."""
  generator = np.random.default_rng(5)
  given = problem["given"]
  count = len(given.passage_keys)
  candidates = np.stack(
    [generator.choice(count, columns, replace=False) for _ in given.labels]
  ).astype(np.int32)
  candidates[:, 0] = given.labels
  candidates[generator.random(candidates.shape) > 0.8] = -1
  candidates[7] = candidates[8, 1:] = -1  # no teacher, and one score alone
  scores = generator.normal(size=candidates.shape).astype(np.float32)
  problem["given"] = given.replace(candidates=candidates)
  problem["teacher_scores"] = np.where(candidates < 0, 0, scores)


def _distance(scores, wanted, teacher):
  """The distance of one question's known passages, and its derivative.

  Args:
    scores: of the model, the positive's first, NaN where unknown.
    wanted: likewise, of the teacher.
    teacher: how they are compared.
  """
  known = ~np.isnan(scores)
  slope = np.zeros_like(scores)
  wanted = teacher.scale * wanted
  if teacher.loss == "kl":
    if known.sum() < 2:
      return None
    shares = [np.exp(x[known] / teacher.temperature) for x in (scores, wanted)]
    ours, theirs = (x / x.sum() for x in shares)
    slope[known] = teacher.temperature * (ours - theirs)
    kl = np.sum(theirs * np.log(theirs / ours))
    return teacher.temperature**2 * kl, slope
  others = [n for n in range(1, len(scores)) if known[n]]
  if not known[0] or not others:
    return None
  total = 0.0
  for n in others:
    apart = (scores[0] - scores[n]) - (wanted[0] - wanted[n])
    total += apart**2 / len(others)
    slope[0] += 2 * apart / len(others)
    slope[n] -= 2 * apart / len(others)
  return total, slope


def _taught_reference(problem, temperature, teacher):
  """Loss and gradients with a teacher, question by question in float64."""
  loss, to_questions, to_passages = _reference(problem, temperature)
  share = 1 - teacher.weight
  loss, to_questions, to_passages = (
    share * x for x in (loss, to_questions, to_passages)
  )
  questions = problem["questions"].astype(float)
  passages = problem["passages"].astype(float)
  given, found = problem["given"], {}
  for row, places in enumerate(given.candidates):
    known = places >= 0
    scores = np.where(known, passages[places] @ questions[row], np.nan)
    wanted = np.where(known, problem["teacher_scores"][row], np.nan)
    distance = _distance(scores / temperature, wanted.astype(float), teacher)
    if distance is not None and given.question_weights[row]:
      found[row] = distance
  for row, (distance, slope) in found.items():
    part = teacher.weight / len(found)
    loss += part * distance
    for place, each in zip(given.candidates[row], slope, strict=True):
      if place >= 0:
        to_questions[row] += part * each * passages[place] / temperature
        to_passages[place] += part * each * questions[row] / temperature
  return loss, to_questions, to_passages, found


def _on_cores(
  problem, temperature, devices, kind="gathered", tile=0, teacher=None
):
  """Loss and gradients as the train step takes them, from all cores.

  The vectors themselves are the parameters, so that every core has its own
  and what flows back to other cores shows.
  """

  def one_core(_, batch):
    def loss(questions, passages):
      return objectives.in_batch_loss(
        questions,
        passages,
        batch["given"],
        temperature,
        devices_lib.AXIS,
        kind=kind,
        tile=tile,
        teacher=teacher,
        teacher_scores=batch.get("teacher_scores"),
      )

    (loss, sums), gradients = jax.value_and_grad(
      loss, argnums=(0, 1), has_aux=True
    )(batch["questions"], batch["passages"])
    sums = jax.lax.psum(sums, devices_lib.AXIS)
    # pmean over cores of a gradient that only this core has: 1 / cores of it.
    gradients = jax.tree.map(lambda x: x / len(devices), gradients)
    # Each device's loss is its part times the number of devices.
    return jax.lax.pmean(loss, devices_lib.AXIS), gradients, sums

  mapped = devices_lib.map_over_cores(one_core, devices)
  loss, (questions, passages), sums = mapped(
    np.zeros(()), devices_lib.split_over_cores(problem, devices)
  )
  return (
    loss,
    np.asarray(questions).reshape(-1, DIM),
    np.asarray(passages).reshape(-1, DIM),
    sums,
  )


WAYS = [("gathered", 0), ("tiled", 0), ("tiled", 4), ("ring", 0), ("ring", 2)]


@pytest.mark.parametrize("cores", [1, 2, 8])
@pytest.mark.parametrize("negatives", [0, 1, 2])
@pytest.mark.parametrize("way", WAYS)
def test_equals_the_formula_on_any_number_of_cores(cores, negatives, way):
  """Loss and both gradients to 1e-5 relative, masks included."""
  temperature = 0.05 if negatives == 1 else 1.0
  problem = _problem(
    negatives, answers=negatives == 2, columns=3 if negatives else 0
  )
  wanted = _reference(problem, temperature)
  found = _on_cores(problem, temperature, jax.devices()[:cores], *way)
  np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5)
  for one, other in zip(found[1:3], wanted[1:], strict=True):
    error = np.linalg.norm(one - other) / np.linalg.norm(other)
    assert error < 1e-5


TEACHERS = [
  distillation.Teacher("kl", 0.3, 2.0, 1.5),
  distillation.Teacher("margin_mse", 0.6, 1.0, 0.5),
]


@pytest.mark.parametrize(
  ("teacher", "way", "cores"),
  [
    *((TEACHERS[0], way, 8) for way in WAYS),
    (TEACHERS[0], WAYS[0], 1),
    (TEACHERS[1], WAYS[2], 8),
    (TEACHERS[1], WAYS[4], 8),
  ],
)
def test_a_teacher_of_passages_on_any_core(teacher, way, cores):
  """Loss and gradients to 1e-5; candidates on other cores, some masked."""
  problem = _problem(1, answers=True, columns=3)
  _with_teacher(problem)
  *wanted, taught = _taught_reference(problem, 2.0, teacher)
  *found, sums = _on_cores(
    problem, 2.0, jax.devices()[:cores], *way, teacher=teacher
  )
  assert np.asarray(sums.distilled)[0] == len(taught) < QUESTIONS - 4
  total = sum(distance for distance, _ in taught.values())
  np.testing.assert_allclose(np.asarray(sums.distill)[0], total, rtol=1e-5)
  np.testing.assert_allclose(np.asarray(found[0])[0], wanted[0], rtol=1e-5)
  for one, other in zip(found[1:], wanted[1:], strict=True):
    error = np.linalg.norm(one - other) / np.linalg.norm(other)
    assert error < 1e-5


def test_the_teacher_judges_what_the_softmax_masks():
  """A masked candidate gets gradient from the teacher alone."""
  problem = _problem(0)
  given = problem["given"]
  place = (given.labels[0] + 1) % QUESTIONS
  excluded = np.zeros((QUESTIONS, QUESTIONS), bool)
  excluded[:, place] = True
  candidates = np.full((QUESTIONS, 2), -1, np.int32)
  candidates[0] = given.labels[0], place
  weights = np.zeros(QUESTIONS, np.float32)
  weights[0] = 1
  problem["given"] = given.replace(
    excluded=excluded,
    question_weights=weights,
    candidates=candidates,
    passage_valid=np.ones(QUESTIONS, bool),
  )
  problem["teacher_scores"] = np.zeros((QUESTIONS, 2), np.float32)
  teacher = distillation.Teacher("kl", 0.5)
  _, _, passages, _ = _on_cores(
    problem, 1.0, jax.devices(), "ring", teacher=teacher
  )
  score = (
    problem["questions"][0] @ problem["passages"][[given.labels[0], place]].T
  )
  share = 1 / (1 + np.exp(score[0] - score[1]))
  # w * (share - 1/2) * question, for the one question that is taught.
  np.testing.assert_allclose(
    passages[place], 0.5 * (share - 0.5) * problem["questions"][0], rtol=1e-4
  )


@pytest.mark.parametrize("way", WAYS)
def test_gradient_flows_back_to_other_cores(way):
  """A passage of core 7 gets gradient from the questions of core 0."""
  problem = _problem(0)
  weights = np.zeros(QUESTIONS, np.float32)
  weights[0] = 1
  problem["given"] = problem["given"].replace(
    question_weights=weights, passage_valid=np.ones(QUESTIONS, bool)
  )
  _, _, passages, _ = _on_cores(problem, 1.0, jax.devices(), *way)
  assert np.abs(passages[-1]).max() > 1e-6


@pytest.mark.parametrize("way", WAYS)
def test_what_is_masked_is_counted(way):
  """Copies of the positive, and passages that hold an answer."""
  vectors = np.eye(8, DIM, dtype=np.float32)
  vectors[1] = vectors[0]
  excluded = np.zeros((8, 8), bool)
  excluded[2, [2, 3]] = True  # its own positive stays
  excluded[0, [1, 5]] = True  # 1 is a copy already
  keys = np.array([9, 9, 2, -1, -1, 5, 6, 7], np.int32)
  problem = {
    "questions": 5 * vectors,
    "passages": 5 * vectors,
    "given": score_tiles.Competition(
      np.arange(8, dtype=np.int32),
      keys,
      np.ones(8, np.float32),
      np.ones(8, bool),
      keys,
      excluded,
    ),
  }
  loss, _, _, sums = _on_cores(problem, 1.0, jax.devices()[:2], *way)
  assert np.asarray(sums.duplicates)[0] == 2
  assert np.asarray(sums.answers)[0] == 2
  assert np.asarray(sums.correct)[0] == 8
  assert np.asarray(loss)[0] < 1e-8


@pytest.mark.parametrize("way", WAYS)
def test_other_positives_are_masked_and_who_has_no_negative_is_counted(way):
  """Question 0 is left with passage 3, question 1 with nothing."""
  positives = np.full((4, 2), -1, np.int32)
  positives[0] = [1, 2]
  valid = np.ones(4, bool)
  excluded = np.zeros((4, 4), bool)
  excluded[1, [0, 2, 3]] = True
  keys = np.arange(4, dtype=np.int32)
  problem = {
    "questions": np.zeros((4, DIM), np.float32),
    "passages": np.ones((4, DIM), np.float32),
    "given": score_tiles.Competition(
      keys, keys, np.ones(4, np.float32), valid, keys, excluded, positives
    ),
  }
  loss, _, _, sums = _on_cores(problem, 1.0, jax.devices()[:2], *way[:1])
  assert np.asarray(sums.duplicates)[0] == 2
  assert np.asarray(sums.answers)[0] == 3
  assert np.asarray(sums.alone)[0] == 1
  # All scores are 0: ln 2, ln 1, ln 4, ln 4.
  np.testing.assert_allclose(np.asarray(loss)[0], 5 * np.log(2) / 4, rtol=1e-6)
  # A tie is no success, and question 1 beats nobody: it is right for free.
  assert np.asarray(sums.correct)[0] == 1


def test_a_tile_that_does_not_divide_is_refused():
  """The message names the setting and the number."""
  with pytest.raises(errors.InputError, match="loss_tile=5 .* 32 passages"):
    _on_cores(_problem(0), 1.0, jax.devices()[:2], "tiled", 5)


@pytest.mark.parametrize("way", WAYS)
def test_a_tie_is_not_correct(way):
  """A collapsed model, which gives every text one vector, finds nothing."""
  rows = np.arange(8, dtype=np.int32)
  unknown = np.full(8, -1, np.int32)
  vectors = np.ones((8, DIM), np.float32)
  problem = {
    "questions": vectors,
    "passages": vectors,
    "given": score_tiles.Competition(
      rows, unknown, np.ones(8, np.float32), np.ones(8, bool), unknown
    ),
  }
  loss, _, _, sums = _on_cores(problem, 1.0, jax.devices()[:2], *way)
  assert np.asarray(sums.correct)[0] == 0
  np.testing.assert_allclose(np.asarray(loss)[0], np.log(8), rtol=1e-6)
  # Where three questions' own passages stand out, these are right.
  problem["questions"] = np.eye(8, DIM, dtype=np.float32)
  problem["passages"] = np.zeros((8, DIM), np.float32)
  problem["passages"][:3, :3] = np.eye(3)
  _, _, _, sums = _on_cores(problem, 1.0, jax.devices()[:2], *way)
  assert np.asarray(sums.correct)[0] == 3


@pytest.mark.parametrize("way", WAYS)
def test_scores_of_fifty_thousand(way):
  """Whole numbers, exact in float32; shares by hand.

  Question 0 scores 50,000 with its own passage 0 and with passage 1: shares of
  1/2.  Question 1 scores 50,000 with its own passage 1 and 49,999 with passage
  0: a share of 1 / (1 + e) = 0.268941.  All other scores are 0.  As one number
  of float32 the first log-sum would be 50,000.6914 instead of 50,000.6931, and
  the shares 0.50087.
  """
  problem = {
    "questions": np.eye(8, DIM, dtype=np.float32),
    "passages": np.zeros((8, DIM), np.float32),
  }
  problem["questions"][2:] = 0
  problem["passages"][:2, :2] = [[50_000, 49_999], [50_000, 50_000]]
  keys = np.arange(8, dtype=np.int32)
  weights = np.array([1, 1, 0, 0, 0, 0, 0, 0], np.float32)
  problem["given"] = score_tiles.Competition(
    keys, keys, weights, np.ones(8, bool), keys
  )
  loss, questions, passages, _ = _on_cores(
    problem, 1.0, jax.devices()[:2], *way
  )
  share = 1 / (1 + np.e)
  wanted = (np.log(2) - np.log(1 - share)) / 2
  np.testing.assert_allclose(np.asarray(loss)[0], wanted, rtol=1e-6)
  np.testing.assert_allclose(
    passages[:2, :2], [[-1 / 4, share / 2], [1 / 4, -share / 2]], rtol=1e-6
  )
  assert not passages[2:].any()
  # Differences of numbers near 12,500: what float32 leaves of them.
  np.testing.assert_allclose(
    questions[:2, :2], [[0, 1 / 4], [0, -share / 2]], atol=5e-3
  )
