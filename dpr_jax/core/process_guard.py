"""The guard of one process among several, and the store that all look into.

A thread that shows the others a pulse, looks at theirs, and ends the process
with one clear line when another has failed, has not been heard of, or has not
finished a step in time.  Imported only where there are several processes: it
imports JAX.
"""

import contextlib
import faulthandler
import itertools
import json
import os
import sys
import threading
import time
from typing import Any

import jax

from dpr_jax.core import log_lines, multiprocess, signals

SILENT_SECONDS = 20.0  # without a pulse a process counts as gone
POLL_SECONDS = 1.0
ROOM = "dpr_jax"


class Guard(threading.Thread):
  """The thread that shows and takes pulses; ends the process if it must."""

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
    """Until stopped."""
    beats = itertools.count()
    while not self._stopped.wait(POLL_SECONDS):
      try:
        self._pulse(next(beats))
        self._look()
        self._unanswered = 0
      except jax.errors.JaxRuntimeError:
        self._unanswered += 1
        if self._unanswered >= 3 and self._number:
          self._end(1, "process 0, which coordinates the others, is gone")

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
          f"process {other} has not been heard of for {silent:.0f} s: it was"
          " killed or stopped, or its machine is gone",
        )
    waited = self.watch.overdue() if self.watch else None
    if waited:
      faulthandler.dump_traceback(all_threads=True)
      self._publish(1, who_is_stuck(steps, waited))

  def _publish(self, code: int, message: str) -> None:
    """Tells all, this process included; the first to say so is believed."""
    value = {"code": code, "message": message}
    tell(f"{ROOM}/failed/{self._number}", json.dumps(value))

  def fail(self, code: int, message: str) -> None:
    """As `multiprocess.fail`."""
    # The others may be gone first, and the launcher then asks us to go, which
    # must not show as another reason.
    signals.ignore()
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      self._publish(code, f"process {self._number} ended: {message}")
    while True:  # the thread ends us, when all have had time to look
      time.sleep(POLL_SECONDS)

  def _end(self, code: int, message: str) -> None:
    with self._ending:
      log_lines.failure(f"{message}; all processes end")
      sys.stdout.flush()
      sys.stderr.flush()
      if self._number == 0:  # with it goes the store that the others read
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


def _client() -> Any:
  # Private in JAX, and used here alone: it has no public name for its key-value
  # store, and the guard must hear of a failure while a collective hangs.
  from jax._src import distributed

  return distributed.global_state.client


def tell(key: str, value: str) -> None:
  """Sets the value of a key, for all processes."""
  _client().key_value_set(key, value, allow_overwrite=True)


def all_in(folder: str) -> list[tuple[str, str]]:
  """Keys that begin with `folder`, with their values."""
  return _client().key_value_dir_get(folder)


def wait_for(key: str) -> str:
  """The value of a key, as soon as it has one; the guard ends a vain wait."""
  while True:
    try:
      return _client().blocking_key_value_get(key, 2000)
    except jax.errors.JaxRuntimeError as error:
      if "DEADLINE_EXCEEDED" not in str(error):
        raise
