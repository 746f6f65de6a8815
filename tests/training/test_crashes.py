"""Training killed, stopped, or moved to other cores ends as if it had not been.

Most runs are processes of their own, through the command line.
"""

import copy
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from dpr_jax.core import signals, temporary_names
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.models import checkpoint_files, checkpoints
from dpr_jax.training import train_retriever
from tests.faults.amounts import amount

pytestmark = pytest.mark.compiles

KILLS = amount(20, 4)
STEPS = 30 + 12 * KILLS
EVERY = 5  # steps between two checkpoints of a run that is killed


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
def uninterrupted(forked_call, command, mined_workdir, tmp_path_factory):
  """The workdir of a run that nothing disturbed."""
  place = workdir_lib.Workdir(tmp_path_factory.mktemp("whole") / "w")
  shutil.copytree(mined_workdir.root, place.root)
  done = forked_call(*command, f"--workdir={place.root}", "--cpu_devices=1")
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


def _saving(place):
  """Steps whose checkpoints stand there under a temporary name."""
  folder = place.training / "checkpoints"
  names = os.listdir(folder) if folder.exists() else []
  found = {n.split(".")[0] for n in names if temporary_names.is_temporary(n)}
  return {int(name) for name in found if name.isdigit()}


def _newest_whole(place):
  """The step that a run would go on from."""
  folder = place.training / "checkpoints"
  whole = [
    step
    for step in checkpoint_files.steps_there(folder)
    if not checkpoint_files.problem(folder, step)
  ]
  return max(whole, default=0)


@pytest.mark.slow
@pytest.mark.fault_row(1, trials=KILLS)
def test_kills_at_random_moments(
  start, forked_call, command, uninterrupted, fresh_workdir
):
  """SIGKILL; parameters and metrics are those of the uninterrupted run.

  Half of the kills come while a checkpoint is written, the others in a step,
  between two, and a few while the program starts.
  """
  chance = random.Random(5)
  arguments = (
    *command,
    f"--workdir={fresh_workdir.root}",
    "--cpu_devices=1",
    f"--config.train.checkpoint_every={EVERY}",
  )
  began, saves = [], 0
  for number in range(KILLS):
    with start(*arguments) as process:
      before = len(_rows(fresh_workdir))
      if number % 10 == 9:  # somewhere in the start-up
        time.sleep(chance.uniform(0, 4))
      else:  # in a step, in a save, between them
        _wait_for_rows(fresh_workdir, before + chance.randint(1, 4), process)
        if number % 2 == 0:
          while not _saving(fresh_workdir) and process.poll() is None:
            pass
          time.sleep(chance.uniform(0, 0.03))
        else:
          time.sleep(chance.uniform(0, 0.15))
      assert process.poll() is None, process.stderr.read()
      process.kill()
    assert process.returncode == -signal.SIGKILL
    rows = _rows(fresh_workdir)
    began.append(len(rows))
    # Nothing is lost but the save that was under way, or about to begin.
    due = max((row["step"] for row in rows), default=0) // EVERY * EVERY
    broken_off = _saving(fresh_workdir)
    saves += bool(broken_off)
    assert _newest_whole(fresh_workdir) >= min(broken_off | {due}) - EVERY
  assert 0 < began[-1] < STEPS
  assert len(set(began)) > KILLS // 4  # it did get on between them
  assert saves >= KILLS // 4
  done = forked_call(*arguments)
  assert done.returncode == 0, done.stderr
  assert "resuming at step" in done.stderr
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


@pytest.mark.fault_row(2)
@pytest.mark.parametrize("number", range(amount(10, 2)))
def test_a_signal_at_a_random_moment_loses_no_step(
  tiny_config, fresh_workdir, number
):
  """It is saved where it stopped, and says with which code it ends."""
  chance = random.Random(number)
  config = copy.deepcopy(tiny_config)
  config.train.checkpoint_every = 0
  config.train.dev_every = 0
  config.train.max_steps = 2000
  signal_number, code = ((signal.SIGTERM, 143), (signal.SIGINT, 130))[
    number % 2
  ]
  sent = []

  def send():
    while len(_rows(fresh_workdir)) < 4:
      time.sleep(0.01)
    time.sleep(chance.uniform(0, 0.5))
    sent.append(time.monotonic())
    os.kill(os.getpid(), signal_number)

  before = {each: signal.getsignal(each) for each in signals.SIGNALS}
  thread = threading.Thread(target=send)
  try:
    signals.listen()
    thread.start()
    with pytest.raises(signals.Interrupted) as interrupted:
      train_retriever.train(config, fresh_workdir)
    assert time.monotonic() - sent[0] < 10
  finally:
    for each, handler in before.items():
      signal.signal(each, handler)
    thread.join()
  assert interrupted.value.exit_code == code
  last = _rows(fresh_workdir)[-1]["step"]
  assert 3 <= last < 2000
  assert _params(fresh_workdir)[0] == last


# The command line; one process sends itself a signal before a certain step.
SIGNALLED = """
import os, signal
from dpr_jax.cli import main
from dpr_jax.training import metrics
wait_for = metrics.Timer.wait_for
calls = []
def signalled(self, loader):
  calls.append(1)
  if os.environ.get("DPR_JAX_PROCESS_ID", "1") == "1" and len(calls) == 2:
    os.kill(os.getpid(), signal.SIGTERM)
  return wait_for(self, loader)
metrics.Timer.wait_for = signalled
main.main()
"""


@pytest.mark.slow
@pytest.mark.fault_row(5)
def test_other_devices_and_processes_go_on(
  repository, environment, forked_call, config_file, fresh_workdir, tmp_path
):
  """8, then 4, then 2 x 4 devices, then 1: the batches of one that did it all.

  Each of the first three ends by a SIGTERM, of the two processes one gets it.
  At this learning rate rounding stays rounding, and another batch would show.
  """
  alone = workdir_lib.Workdir(tmp_path / "alone")
  shutil.copytree(fresh_workdir.root, alone.root)
  flags = (
    f"--config={config_file}",
    "--config.train.learning_rate=1e-6",
    "--config.train.checkpoint_every=0",
    "--config.train.dev_questions=0",
    "--config.train.max_steps=8",
  )
  emulated = (
    *(sys.executable, repository / "launch" / "cpu_emulate.py"),
    *("--processes=2", "--devices=4", "--grace=10", "--"),
  )
  where = f"--workdir={fresh_workdir.root}"
  reached = []
  for devices in (8, 4, 0):
    before = () if devices else emulated
    more = (f"--cpu_devices={devices}",) if devices else ()
    done = subprocess.run(
      [*before, sys.executable, "-c", SIGNALLED, "train", *flags, where, *more],
      capture_output=True,
      text=True,
      env=environment,
      timeout=600,
    )
    assert done.returncode == 143, done.stderr
    assert "interrupted by SIGTERM" in done.stderr
    reached.append(_params(fresh_workdir)[0])
    assert _rows(fresh_workdir)[-1]["step"] == reached[-1]  # none is lost
  assert reached == sorted(set(reached))
  assert reached[-1] < 8
  for place in (fresh_workdir, alone):
    done = forked_call(
      "train", *flags, f"--workdir={place.root}", "--cpu_devices=1"
    )
    assert done.returncode == 0, done.stderr
  found, wanted = _rows(fresh_workdir), _rows(alone)
  assert [row["step"] for row in found] == list(range(1, 9))
  assert [row["step"] for row in wanted] == list(range(1, 9))
  np.testing.assert_allclose(
    [row["loss"] for row in found], [row["loss"] for row in wanted], rtol=1e-5
  )


@pytest.mark.slow
@pytest.mark.fault_row(2)
def test_sigterm_saves_and_other_cores_go_on(
  start, forked_call, command, uninterrupted, fresh_workdir
):
  """Exit 143, saved where it stopped; a second process is refused meanwhile."""
  arguments = (*command, f"--workdir={fresh_workdir.root}")
  never = ("--config.train.checkpoint_every=0",)
  with start(*arguments, *never, "--cpu_devices=1") as process:
    assert _wait_for_rows(fresh_workdir, 5, process), process.stderr.read()
    process.send_signal(signal.SIGSTOP)
    try:
      second = forked_call(*arguments, *never, "--cpu_devices=1")
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
  done = forked_call(*arguments, *never, "--cpu_devices=4")
  assert done.returncode == 0, done.stderr
  assert f"resuming at step {step + 1} of" in done.stderr
  found, wanted = _rows(fresh_workdir), _rows(uninterrupted)
  assert [row["step"] for row in found] == [row["step"] for row in wanted]
  for one, other in zip(found, wanted, strict=True):
    if "loss" in one:
      np.testing.assert_allclose(one["loss"], other["loss"], rtol=1e-3)
  assert _params(fresh_workdir)[0] == STEPS


@pytest.mark.slow
def test_not_a_number_stops_and_is_never_saved(
  forked_call, command, fresh_workdir
):
  """A learning rate that blows up: one line with step and checkpoint."""
  done = forked_call(
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
