"""Training killed, stopped, or moved to other cores ends as if it had not been.

Every run is a process of its own, through the command line.
"""

import json
import random
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from dpr_jax import workdir
from dpr_jax.models import checkpoints

STEPS, KILLS = 90, 20


@pytest.fixture(scope="module")
def command(config_file):
  """Arguments of a run that saves after every step."""
  return (
    "train",
    f"--config={config_file}",
    f"--config.train.max_steps={STEPS}",
    "--config.train.checkpoint_every=1",
    "--config.train.dev_every=30",
    "--config.train.dev_questions=8",
    "--config.train.batch_size=8",
  )


@pytest.fixture(scope="module")
def uninterrupted(call, command, mined_workdir, tmp_path_factory):
  """The workdir of a run that nothing disturbed."""
  place = workdir.Workdir(tmp_path_factory.mktemp("whole") / "w")
  shutil.copytree(mined_workdir.root, place.root)
  done = call(*command, f"--workdir={place.root}", "--cpu_devices=1")
  assert done.returncode == 0, done.stderr
  return place


def _rows(place):
  """Complete rows of the metrics so far."""
  path = place.training / "metrics.jsonl"
  if not path.exists():
    return []
  lines = path.read_text().split("\n")[:-1]
  return [json.loads(line) for line in lines]


def _wait_for_rows(place, count, process):
  """Until the metrics have `count` rows; False where the process ends."""
  while process.poll() is None:
    if len(_rows(place)) >= count:
      return True
    time.sleep(0.01)
  return False


def _figures(place):
  keys = ("step", "loss", "gradient_norm", "dev_loss", "dev_average_rank")
  return [{key: row.get(key) for key in keys} for row in _rows(place)]


def _params(place):
  return checkpoints.load_params(place.training / "checkpoints")


@pytest.mark.slow
def test_twenty_kills_at_random_moments(
  start, call, command, uninterrupted, fresh_workdir
):
  """SIGKILL; parameters and metrics are those of the uninterrupted run."""
  chance = random.Random(5)
  arguments = (*command, f"--workdir={fresh_workdir.root}", "--cpu_devices=1")
  began = []
  for number in range(KILLS):
    with start(*arguments) as process:
      if number % 5 == 4:  # somewhere in the start-up
        time.sleep(chance.uniform(0, 4))
      else:  # in a step, in a save, between them
        before = len(_rows(fresh_workdir))
        _wait_for_rows(fresh_workdir, before + chance.randint(1, 4), process)
        time.sleep(chance.uniform(0, 0.15))
      assert process.poll() is None, process.stderr.read()
      process.kill()
    assert process.returncode == -signal.SIGKILL
    began.append(len(_rows(fresh_workdir)))
  assert 0 < began[-1] < STEPS
  assert len(set(began)) > 5  # it did get on between them
  done = call(*arguments)
  assert done.returncode == 0, done.stderr
  assert "goes on after step" in done.stderr
  found, wanted = _params(fresh_workdir), _params(uninterrupted)
  assert found[0] == wanted[0] == STEPS
  jax.tree.map(np.testing.assert_array_equal, found[1], wanted[1])
  assert _figures(fresh_workdir) == _figures(uninterrupted)
  left = [
    path.name
    for path in fresh_workdir.root.rglob("*")
    if "tmp" in path.name or path.name == ".lock.json"
  ]
  assert not left


@pytest.mark.slow
def test_sigterm_saves_and_other_cores_go_on(
  start, call, command, uninterrupted, fresh_workdir
):
  """Exit 143, saved where it stopped; a second process is refused meanwhile."""
  arguments = (*command, f"--workdir={fresh_workdir.root}")
  never = ("--config.train.checkpoint_every=0",)
  with start(*arguments, *never, "--cpu_devices=1") as process:
    assert _wait_for_rows(fresh_workdir, 5, process), process.stderr.read()
    process.send_signal(signal.SIGSTOP)
    try:
      second = call(*arguments, *never, "--cpu_devices=1")
    finally:
      process.send_signal(signal.SIGCONT)
    assert second.returncode == 2
    assert f"is in use by process {process.pid}" in second.stderr
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
  assert process.returncode == 143, stderr
  assert "interrupted by SIGTERM" in stderr.splitlines()[-1]
  step, _ = _params(fresh_workdir)
  assert 4 <= step < STEPS
  assert f"saved after step {step} of {STEPS}" in stderr
  done = call(*arguments, *never, "--cpu_devices=4")
  assert done.returncode == 0, done.stderr
  assert f"goes on after step {step}" in done.stderr
  found, wanted = _rows(fresh_workdir), _rows(uninterrupted)
  assert [row["step"] for row in found] == [row["step"] for row in wanted]
  for one, other in zip(found, wanted, strict=True):
    if "loss" in one:
      np.testing.assert_allclose(one["loss"], other["loss"], rtol=1e-3)
  assert _params(fresh_workdir)[0] == STEPS


@pytest.mark.slow
def test_not_a_number_stops_and_is_never_saved(call, command, fresh_workdir):
  """A learning rate that blows up: one line with step and checkpoint."""
  done = call(
    *command,
    f"--workdir={fresh_workdir.root}",
    "--cpu_devices=1",
    "--config.train.learning_rate=1e30",
    "--config.train.warmup_steps=0",
  )
  assert done.returncode == 1
  line = done.stderr.splitlines()[-1]
  assert "not finite" in line or " is nan" in line or " is inf" in line
  assert "the last good checkpoint is" in line
  folder = fresh_workdir.training / "checkpoints"
  for path in folder.glob("[0-9]*.sha256.json"):
    _, params = checkpoints.load_params(folder, int(path.name.split(".")[0]))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
