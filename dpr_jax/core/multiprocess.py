"""Several processes that do one run together, and end together.

The only place that knows `jax.distributed`.  Every process runs the same
command.  What only the first does (it reads questions, it writes files) stands
in `first_alone`; arrays go over the devices, by JAX's own collectives
(`array_of_first`, `gather`).  Decisions, barriers and pulses go through JAX's
coordination service, a small store of keys in process 0.

A thread of every process (`process_guard`) ends it with one clear line that
names the culprit when another has failed, has not been heard of, or has not
finished a step in time.  Where the main thread hangs in a collective nothing
else could.  With one process none of this is needed, nor is JAX imported.
"""

import contextlib
import itertools
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging

from dpr_jax.core import errors

LEAST_TIMEOUT = 30.0
_numbers = itertools.count()  # of exchanges; the same in every process
_guard: Any = None  # of `process_guard`, where there are several
_alone = False  # within `first_alone`, in the first process


def number() -> int:
  """Of this process, from 0."""
  return sys.modules["jax"].process_index() if _are_several() else 0


def count() -> int:
  """Of the processes that run this code: 1 within `first_alone`, else all."""
  if _alone or not _are_several():
    return 1
  return sys.modules["jax"].process_count()


def _are_several() -> bool:
  """Does not start JAX: it takes a second, and may not be needed."""
  jax = sys.modules.get("jax")
  return jax is not None and jax.distributed.is_initialized()


def is_first() -> bool:
  """True for the one that writes what all have in common."""
  return number() == 0


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
  import jax

  from dpr_jax.core import process_guard

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
  _guard = process_guard.Guard()
  _guard.start()


def finish() -> None:
  """To be called when all is done: waits for the others.

  The first goes last: with it goes the service that the others take leave of,
  and C++ aborts who finds it gone.
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
  import jax

  from dpr_jax.core import process_guard

  traceback.print_exception(error)
  if isinstance(error, jax.errors.JaxRuntimeError):
    # A collective breaks when a peer dies: the guard will know which.
    time.sleep(process_guard.SILENT_SECONDS + 5 * process_guard.POLL_SECONDS)
  last = str(error).strip().splitlines() or [""]
  fail(1, f"{type(error).__name__}: {last[0]}")


def barrier() -> None:
  """Returns when all processes are here."""
  if count() == 1:
    return
  from dpr_jax.core import process_guard

  key = f"{process_guard.ROOM}/barrier/{next(_numbers)}"
  process_guard.tell(f"{key}/{number()}", "here")
  for other in range(count()):
    process_guard.wait_for(f"{key}/{other}")


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
  from jax.experimental import multihost_utils

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
  from jax.experimental import multihost_utils

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
