"""Programs that a command starts: their output, their end, and ours."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from dpr_jax.core import child_processes, signals

pytestmark = pytest.mark.processes

# Says when it is ready, and what ended it.
_WAITS = """
import signal, sys, time
def end(number, frame):
  print("ended by", number, flush=True)
  sys.exit(7)
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
time.sleep(60)
"""


def _wait_for(path, words):
  for _ in range(600):
    if path.exists() and words in path.read_text():
      return
    time.sleep(0.05)
  raise AssertionError(f"{path} never had {words!r}")


def test_exit_status_and_output(tmp_path):
  """Both streams are appended."""
  log = tmp_path / "log"
  log.write_text("before\n")
  program = "import sys; print('out'); print('err', file=sys.stderr); exit(3)"
  arguments = [sys.executable, "-u", "-c", program]
  assert child_processes.run_program(arguments, log) == 3
  assert log.read_text() == "before\nout\nerr\n"


def test_a_signal_is_passed_on(tmp_path):
  """The program ends by itself before the exception is raised here."""
  log = tmp_path / "log"

  def stop():
    _wait_for(log, "ready")
    os.kill(os.getpid(), signal.SIGTERM)

  before = {number: signal.getsignal(number) for number in signals.SIGNALS}
  try:
    signals.listen()
    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(signals.Interrupted, match="SIGTERM"):
      child_processes.run_program([sys.executable, "-c", _WAITS], log)
    thread.join()
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
  assert log.read_text() == "ready\nended by 15\n"


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_it_does_not_outlive_a_killed_parent(tmp_path, environment):
  """It gets SIGTERM, so that a training saves."""
  log = tmp_path / "log"
  parent = (
    "import pathlib, sys; from dpr_jax.core import child_processes;"
    "child_processes.run_program([sys.executable, '-c', sys.argv[1]],"
    " pathlib.Path(sys.argv[2]))"
  )
  with subprocess.Popen(
    [sys.executable, "-c", parent, _WAITS, str(log)], env=environment
  ) as process:
    _wait_for(log, "ready")
    process.kill()
  _wait_for(log, "ended by 15")
