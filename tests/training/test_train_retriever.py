"""Training: the same on any number of cores, and after any interruption."""

import copy
import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpr_jax.core import errors, signals
from dpr_jax.models import checkpoints
from dpr_jax.training import (
  metrics,
  retriever_batches,
  train_retriever,
  train_step,
  validation,
)
from tests.training import power_cuts

pytestmark = pytest.mark.compiles


def test_dropout_keys_follow_step_and_row():
  """All different over steps, rows and texts; the same for a global row."""
  questions = np.arange(4, dtype=np.int32)
  passages = np.arange(8, dtype=np.int32)

  def draw(step, questions, passages):
    keys = train_step.dropout_keys(1, jnp.int32(step), questions, passages)
    return [np.asarray(jax.random.key_data(key)) for key in keys]

  first = draw(0, questions, passages)
  late = draw(0, questions[2:], passages[4:])
  np.testing.assert_array_equal(late[0], first[0][2:])
  np.testing.assert_array_equal(late[1], first[1][4:])
  keys = np.concatenate([*first, *draw(1, questions, passages)])
  assert len(np.unique(keys, axis=0)) == len(keys) == 24


def _rows(place):
  lines = (place.training / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_interrupted_training_ends_bit_equal(
  tiny_config, fresh_workdir, tmp_path, monkeypatch
):
  """Dies after step 3, resumes from step 2, ends as if nothing had been."""
  from dpr_jax.core import workdir as workdir_lib

  other = workdir_lib.Workdir(tmp_path / "other")
  shutil.copytree(fresh_workdir.root, other.root)
  train_retriever.train(tiny_config, other)

  with monkeypatch.context() as patch:
    power_cuts.dies_after(3, patch)
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

  # Done and unchanged: nothing is done again.
  before = (other.training / "manifest.json").stat().st_mtime_ns
  train_retriever.train(tiny_config, other)
  assert (other.training / "manifest.json").stat().st_mtime_ns == before

  # Nor where settings have changed that change nothing.
  often = copy.deepcopy(tiny_config)
  often.train.log_every, often.train.chunk_size = 3, 2
  train_retriever.train(often, other)
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
  # Nor by one that is begun anew and refused before its first step.
  changed.train.batch_size = 20
  with pytest.raises(errors.InputError, match="batch_size=20: must be a multi"):
    train_retriever.train(changed, other, overwrite=True)
  assert checkpoints.load_params(other.training / "checkpoints")[0] == 6


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("batch_size", 20, "batch_size=20: must be a multiple of the 8 devices"),
    ("batch_size", 0, "batch_size=0: must be >= 1"),
    ("negatives", "hard", "negatives='hard': must be one of"),
    ("warmup_steps", 9, "warmup_steps=9 is not below the 6 steps"),
    ("hard_negatives", -1, "hard_negatives=-1"),
    ("accumulate_steps", 4, "accumulate_steps=4: must be 1: .*gradient_cache"),
    ("loss", "dense", "loss='dense': must be one of gathered, tiled, ring"),
    ("remat", "all", "remat='all': must be one of none, inner, layer"),
    (
      "best_metric",
      "loss",
      "best_metric='loss': this config measures dev_loss",
    ),
    ("average_checkpoints", 3, "average_checkpoints=3: must be <="),
    ("profile_steps", (2, 9), "config.train.profile_steps=.2, 9.: must be"),
    ("rounds", 2, "rounds=2: what the model mines would not be used"),
  ],
)
def test_bad_settings(tiny_config, fresh_workdir, key, value, message):
  """Each with its key and value."""
  config = copy.deepcopy(tiny_config)
  config.train[key] = value
  with pytest.raises(errors.InputError, match=message):
    train_retriever.train(config, fresh_workdir)


def test_rounds_need_somebody_who_mines(tiny_config, fresh_workdir):
  """Refused before anything is made, with the call that works."""
  config = copy.deepcopy(tiny_config)
  config.train.rounds, config.train.negatives = 2, "model"
  with pytest.raises(
    errors.InputError, match="train.rounds=2 needs .*refresh=dpr"
  ):
    train_retriever.train(config, fresh_workdir)
  assert not fresh_workdir.training.exists()


def test_rounds_are_parts_of_the_job(tiny_config, mined_workdir, monkeypatch):
  """Each mines with its own number, and takes the batches of that round."""
  config = copy.deepcopy(tiny_config)
  config.train.rounds, config.train.negatives = 3, "model"
  calls = []
  make = retriever_batches.make_source
  monkeypatch.setattr(
    retriever_batches,
    "make_source",
    lambda config, workdir, model, number=0, **options: (
      calls.append(number) or make(config, workdir, model, **options)
    ),
  )
  job = train_retriever.make_job(
    config,
    mined_workdir,
    lambda config, workdir, model, params, number: calls.append(
      (workdir, params, number)
    ),
  )
  assert [part.start for part in job.rounds] == [0, 2, 4]
  assert job.rounds[0].before is None
  for part in job.rounds[1:]:
    part.before("parameters")
    part.source()
  assert calls == [
    0,
    *((mined_workdir, "parameters", 1), 1),
    *((mined_workdir, "parameters", 2), 2),
  ]


def test_sigterm_does_not_wait_for_an_evaluation(
  tiny_config, fresh_workdir, monkeypatch
):
  """Broken off at step 3, saved there; the dev row is made when it goes on."""
  config = copy.deepcopy(tiny_config)
  config.train.checkpoint_every = 0
  config.train.best_metric = "dev_loss"
  evaluate = validation.DevPool.evaluate
  finished = []

  def stopped(pool, params):
    if finished:
      os.kill(os.getpid(), signal.SIGTERM)
    finished.append(evaluate(pool, params))
    return finished[-1]

  before = {number: signal.getsignal(number) for number in signals.SIGNALS}
  try:
    signals.listen()
    with monkeypatch.context() as patch:
      patch.setattr(validation.DevPool, "evaluate", stopped)
      with pytest.raises(signals.Interrupted, match="SIGTERM"):
        train_retriever.train(config, fresh_workdir)
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
  assert len(finished) == 1  # the one at step 0
  folder = fresh_workdir.training / "checkpoints"
  assert checkpoints.load_params(folder)[0] == 3
  train_retriever.train(config, fresh_workdir)
  rows = _rows(fresh_workdir)
  assert [row["step"] for row in rows] == [0, 1, 2, 3, 3, 4, 5, 6, 6]
  losses = {row["step"]: row["dev_loss"] for row in rows if "dev_loss" in row}
  best = min((3, 6), key=losses.get)
  assert checkpoints.read_selected(folder)["steps"] == [best]


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
  log = metrics.MetricsLog(path, "train")
  log.open(first_step=2, steps=4)
  log.write({"step": 3, "loss": 1.0})
  log.close()
  assert [json.loads(line) for line in path.read_text().splitlines()] == [
    {"step": 1},
    {"step": 2},
    {"step": 3, "loss": 1.0},
  ]
