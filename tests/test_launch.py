"""Tests of `launch/cpu_emulate.py` with small children and one real psum."""

import os
import pathlib
import runpy
import signal
import subprocess
import sys
import time
import types

import pytest

pytestmark = pytest.mark.processes

# What a child does first: its number, and a way to wait for a signal.
PRELUDE = """
import os, signal, sys, time
number = int(os.environ["DPR_JAX_PROCESS_ID"])
def on(number, action): signal.signal(number, lambda *_: action())
"""

PSUM = """
import os
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", int(os.environ["DPR_JAX_CPU_DEVICES"]))
address = os.environ["DPR_JAX_COORDINATOR"]
number = int(os.environ["DPR_JAX_PROCESS_ID"])
jax.distributed.initialize(
  address,
  int(os.environ["DPR_JAX_NUM_PROCESSES"]),
  number,
  coordinator_bind_address=address if number == 0 else None,
)
import jax.numpy as jnp
local = jnp.arange(2.0) + 2 * number
total = jax.pmap(lambda x: jax.lax.psum(x, "cores"), axis_name="cores")(local)
print("sum", jax.device_count(), jax.local_device_count(), total.tolist())
jax.distributed.shutdown()
"""


@pytest.fixture
def launcher(repository):
  """Starts the launcher over a piece of Python; kills what is left of it."""
  started = []

  def start(
    code, *, processes=2, devices=1, grace=5.0, prelude=PRELUDE, arguments=()
  ):
    environment = dict(os.environ)
    environment.pop("XLA_FLAGS", None)  # 8 devices, for the tests themselves
    process = subprocess.Popen(
      [
        sys.executable,
        str(repository / "launch" / "cpu_emulate.py"),
        f"--processes={processes}",
        f"--devices={devices}",
        f"--grace={grace}",
        "--",
        sys.executable,
        "-c",
        prelude + code,
        *arguments,
      ],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      env=environment,
    )
    started.append(process)
    return process

  yield start
  for process in started:
    if process.poll() is None:
      process.kill()
    process.communicate()


def finish(process, timeout=60):
  out, err = process.communicate(timeout=timeout)
  return process.returncode, out.splitlines(), err.splitlines()


def is_alive(process_id: int) -> bool:
  """False for a zombie too: it only waits for somebody to look."""
  try:
    os.kill(process_id, 0)
    if sys.platform != "linux":
      return True
    stat = pathlib.Path(f"/proc/{process_id}/stat").read_text()
  except (ProcessLookupError, FileNotFoundError):
    return False
  return stat.rpartition(")")[2].split()[0] != "Z"


def test_every_line_has_its_process_in_front(launcher):
  process = launcher(
    "print('first'); print('second of', number)\n"
    "print('wrong', file=sys.stderr); sys.stdout.write('no newline')",
    processes=3,
  )
  code, out, err = finish(process)
  assert code == 0
  for number in range(3):
    assert [line for line in out if line.startswith(f"[{number}] ")] == [
      f"[{number}] first",
      f"[{number}] second of {number}",
      f"[{number}] no newline",
    ]
  assert sorted(err) == ["[0] wrong", "[1] wrong", "[2] wrong"]


def test_lines_arrive_while_the_processes_run(launcher):
  process = launcher("print('early', flush=True); time.sleep(60)")
  line = process.stdout.readline()
  assert line.endswith("early\n")
  assert process.poll() is None


def test_children_are_told_who_they_are(launcher):
  process = launcher(
    "print(*(os.environ['DPR_JAX_' + name] for name in ('COORDINATOR',"
    " 'NUM_PROCESSES', 'PROCESS_ID', 'CPU_DEVICES')))",
    devices=4,
  )
  code, out, _ = finish(process)
  assert code == 0
  fields = sorted(line.split()[1:] for line in out)
  coordinator = fields[0][0]
  host, _, port = coordinator.partition(":")
  assert host == "127.0.0.1"
  assert 1024 <= int(port) < 65536
  assert fields == [[coordinator, "2", "0", "4"], [coordinator, "2", "1", "4"]]


def test_first_failure_stops_the_others_and_gives_the_code(launcher):
  start = time.monotonic()
  process = launcher(
    "print(os.getpid(), flush=True)\n"
    "if number == 1: time.sleep(0.3); sys.exit(7)\n"
    "time.sleep(60)",
    processes=3,
  )
  code, out, err = finish(process)
  assert code == 7
  assert time.monotonic() - start < 30
  assert "cpu_emulate: process 1 ended first, exit code 7; stopping the" in (
    "\n".join(err)
  )
  assert len(out) == 3
  assert not any(is_alive(int(line.split()[1])) for line in out)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_abort_of_the_peers_does_not_hide_the_first_cause(launcher, tmp_path):
  # As under jax.distributed: one is killed, the other aborts because of it.
  process = launcher(
    "note = f'{sys.argv[1]}/killed'\n"
    "if number == 1:\n"
    "  os.symlink(str(os.getpid()), note); os.kill(os.getpid(), 9)\n"
    "while not os.path.islink(note): time.sleep(0.001)\n"
    "stat = f'/proc/{os.readlink(note)}/stat'\n"
    "while os.path.exists(stat) and ') Z' not in open(stat).read():\n"
    "  time.sleep(0.001)\n"
    "os.abort()",
    arguments=[str(tmp_path)],
  )
  code, _, err = finish(process)
  assert code == 128 + signal.SIGKILL
  assert "process 1 ended first, killed by SIGKILL" in "\n".join(err)


def test_of_several_that_ended_an_abort_is_the_consequence(repository):
  path = repository / "launch" / "cpu_emulate.py"
  module = runpy.run_path(str(path))
  one = types.SimpleNamespace(has_ended=lambda: True, how=lambda: "somehow")
  launcher = module["Launcher"](grace=1.0)
  launcher.children = [
    types.SimpleNamespace(**vars(one), number=0, exit_code=134),
    types.SimpleNamespace(**vars(one), number=1, exit_code=137),
  ]
  for child in launcher.children:
    child.signal = lambda number: None
  launcher._notice_ends()
  launcher.close()
  assert launcher.first_failure.number == 1


def test_a_child_that_ignores_sigterm_is_killed_after_the_grace(launcher):
  process = launcher(
    "on(signal.SIGTERM, lambda: print('not yet', flush=True))\n"
    "print('ready', flush=True)\n"
    "if number == 0: time.sleep(0.5); sys.exit(3)\n"
    "while True: time.sleep(0.1)",
    grace=1.0,
  )
  code, out, err = finish(process)
  assert code == 3
  assert "[1] not yet" in out
  assert "cpu_emulate: process 1 ended too, killed by SIGKILL" in err


def test_what_a_child_started_ends_with_it(launcher):
  process = launcher(
    "import subprocess\n"
    "print(subprocess.Popen(['sleep', '60']).pid, flush=True)",
    processes=1,
  )
  code, out, _ = finish(process, timeout=30)
  assert code == 0
  deadline = time.monotonic() + 5
  while is_alive(int(out[0].split()[1])) and time.monotonic() < deadline:
    time.sleep(0.05)
  assert not is_alive(int(out[0].split()[1]))


@pytest.mark.parametrize(
  ("number", "expected"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_signals_are_passed_on(launcher, number, expected):
  process = launcher(
    "def save(): time.sleep(0.3); print('saved', flush=True); sys.exit(143)\n"
    "on(signal.SIGTERM, save); on(signal.SIGINT, save)\n"
    "print('ready', flush=True)\n"
    "while True: time.sleep(0.1)"
  )
  for _ in range(2):
    assert process.stdout.readline().endswith("ready\n")
  process.send_signal(number)
  code, out, _ = finish(process)
  assert code == expected
  assert sorted(out) == ["[0] saved", "[1] saved"]


def test_a_second_signal_kills(launcher):
  process = launcher(
    "on(signal.SIGTERM, lambda: print('busy', flush=True))\n"
    "print('ready', flush=True)\n"
    "while True: time.sleep(0.1)",
    grace=600.0,
  )
  for word in ("ready", "busy"):
    for _ in range(2):
      assert process.stdout.readline().endswith(f"{word}\n")
    process.send_signal(signal.SIGTERM)
  assert finish(process, timeout=30)[0] == 143


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_children_end_when_the_launcher_is_killed(launcher):
  process = launcher("print(os.getpid(), flush=True); time.sleep(60)")
  ids = [int(process.stdout.readline().split()[1]) for _ in range(2)]
  process.kill()
  deadline = time.monotonic() + 10
  while any(map(is_alive, ids)) and time.monotonic() < deadline:
    time.sleep(0.05)
  assert not any(map(is_alive, ids))


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--processes=0", "--devices=1", "--", "true"], "--processes=0"),
    (["--processes=1", "--devices=0", "--", "true"], "--devices=0"),
    (["--processes=1", "--devices=1"], "command"),
    (["--processes=1", "--devices=1", "--", "no-such"], "'no-such'"),
  ],
)
def test_bad_arguments_are_one_clear_line(repository, arguments, message):
  process = subprocess.run(
    [sys.executable, repository / "launch" / "cpu_emulate.py", *arguments],
    capture_output=True,
    text=True,
    check=False,
  )
  assert process.returncode == 2
  assert message in process.stderr.splitlines()[-1]


def test_a_real_psum_over_two_processes_with_two_devices(launcher):
  process = launcher(PSUM, devices=2, prelude="")
  code, out, err = finish(process, timeout=180)
  assert code == 0, err
  # Gloo's threads print too, in pieces that may break its own lines.
  out = [line for line in out if "sum" in line]
  # 0 + 1 from one process and 2 + 3 from the other, on each of the cores.
  assert sorted(out) == ["[0] sum 4 2 [6.0, 6.0]", "[1] sum 4 2 [6.0, 6.0]"]
