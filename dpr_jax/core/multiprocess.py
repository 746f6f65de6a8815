"""Runs one command on several processes: start, barriers, exchange, failure.

The only module that uses `jax.distributed`.  Every process runs the same
command.  Work of process 0 alone (reading questions, writing files) is wrapped
in `first_alone`; arrays are exchanged over the devices with JAX's collectives
(`core.collectives`).  Decisions, barriers and heartbeats go through
JAX's coordination service, a small key-value store in process 0.

Every process has a guard thread (`process_guard`), which ends the process with
one line if another process has failed, sends no heartbeats, or does not finish
a step in time.  A thread is needed because the main thread may hang in a
collective.  With one process, nothing of this is used and JAX is not imported.
"""

import contextlib
import itertools
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from absl import logging

from dpr_jax.core import errors, jax_unstable

LEAST_TIMEOUT = 30.0  # seconds
_numbers = itertools.count()  # numbers exchanges, equally in all processes
_guard: Any = None  # the `process_guard.Guard`; None with one process
_alone = False  # True within `first_alone`, in process 0


def number() -> int:
  """Number of this process, from 0."""
  return sys.modules["jax"].process_index() if _are_several() else 0


def count() -> int:
  """Number of processes that run this code: 1 within `first_alone`."""
  if _alone or not _are_several():
    return 1
  return sys.modules["jax"].process_count()


def _are_several() -> bool:
  """Whether there are several processes; does not import JAX (1 s)."""
  jax = sys.modules.get("jax")
  return jax is not None and jax.distributed.is_initialized()


def is_first() -> bool:
  """True in process 0, which writes the shared files."""
  return number() == 0


def start(pod: bool) -> None:
  """Connects to the other processes, before JAX is used.

  Args:
    pod: whether this is a TPU pod, where JAX finds the other processes.  If
      not, the variables DPR_JAX_COORDINATOR, DPR_JAX_PROCESS_ID and
      DPR_JAX_NUM_PROCESSES are used (`launch/cpu_emulate.py` sets them);
      without them there is one process.

  Raises:
    InputError: a variable is missing, or the processes do not connect.
  """
  global _guard
  address = os.environ.get("DPR_JAX_COORDINATOR")
  if not pod and not address:
    return
  import jax

  from dpr_jax.core import process_guard

  jax_unstable.survive_peers()  # the guard reports which one has died
  try:
    if pod:
      jax.distributed.initialize()
    else:
      me = int(os.environ["DPR_JAX_PROCESS_ID"])
      jax.distributed.initialize(
        address,
        int(os.environ["DPR_JAX_NUM_PROCESSES"]),
        me,
        coordinator_bind_address=address if me == 0 else None,
      )
  except (KeyError, ValueError, RuntimeError) as error:
    raise errors.InputError(
      f"the processes did not find each other: {error}; start them with"
      " launch/cpu_emulate.py, or on TPU hosts with --pod"
    ) from error
  if not is_first():
    logging.set_verbosity(logging.WARNING)
  _guard = process_guard.Guard()
  _guard.start()


def finish() -> None:
  """Waits for the other processes, then disconnects; called at the end.

  Process 0 exits last: it hosts the coordination service, and a process that
  disconnects after it is aborted by C++.
  """
  if _guard is None:
    return
  import jax

  from dpr_jax.core import process_guard

  barrier()
  _guard.stop()
  if is_first():
    time.sleep(3 * process_guard.POLL_SECONDS)
  jax.distributed.shutdown()


def fail(code: int, message: str) -> None:
  """Reports this process's failure to all processes and ends them.

  With several processes it does not return; with one it does nothing.
  """
  if _guard is None:
    return
  _guard.fail(code, message)


def fail_of(error: Exception) -> None:
  """`fail` for an unexpected error, after time to find a dead peer."""
  if _guard is None:
    return
  import jax

  from dpr_jax.core import process_guard

  traceback.print_exception(error)
  if isinstance(error, jax.errors.JaxRuntimeError):
    # A collective fails when a peer dies.  The guard needs some seconds to see
    # which one; its message names the cause, this error would not.
    time.sleep(process_guard.SILENT_SECONDS + 5 * process_guard.POLL_SECONDS)
  last = str(error).strip().splitlines() or [""]
  fail(1, f"{type(error).__name__}: {last[0]}")


def barrier() -> None:
  """Waits until all processes have reached this call."""
  if count() == 1:
    return
  from dpr_jax.core import process_guard

  key = f"{process_guard.ROOM}/barrier/{next(_numbers)}"
  process_guard.tell(f"{key}/{number()}", "here")
  for other in range(count()):
    process_guard.wait_for(f"{key}/{other}")


def first_alone(function: Callable[[], Any]) -> Any:
  """Calls `function` in process 0; all processes return its result.

  Within `function`, `count` is 1, so barriers and exchanges do not wait for the
  other processes.

  Args:
    function: its result must be JSON-serializable; an exception ends all
      processes.
  """
  global _alone
  if count() == 1:
    return function()
  from dpr_jax.core import process_guard

  key = f"{process_guard.ROOM}/told/{next(_numbers)}"
  if not is_first():
    return json.loads(process_guard.wait_for(key))
  _alone = True
  try:
    value = function()
  finally:
    _alone = False
  process_guard.tell(key, json.dumps(value))
  return value


@contextlib.contextmanager
def in_turn() -> Iterator[None]:
  """A block that process 0 executes first, then all others at once.

  Leaving it is a barrier for all processes.
  """
  if not is_first():
    barrier()
  yield
  if is_first():
    barrier()
  barrier()


def watch(timeout: float) -> "Watch":
  """Starts to watch the time that each step takes.

  Args:
    timeout: seconds per step; 0 = ten times the longest step so far, at least
      30 s.
  """
  if _guard is None:
    return Watch(timeout)
  _guard.watch = Watch(timeout)
  return _guard.watch


class Watch:
  """Measures how long the current step has taken.

  The first two steps, which include compilation, and `paused` blocks have no
  time limit.
  """

  def __init__(self, timeout: float):
    """See `watch`."""
    self.step = 0
    self._timeout, self._longest, self._ended = timeout, 0.0, 0
    self._since = time.monotonic()
    self._paused = 1  # until the second step has ended

  def begin(self, step: int) -> None:
    """To be called before a step is sent to the devices."""
    self.step = step

  def end(self, step: int) -> None:
    """To be called when the metrics of a step have arrived."""
    now = time.monotonic()
    self._ended += 1
    if self._ended == 2:
      self._paused -= 1
    elif not self._paused:
      self._longest = max(self._longest, now - self._since)
    self._since = now

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """A block without a time limit."""
    self._paused += 1
    try:
      yield
    finally:
      self._paused -= 1
      self._since = time.monotonic()

  def overdue(self) -> float | None:
    """Seconds since the last step ended, if over the limit; else None."""
    waited = time.monotonic() - self._since
    limit = self._timeout or max(LEAST_TIMEOUT, 10 * self._longest)
    return waited if not self._paused and waited > limit else None

  def close(self) -> None:
    """To be called after the last step."""
    self._paused += 1
