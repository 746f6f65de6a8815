"""Child processes: a pool for work that holds Python's lock, and programs."""

import concurrent.futures
import contextlib
import ctypes
import multiprocessing
import os
import pathlib
import signal
import subprocess
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


# Asks for SIGTERM at the end of the parent, then becomes the program.  A
# function called between fork and exec would do, but JAX warns of such forks.
_LAUNCHER = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 15)
if os.getppid() == int(sys.argv[1]):
  os.execv(sys.argv[2], sys.argv[2:])
"""


def run_program(arguments: Sequence[str], log: pathlib.Path) -> int:
  """Runs a program to its end, and returns its exit status.

  An exception here, such as that of a signal, is passed on as SIGTERM, and
  raised when the program has ended; a second one kills it.  If this process is
  killed, the program gets SIGTERM.

  Args:
    arguments: path of the program, and its arguments.
    log: file that its output is appended to.
  """
  if sys.platform == "linux":
    launcher = (sys.executable, "-S", "-c", _LAUNCHER, str(os.getpid()))
    arguments = [*launcher, *arguments]
  with log.open("ab") as file:
    process = subprocess.Popen(
      arguments,
      stdin=subprocess.DEVNULL,
      stdout=file,
      stderr=subprocess.STDOUT,
      start_new_session=True,  # Ctrl-C reaches it once, from here
    )
    try:
      return process.wait()
    except BaseException:
      process.terminate()
      try:
        process.wait()
      except BaseException:
        process.kill()
        process.wait()
        raise
      raise
