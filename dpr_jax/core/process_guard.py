"""Guard thread of a process among several, and their shared key-value store.

The thread sends heartbeats, reads those of the other processes, and ends the
process with one line if another process has failed, sends no heartbeats, or
does not finish a step in time.  Imports JAX, so it is imported only if there
are several processes.
"""

import contextlib
import faulthandler
import itertools
import json
import os
import sys
import threading
import time

import jax

from dpr_jax.core import jax_unstable, log_lines, multiprocess, signals

SILENT_SECONDS = 20.0  # a process without a heartbeat for this long is dead
POLL_SECONDS = 1.0  # between heartbeats
ROOM = "dpr_jax"  # prefix of our keys in the store


class Guard(threading.Thread):
  """Sends and reads heartbeats; ends the process if another one has failed."""

  def __init__(self):
    super().__init__(name="dpr-jax guard", daemon=True)
    self.watch: multiprocess.Watch | None = None
    self._number = jax.process_index()
    self._stopped = threading.Event()
    self._ending = threading.Lock()
    self._heard: dict[str, tuple[str, float]] = {}
    self._unanswered = 0

  def stop(self) -> None:
    """Ends the thread."""
    self._stopped.set()
    self.join()

  def run(self) -> None:
    """Sends and reads heartbeats until stopped."""
    beats = itertools.count()
    while not self._stopped.wait(POLL_SECONDS):
      try:
        self._pulse(next(beats))
        self._look()
        self._unanswered = 0
      except jax.errors.JaxRuntimeError:
        self._unanswered += 1
        if self._unanswered >= 3 and self._number:
          self._end(1, "process 0, which coordinates the others, has died")

  def _pulse(self, beat: int) -> None:
    step = self.watch.step if self.watch else 0
    tell(f"{ROOM}/pulse/{self._number}", f"{beat} {step}")

  def _look(self) -> None:
    failed = sorted(all_in(f"{ROOM}/failed/"))
    if failed:
      found = json.loads(failed[0][1])
      self._end(found["code"], found["message"])
    now, steps = time.monotonic(), {}
    for key, pulse in all_in(f"{ROOM}/pulse/"):
      other = key.rpartition("/")[2]
      steps[int(other)] = int(pulse.split()[1])
      if self._heard.get(other, ("", 0.0))[0] != pulse:
        self._heard[other] = (pulse, now)
      silent = now - self._heard[other][1]
      if silent > SILENT_SECONDS:
        self._publish(
          1,
          f"process {other} has sent no heartbeat for {silent:.0f} s: it was"
          " killed or stopped, or its machine is down",
        )
    waited = self.watch.overdue() if self.watch else None
    if waited:
      faulthandler.dump_traceback(all_threads=True)
      self._publish(1, who_is_stuck(steps, waited))

  def _publish(self, code: int, message: str) -> None:
    """Stores the failure; every guard reads it and ends its process."""
    value = {"code": code, "message": message}
    tell(f"{ROOM}/failed/{self._number}", json.dumps(value))

  def fail(self, code: int, message: str) -> None:
    """As `multiprocess.fail`."""
    # If the others end first, the launcher sends SIGTERM to this process, which
    # must not hide the reason.
    signals.ignore()
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      self._publish(code, f"process {self._number} ended: {message}")
    while True:  # the guard thread ends the process after others have read it
      time.sleep(POLL_SECONDS)

  def _end(self, code: int, message: str) -> None:
    with self._ending:
      log_lines.failure(f"{message}; all processes end")
      sys.stdout.flush()
      sys.stderr.flush()
      # Process 0 hosts the store, so it lets the others read the failure first.
      if self._number == 0:
        time.sleep(3 * POLL_SECONDS)
      os._exit(code)


def who_is_stuck(steps: dict[int, int], waited: float) -> str:
  """A line that names the processes that are behind."""
  last = max(steps.values())
  behind = [str(n) for n, step in sorted(steps.items()) if step < last]
  if not behind:
    return f"no process has finished step {last} for {waited:.0f} s"
  return (
    f"process {', '.join(behind)} is stuck: no step has ended for"
    f" {waited:.0f} s, and it has not begun step {last} as others have"
  )


def tell(key: str, value: str) -> None:
  """Sets the value of a key, for all processes."""
  jax_unstable.key_value_store().key_value_set(key, value, allow_overwrite=True)


def all_in(folder: str) -> list[tuple[str, str]]:
  """(key, value) pairs of the keys that begin with `folder`."""
  return jax_unstable.key_value_store().key_value_dir_get(folder)


def wait_for(key: str) -> str:
  """Waits for a key and returns its value; has no time-out of its own."""
  while True:
    try:
      return jax_unstable.key_value_store().blocking_key_value_get(key, 2000)
    except jax.errors.JaxRuntimeError as error:
      if "DEADLINE_EXCEEDED" not in str(error):
        raise
