"""Several processes that do one run together, and end together.

The only place that knows `jax.distributed`.  Every process runs the same
command.  What only the first does (it reads questions, it writes files) stands
in `first_alone`; arrays go over the devices, by JAX's own collectives
(`array_of_first`, `gather`).  Decisions, barriers and pulses go through JAX's
coordination service, a small store of keys in process 0.

Every process has a thread that shows it a pulse, looks at the others', and ends
the process with one clear line that names the culprit when another has failed,
has not been heard of, or has not finished a step in time.  Where the main
thread hangs in a collective nothing else could.
"""

import contextlib
import faulthandler
import itertools
import json
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from dpr_jax.core import errors, signals

SILENT_SECONDS = 20.0  # without a pulse a process counts as gone
POLL_SECONDS = 1.0
LEAST_TIMEOUT = 30.0
_ROOM = "dpr_jax"
_numbers = itertools.count()  # of exchanges; the same in every process
_guard: "Guard | None" = None
_alone = False  # within `first_alone`, in the first process


def number() -> int:
  """Of this process, from 0."""
  return jax.process_index()


def count() -> int:
  """Of the processes that run this code: 1 within `first_alone`, else all."""
  return 1 if _alone else jax.process_count()


def is_first() -> bool:
  """True for the one that writes what all have in common."""
  return jax.process_index() == 0


def start(pod: bool) -> None:
  """Meets the other processes; before JAX is used.

  Args:
    pod: on TPU hosts, where JAX finds the others by itself.  Otherwise
      `launch/cpu_emulate.py` says in the environment who they are, if anybody.

  Raises:
    InputError: the environment says only half of it, or nobody answers.
  """
  global _guard
  address = os.environ.get("DPR_JAX_COORDINATOR")
  if not pod and not address:
    return
  # Else C++ aborts a process whose peer is gone, before we can say which.
  jax.config.update("jax_enable_recoverability", True)
  # It would take SIGTERM from us: see `signals`.
  jax.config.update("jax_enable_preemption_service", False)
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
  _guard = Guard()
  _guard.start()


def finish() -> None:
  """To be called when all is done: waits for the others.

  The first goes last: with it goes the service that the others take leave of,
  and C++ aborts who finds it gone.
  """
  if _guard is None:
    return
  barrier()
  _guard.stop()
  if is_first():
    time.sleep(3 * POLL_SECONDS)
  jax.distributed.shutdown()


def fail(code: int, message: str) -> None:
  """Tells the others why this process ends, and ends it; does not return.

  Where the error may come of a peer's end, that is looked for first.
  """
  if _guard is None:
    return
  _guard.fail(code, message)


def fail_of(error: Exception) -> None:
  """`fail` for any error; of a broken connection, first looks for the cause."""
  if _guard is None:
    return
  traceback.print_exception(error)
  if isinstance(error, jax.errors.JaxRuntimeError):
    # A collective breaks when a peer dies: the guard will know which.
    time.sleep(SILENT_SECONDS + 5 * POLL_SECONDS)
  last = str(error).strip().splitlines() or [""]
  fail(1, f"{type(error).__name__}: {last[0]}")


def barrier() -> None:
  """Returns when all processes are here."""
  if count() == 1:
    return
  key = f"{_ROOM}/barrier/{next(_numbers)}"
  _tell(f"{key}/{number()}", "here")
  for other in range(count()):
    _wait_for(f"{key}/{other}")


def first_alone(function: Callable[[], Any]) -> Any:
  """The first process calls `function`, the others wait for what it returns.

  Within `function` it is the only process: whatever would wait for the others
  there does not.

  Args:
    function: returns something that JSON can hold; what it raises ends all.
  """
  global _alone
  if count() == 1:
    return function()
  key = f"{_ROOM}/told/{next(_numbers)}"
  if not is_first():
    return json.loads(_wait_for(key))
  _alone = True
  try:
    value = function()
  finally:
    _alone = False
  _tell(key, json.dumps(value))
  return value


def array_of_first(
  function: Callable[[], np.ndarray], shape: Sequence[int], dtype: Any
) -> np.ndarray:
  """The array that `function` returns in the first process, in all of them.

  A collective: where the others would wait for minutes, let them first wait in
  `first_alone` or `barrier`, which no time-out is for.

  Args:
    function: called in the first process alone; what it raises ends all.
    shape: of the array, the same in all processes.
    dtype: of the array; its items are a multiple of 4 bytes.
  """
  if count() == 1:
    return function()
  words = np.zeros(_words_shape(shape, dtype), np.uint32)
  if is_first():
    words = _words(np.asarray(function(), dtype).reshape(shape))
  # As whole numbers: the sum that this is would make 0 of -0.
  words = np.asarray(multihost_utils.broadcast_one_to_all(words))
  return words.view(dtype).reshape(shape)


def gather(array: np.ndarray) -> np.ndarray:
  """An array of every process, in all of them: [processes, ...].

  Args:
    array: of one shape and dtype in all processes; its items are a multiple of
      4 bytes.
  """
  if count() == 1:
    return array[None]
  words = np.asarray(multihost_utils.process_allgather(_words(array)))
  return words.view(array.dtype).reshape(count(), *array.shape)


def _words(array: np.ndarray) -> np.ndarray:
  """The bytes of an array as uint32: JAX has no int64 without being told."""
  return np.ascontiguousarray(array).reshape(-1).view(np.uint32)


def _words_shape(shape: Sequence[int], dtype: Any) -> tuple[int]:
  return (math.prod(shape) * np.dtype(dtype).itemsize // 4,)


@contextlib.contextmanager
def in_turn() -> Iterator[None]:
  """A block that the others enter when the first has left it; all leave it."""
  if not is_first():
    barrier()
  yield
  if is_first():
    barrier()
  barrier()


def watch(timeout: float) -> "Watch":
  """Watches over the steps of a run.

  Args:
    timeout: seconds; 0 = ten times the longest step so far, at least 30.
  """
  if _guard is None:
    return Watch(timeout)
  _guard.watch = Watch(timeout)
  return _guard.watch


class Watch:
  """Knows which step this process is at, and for how long.

  The first two steps, which are compiled, and what is `paused` may take as long
  as they do.
  """

  def __init__(self, timeout: float):
    """See `watch`."""
    self.step = 0
    self._timeout, self._longest, self._ended = timeout, 0.0, 0
    self._since = time.monotonic()
    self._paused = 1  # until the second step has ended

  def begin(self, step: int) -> None:
    """A step is about to be given to the cores."""
    self.step = step

  def end(self, step: int) -> None:
    """The metrics of a step are there."""
    now = time.monotonic()
    self._ended += 1
    if self._ended == 2:
      self._paused -= 1
    elif not self._paused:
      self._longest = max(self._longest, now - self._since)
    self._since = now

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """A block that no time-out is for."""
    self._paused += 1
    try:
      yield
    finally:
      self._paused -= 1
      self._since = time.monotonic()

  def overdue(self) -> float | None:
    """Seconds for which no step has ended, where that is too long."""
    waited = time.monotonic() - self._since
    limit = self._timeout or max(LEAST_TIMEOUT, 10 * self._longest)
    return waited if not self._paused and waited > limit else None

  def close(self) -> None:
    """No more steps."""
    self._paused += 1


class Guard(threading.Thread):
  """The thread that shows and takes pulses; ends the process if it must."""

  def __init__(self):
    super().__init__(name="dpr-jax guard", daemon=True)
    self.watch: Watch | None = None
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
        if self._unanswered >= 3 and not is_first():
          self._end(1, "process 0, which coordinates the others, is gone")

  def _pulse(self, beat: int) -> None:
    step = self.watch.step if self.watch else 0
    _tell(f"{_ROOM}/pulse/{number()}", f"{beat} {step}")

  def _look(self) -> None:
    failed = sorted(_all(f"{_ROOM}/failed/"))
    if failed:
      found = json.loads(failed[0][1])
      self._end(found["code"], found["message"])
    now, steps = time.monotonic(), {}
    for key, pulse in _all(f"{_ROOM}/pulse/"):
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
      self._publish(1, _who_is_stuck(steps, waited))

  def _publish(self, code: int, message: str) -> None:
    """Tells all, this process included; the first to say so is believed."""
    value = {"code": code, "message": message}
    _tell(f"{_ROOM}/failed/{number()}", json.dumps(value))

  def fail(self, code: int, message: str) -> None:
    """See the function `fail`."""
    # The others may be gone first, and the launcher then asks us to go, which
    # must not show as another reason.
    signals.ignore()
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      self._publish(code, f"process {number()} ended: {message}")
    while True:  # the thread ends us, when all have had time to look
      time.sleep(POLL_SECONDS)

  def _end(self, code: int, message: str) -> None:
    with self._ending:
      print(f"dpr-jax: {message}; all processes end", file=sys.stderr)
      sys.stdout.flush()
      sys.stderr.flush()
      if is_first():  # with it goes the store that the others read
        time.sleep(3 * POLL_SECONDS)
      os._exit(code)


def _who_is_stuck(steps: dict[int, int], waited: float) -> str:
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


def _tell(key: str, value: str) -> None:
  _client().key_value_set(key, value, allow_overwrite=True)


def _all(folder: str) -> list[tuple[str, str]]:
  return _client().key_value_dir_get(folder)


def _wait_for(key: str) -> str:
  """The value of a key, as soon as it has one; the guard ends a vain wait."""
  while True:
    try:
      return _client().blocking_key_value_get(key, 2000)
    except jax.errors.JaxRuntimeError as error:
      if "DEADLINE_EXCEEDED" not in str(error):
        raise
