"""Training: the same on any number of cores, and after any interruption."""

import copy
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dpr_jax import errors, parallel
from dpr_jax.models import bert, checkpoints, dual_encoder
from dpr_jax.training import metrics, train_retriever, train_step

CONFIG = bert.BertConfig(
  vocab_size=50,
  hidden_size=16,
  num_hidden_layers=2,
  num_attention_heads=2,
  intermediate_size=24,
  max_position_embeddings=12,
  hidden_dropout_prob=0.1,
  attention_probs_dropout_prob=0.1,
)


def _batch(questions=16, negatives=1, seed=0):
  generator = np.random.default_rng(seed)
  passages = questions * (1 + negatives)

  def texts(rows, length):
    lengths = generator.integers(2, length + 1, rows)
    mask = np.arange(length)[None] < lengths[:, None]
    ids = generator.integers(1, 50, (rows, length)).astype(np.int32)
    return ids * mask, mask

  question_ids, question_mask = texts(questions, 6)
  passage_ids, passage_mask = texts(passages, 12)
  return {
    "question_ids": question_ids,
    "question_mask": question_mask,
    "passage_ids": passage_ids,
    "passage_mask": passage_mask,
    "passage_valid": np.ones(passages, bool),
    "passage_keys": np.arange(passages, dtype=np.int32),
    "global_rows": np.arange(questions, dtype=np.int32),
  }


def _run(cores, config, *, shared=False, steps=2, chunk_size=0, negatives=1):
  """Parameters and metrics after some steps of plain gradient descent.

  Adam would blow up rounding where a gradient is almost zero.
  """
  devices = jax.devices()[:cores]
  encoder = dual_encoder.DualEncoder(
    config, shared=shared, chunk_size=chunk_size
  )
  tower = bert.init_params(config, jax.random.key(0))
  tower = jax.tree.map(lambda x: 8 * x if x.ndim == 2 else x, tower)
  transformation = optax.sgd(0.1)
  step = parallel.map_train_step(
    train_step.make_train_step(
      encoder,
      transformation,
      optax.schedules.constant_schedule(0.1),
      seed=3,
      temperature=1.0,
    ),
    devices,
  )
  params = encoder.towers(tower)
  state = parallel.replicate(
    train_step.TrainState(np.int32(0), params, transformation.init(params)),
    devices,
  )
  rows = []
  for number in range(steps):
    batch = _batch(negatives=negatives, seed=number)
    state, reported = step(state, parallel.split_over_cores(batch, devices))
    rows.append({key: float(value) for key, value in reported.items()})
  change = jax.tree.map(lambda new, old: new - old, state.params, params)
  return jax.tree.map(np.asarray, change), rows


def _close(one, other):
  """The whole gradient to 1e-5 of its norm, every leaf to 1e-4 of its own."""
  pairs = list(zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))
  total = np.sqrt(sum(np.sum(right**2) for _, right in pairs))
  error = np.sqrt(sum(np.sum((left - right) ** 2) for left, right in pairs))
  assert error <= 1e-5 * total
  for left, right in pairs:
    # What is zero in exact arithmetic (the key's bias) is noise in both.
    distance = np.linalg.norm(left - right)
    assert distance <= 1e-4 * np.linalg.norm(right) + 1e-6 * total


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("shared", [False, True])
def test_steps_are_equal_on_1_and_8_cores(dropout, shared):
  """Metrics and what the steps changed to 1e-5; dropout included."""
  config = bert.BertConfig(
    **{
      **CONFIG.__dict__,
      "hidden_dropout_prob": dropout,
      "attention_probs_dropout_prob": dropout,
    }
  )
  one, one_rows = _run(1, config, shared=shared)
  eight, eight_rows = _run(8, config, shared=shared)
  for left, right in zip(one_rows, eight_rows, strict=True):
    for key in ("loss", "gradient_norm", "accuracy"):
      np.testing.assert_allclose(left[key], right[key], rtol=1e-5)
  _close(eight, one)
  assert one_rows[0]["loss"] != one_rows[1]["loss"]


def test_chunks_do_not_change_a_step():
  """Neither does encoding in chunks, with dropout."""
  whole, _ = _run(2, CONFIG)
  chunked, _ = _run(2, CONFIG, chunk_size=4)
  _close(chunked, whole)


def test_dropout_keys_follow_step_and_row():
  """All different over steps, rows and texts; the same for a global row."""
  rows = np.arange(4, dtype=np.int32)

  def draw(step, rows):
    questions, passages = train_step.dropout_keys(
      1, jnp.int32(step), jnp.asarray(rows), 2
    )
    data = jax.random.key_data
    return np.asarray(data(questions)), np.asarray(data(passages))

  questions, passages = draw(0, rows)
  late_questions, late_passages = draw(0, rows[2:])
  np.testing.assert_array_equal(late_questions, questions[2:])
  np.testing.assert_array_equal(late_passages, passages[4:])
  other, more = draw(1, rows)
  keys = np.concatenate([questions, passages, other, more])
  assert len(np.unique(keys, axis=0)) == len(keys) == 24


def _rows(place):
  lines = (place.training / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_interrupted_training_ends_bit_equal(
  tiny_config, fresh_workdir, tmp_path, monkeypatch
):
  """Dies after step 3, resumes from step 2, ends as if nothing had been."""
  import shutil

  from dpr_jax import workdir

  other = workdir.Workdir(tmp_path / "other")
  shutil.copytree(fresh_workdir.root, other.root)
  train_retriever.train(tiny_config, other)

  log_step = train_retriever._log_step

  def dies(log, step, *rest):
    log_step(log, step, *rest)
    if step == 3:
      raise RuntimeError("power cut")

  with monkeypatch.context() as patch:
    patch.setattr(train_retriever, "_log_step", dies)
    with pytest.raises(RuntimeError, match="power cut"):
      train_retriever.train(tiny_config, fresh_workdir)
  assert not (fresh_workdir.training / "manifest.json").exists()
  train_retriever.train(tiny_config, fresh_workdir)

  found, wanted = (
    checkpoints.load_params(place.training / "checkpoints")
    for place in (fresh_workdir, other)
  )
  assert found[0] == wanted[0] == 6
  jax.tree.map(np.testing.assert_array_equal, found[1], wanted[1])
  keys = ("step", "loss", "dev_loss", "dev_average_rank", "dev_top1")
  found, wanted = (
    [{key: row.get(key) for key in keys} for row in _rows(place)]
    for place in (fresh_workdir, other)
  )
  assert found == wanted
  assert [row["step"] for row in wanted if row["loss"]] == [1, 2, 3, 4, 5, 6]
  assert [row["step"] for row in wanted if row["dev_loss"]] == [0, 3, 6]
  losses = [row["loss"] for row in wanted if row["loss"]]
  assert losses[-1] < losses[0]

  # Done and unchanged: nothing is done again.
  before = (other.training / "manifest.json").stat().st_mtime_ns
  train_retriever.train(tiny_config, other)
  assert (other.training / "manifest.json").stat().st_mtime_ns == before

  # Killed between the last checkpoint and the manifest: only that is made.
  (other.training / "manifest.json").unlink()
  train_retriever.train(tiny_config, other)
  assert (other.training / "manifest.json").exists()
  assert len(_rows(other)) == 9

  # Another setting: refused, with the setting; nothing is lost.
  changed = copy.deepcopy(tiny_config)
  changed.train.learning_rate = 5e-4
  with pytest.raises(errors.InputError, match=r"learning_rate was 0.001, is"):
    train_retriever.train(changed, other)
  assert checkpoints.load_params(other.training / "checkpoints")[0] == 6


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("batch_size", 20, "batch_size=20: must be a multiple of the 8 cores"),
    ("batch_size", 0, "batch_size=0: must be >= 1"),
    ("negatives", "hard", "negatives='hard': must be one of"),
    ("warmup_steps", 9, "warmup_steps=9 is not below the 6 steps"),
    ("hard_negatives", -1, "hard_negatives=-1"),
  ],
)
def test_bad_settings(tiny_config, fresh_workdir, key, value, message):
  """Each with its key and value."""
  config = copy.deepcopy(tiny_config)
  config.train[key] = value
  with pytest.raises(errors.InputError, match=message):
    train_retriever.train(config, fresh_workdir)


@pytest.mark.parametrize("kind", ["random", "given"])
def test_other_negatives(tiny_config, fresh_workdir, kind):
  """Random ones, and those in the data (the sample has none: padded)."""
  config = copy.deepcopy(tiny_config)
  config.train.negatives = kind
  config.train.max_steps = 3
  config.train.dev_questions = 0
  train_retriever.train(config, fresh_workdir)
  assert [row["step"] for row in _rows(fresh_workdir)] == [1, 2, 3]


def test_nan_stops_with_step_and_checkpoint():
  """The message names both."""
  with pytest.raises(FloatingPointError, match=r"step 7: loss is nan.*step 4"):
    metrics.check_finite(
      7, {"loss": float("nan"), "gradient_norm": 1.0}, "step 4"
    )


def test_log_drops_what_a_crash_cut_short(tmp_path):
  """Rows after the checkpoint and half a line go, the rest stays."""
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
  log = metrics.MetricsLog(path, first_step=2, steps=4)
  log.write({"step": 3, "loss": 1.0})
  log.close()
  assert [json.loads(line) for line in path.read_text().splitlines()] == [
    {"step": 1},
    {"step": 2},
    {"step": 3, "loss": 1.0},
  ]
