"""Several processes work as one, and end as one, whatever happens to one.

Real processes, started by the launcher, through the command line.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from dpr_jax.core import multiprocess, process_guard
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.models import checkpoints
from tests.faults import amounts

STEPS = 8
SECOND = "shard-00001-of-00003"
TRAINING = (
  f"--config.train.max_steps={STEPS}",
  "--config.train.dev_questions=8",
  "--config.train.dev_every=4",
)

# The command line, each process in a folder of its own: another machine's disk.
APART = """
import os
from dpr_jax.cli import main
os.chdir({folder!r} + os.environ["DPR_JAX_PROCESS_ID"])
main.main()
"""

# The command line, with something happening to process 1 before step 4.
HURT = """
import os, sys, time
from dpr_jax.cli import main
from dpr_jax.training import metrics
wait_for = metrics.Timer.wait_for
calls = []
def hurt(self, loader):
  calls.append(1)
  if os.environ["DPR_JAX_PROCESS_ID"] == "1" and len(calls) == 4:
    {what}
  return wait_for(self, loader)
metrics.Timer.wait_for = hurt
main.main()
"""


@pytest.fixture
def launch(repository, config_file, environment):
  """Starts `dpr-jax` as two processes of two cores each."""
  started = []

  def launch(folder, *arguments, stage="train", code=None):
    program = ["-c", code] if code else ["-m", "dpr_jax.cli"]
    process = subprocess.Popen(
      [
        sys.executable,
        repository / "launch" / "cpu_emulate.py",
        "--processes=2",
        "--devices=2",
        "--grace=10",
        "--",
        sys.executable,
        *program,
        stage,
        f"--config={config_file}",
        f"--workdir={folder}",
        *(TRAINING if stage == "train" else ()),
        *arguments,
      ],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      env=environment,
    )
    started.append(process)
    return process

  yield launch
  for process in started:
    if process.poll() is None:
      process.send_signal(signal.SIGTERM)
      process.send_signal(signal.SIGTERM)
    process.communicate()


@pytest.fixture
def alone(forked_call, config_file):
  """Runs a stage as one process of four cores, to a good end."""

  def alone(stage, folder, *arguments):
    where = (f"--config={config_file}", f"--workdir={folder}")
    done = forked_call(stage, *where, *arguments, "--cpu_devices=4")
    assert done.returncode == 0, done.stderr

  return alone


def _rows(folder: pathlib.Path) -> list[dict]:
  path = workdir_lib.Workdir(folder).training / "metrics.jsonl"
  if not path.exists():
    return []
  return [json.loads(line) for line in path.read_text().splitlines()]


def _params(folder: pathlib.Path):
  where = workdir_lib.Workdir(folder).training / "checkpoints"
  return checkpoints.load_params(where)


def _children(process) -> list[int]:
  path = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
  return [int(child) for child in path.read_text().split()]


def _end(process, timeout=400):  # seconds, below the longest hurt of 600
  out, err = process.communicate(timeout=timeout)
  return process.returncode, err


@pytest.mark.slow
@pytest.mark.fault_row(4)
def test_killed_in_the_middle_and_resumed_to_the_same_end(
  launch, alone, mined_workdir, tmp_path
):
  """As one process of four cores ends; one row a step, by process 0 alone."""
  for name in ("whole", "killed"):
    shutil.copytree(mined_workdir.root, tmp_path / name)
  process = launch(tmp_path / "killed")
  for line in process.stderr:  # the launcher's children lead groups
    if "train: " in line:
      break
  while not any(row["step"] >= 4 for row in _rows(tmp_path / "killed")):
    assert process.poll() is None, process.communicate()
    time.sleep(0.02)
  os.kill(_children(process)[1], signal.SIGKILL)
  code, err = _end(process)
  assert code == 128 + signal.SIGKILL
  assert "process 1 ended first, killed by SIGKILL" in err
  code, err = _end(launch(tmp_path / "killed"))
  assert code == 0, err
  assert "resuming at step" in err
  alone("train", tmp_path / "whole", *TRAINING)
  for one, other in zip(
    _rows(tmp_path / "killed"), _rows(tmp_path / "whole"), strict=True
  ):
    assert one["step"] == other["step"]
    keys = {"loss", "gradient_norm", "dev_loss"} & one.keys()
    assert keys == {"loss", "gradient_norm", "dev_loss"} & other.keys()
    for key in keys:
      assert one[key] == pytest.approx(other[key], rel=1e-3)
  step, params = _params(tmp_path / "killed")
  wanted_step, wanted = _params(tmp_path / "whole")
  assert step == wanted_step == STEPS
  for (path, one), other in zip(
    jax.tree.leaves_with_path(params), jax.tree.leaves(wanted), strict=True
  ):
    name = jax.tree_util.keystr(path)
    # Their gradients are 0 but for rounding, of which Adam makes whole steps:
    # softmax does not see what all keys share, nor the loss what all passages.
    if not name.endswith(
      ("['key']['bias']", "['passage']['layer_1']['output_norm']['bias']")
    ):
      np.testing.assert_allclose(one, other, atol=1e-3, err_msg=name)


@pytest.mark.slow
def test_embed_the_same_bytes_and_go_on_with_other_processes(
  launch, alone, mined_workdir, tmp_path
):
  """Shards of 2 processes x 2 cores; some are lost and made by 1 x 4."""
  for name in ("two", "one"):
    shutil.copytree(mined_workdir.root, tmp_path / name)
  arguments = ("--model=dense-start", "--config.embed.rows_per_shard=16")

  def files(name):
    folder = workdir_lib.Workdir(tmp_path / name).embeddings("dense-start")
    return {path.name: path for path in sorted(folder.glob("*.npy"))}

  alone("embed", tmp_path / "one", *arguments)
  wanted = {name: path.read_bytes() for name, path in files("one").items()}
  assert len(wanted) >= 12
  code, err = _end(launch(tmp_path / "two", *arguments, stage="embed"))
  assert code == 0, err
  count = len(wanted) // 3  # files of a shard
  # Process 0 speaks for all; process 1 made the rest.
  assert f"wrote {-(-count // 2)} of {count} shards" in err
  assert {n: p.read_bytes() for n, p in files("two").items()} == wanted
  written = {name: path.stat().st_ino for name, path in files("two").items()}
  lost = sorted(wanted)[:: count + 1]  # one of each kind
  for name in lost:
    files("two")[name].unlink()
  alone("embed", tmp_path / "two", *arguments)
  assert {n: p.read_bytes() for n, p in files("two").items()} == wanted
  numbers = {name.split("-")[1] for name in lost}
  for name, path in files("two").items():
    if name.split("-")[1] not in numbers:
      assert path.stat().st_ino == written[name], name


@pytest.mark.slow
def test_built_and_searched_by_all(launch, alone, mined_workdir, tmp_path):
  """Two machines write what one process writes, each with its own shards."""
  index = ("--config.index.factory=IVF4,SQ8", "--config.index.shards=3")
  methods = ("dense", "hybrid", "exact")
  search = (f"--method={','.join(methods)}", *index)
  one, two, away = (tmp_path / name / "W" for name in ("one", "host0", "host1"))
  shutil.copytree(mined_workdir.root, one)
  short = ("--config.train.max_steps=1", "--config.train.warmup_steps=0")
  alone("train", one, *TRAINING, *short)
  alone("embed", one, "--model=dense")
  shutil.copytree(one, two)
  alone("index", one, "--model=dense", "--tune", *index)
  alone("retrieve", one, "--tune", *search)
  code, err = _end(
    launch(two, "--model=dense", "--tune", *index, stage="index")
  )
  assert code == 0, err
  # Process 0 has built two of them, and what all have learnt.
  assert err.count("index: IVF4,SQ8 over ") == 3
  index_of_one, index_of_two = (
    workdir_lib.read_manifest(
      workdir_lib.Workdir(root).index("IVF4,SQ8"), "index"
    )
    for root in (one, two)
  )
  assert len(index_of_two["shards"]) == 3
  assert index_of_two["shards"] == index_of_one["shards"]
  for key in ("search", "tuning"):
    assert index_of_two[key] == index_of_one[key]
  for rank in ("recall@20", "recall@100"):
    assert index_of_two["recall"][rank] == index_of_one["recall"][rank]
  # The second machine has the manifest and its own shard, and the vectors.
  home, abroad = (
    workdir_lib.Workdir(root).index("IVF4,SQ8") for root in (two, away)
  )
  shutil.move(home / SECOND, abroad / SECOND)
  shutil.copy(home / "manifest.json", abroad)
  shutil.copytree(two / "embeddings", away / "embeddings")
  apart = {
    "stage": "retrieve",
    "code": APART.format(folder=str(tmp_path / "host")),
  }
  code, err = _end(launch("W", "--tune", *search, **apart))
  assert code == 0, err
  for method in methods:
    wanted = one / "results" / f"dev.{method}.json"
    assert len(json.loads(wanted.read_text())) > 5
    for file in (wanted, wanted.with_suffix(".trec")):
      assert (two / "results" / file.name).read_bytes() == file.read_bytes()
  assert (two / "fusion").exists()
  assert sorted(path.name for path in away.iterdir()) == ["embeddings", "index"]
  file = abroad / SECOND / "index.faiss"
  file.write_bytes(file.read_bytes()[:-1])
  code, err = _end(launch("W", *search, "--overwrite", **apart))
  assert code == 2
  assert "[0] dpr-jax: process 1 ended: " in err
  assert f"{SECOND}/index.faiss" in err


@pytest.mark.slow
@pytest.mark.skipif(not amounts.FULL, reason="in `make faults`")
@pytest.mark.fault_row(4)
def test_all_end_when_the_first_is_killed(launch, fresh_workdir):
  """With it goes the service that tells the others; nothing is left."""
  process = launch(fresh_workdir.root)
  while not any(row["step"] >= 2 for row in _rows(fresh_workdir.root)):
    assert process.poll() is None, process.communicate()
    time.sleep(0.05)
  children = _children(process)
  began = time.monotonic()
  os.kill(children[0], signal.SIGKILL)
  code, err = _end(process)
  assert time.monotonic() - began < process_guard.SILENT_SECONDS + 10
  assert code == 128 + signal.SIGKILL
  assert "process 0 ended first, killed by SIGKILL" in err
  assert not any(pathlib.Path(f"/proc/{child}").exists() for child in children)


@pytest.mark.slow
@pytest.mark.fault_row(4)
@pytest.mark.parametrize(
  ("hurt", "option", "message"),
  [
    (
      "raise ValueError('bad luck')",
      "--config.train.step_timeout=0",
      "process 1 ended: ValueError: bad luck; all processes end",
    ),
    (
      "time.sleep(600)",
      "--config.train.step_timeout=6",
      "process 1 is stuck: no step has ended for",
    ),
    (
      "os.kill(os.getpid(), 19)",
      "--config.train.step_timeout=300",
      "process 1 has sent no heartbeat for",
    ),
  ],
  ids=["exception", "stuck", "stopped"],
)
def test_all_end_with_one_line_that_names_the_culprit(
  launch, fresh_workdir, hurt, option, message
):
  code = HURT.format(what=hurt)
  process = launch(fresh_workdir.root, option, code=code)
  while not any(row["step"] >= 2 for row in _rows(fresh_workdir.root)):
    assert process.poll() is None, process.communicate()
    time.sleep(0.05)
  code, err = _end(process)
  assert code == 1
  assert f"[0] dpr-jax: {message}" in err


def test_a_watch_knows_what_is_overdue(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(multiprocess.time, "monotonic", lambda: now[0])
  watch = multiprocess.Watch(0.0)
  now[0] = 1000.0  # compiling
  assert watch.overdue() is None
  for step in (1, 2, 3):
    watch.begin(step)
    now[0] += 8.0
    watch.end(step)
  now[0] += 79.0
  assert watch.overdue() is None
  now[0] += 2.0
  assert watch.overdue() == 81.0
  with watch.paused():
    assert watch.overdue() is None
  assert watch.overdue() is None  # the pause was no step's
  now[0] += 81.0
  watch.close()
  assert watch.overdue() is None


def test_one_process_needs_no_exchange():
  assert multiprocess.first_alone(lambda: 3) == 3
  multiprocess.barrier()
  multiprocess.finish()
  with multiprocess.in_turn():
    pass
