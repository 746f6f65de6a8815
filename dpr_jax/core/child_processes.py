"""A pool of child processes for work that holds Python's lock."""

import concurrent.futures
import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any


@contextlib.contextmanager
def pool(
  workers: int, start: Callable[..., None], arguments: Sequence[Any]
) -> Iterator[concurrent.futures.Executor]:
  """An executor of new processes; tasks not begun are dropped on an error.

  Only this process handles signals; if it is killed, so are the children.

  Args:
    workers: number of processes.
    start: module-level function that each process calls first.
    arguments: its arguments, which are pickled.
  """
  with concurrent.futures.ProcessPoolExecutor(
    workers,
    mp_context=multiprocessing.get_context("spawn"),
    initializer=_begin,
    initargs=(os.getpid(), start, tuple(arguments)),
  ) as executor:
    try:
      yield executor
    except BaseException:
      executor.shutdown(wait=False, cancel_futures=True)
      raise


def _begin(
  parent: int, start: Callable[..., None], arguments: Sequence[Any]
) -> None:
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
  if sys.platform == "linux":  # if the parent is killed, so is this process
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
      os._exit(1)
  start(*arguments)
