"""Handles SIGTERM and SIGINT: a command cleans up, and training saves first.

A signal raises `Interrupted` at the current line, so that temporary files are
removed.  Inside `deferred()` it is only recorded: training finishes its step,
saves a checkpoint and then ends.  A second signal ends it immediately.
"""

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(BaseException):
  """Ends the command; a BaseException, so that `except Exception` ignores it.

  Attributes:
    exit_code: 128 + the number of the signal: 130 or 143.
  """

  def __init__(self, number: int):
    super().__init__(f"interrupted by {signal.Signals(number).name}")
    self.exit_code = 128 + number


@dataclasses.dataclass
class Request:
  """The number of the recorded signal; None = none so far."""

  number: int | None = None


_deferred: list[Request | None] = []  # None = inside `at_once`


def _handle(number: int, frame: object) -> None:
  del frame
  innermost = _deferred[-1] if _deferred else None
  if innermost is not None and innermost.number is None:
    innermost.number = number
  else:
    raise Interrupted(number)


def listen() -> None:
  """From now on both signals raise `Interrupted`; main thread only."""
  for number in SIGNALS:
    signal.signal(number, _handle)


def ignore() -> None:
  """From now on both signals are ignored: the program is ending anyway."""
  if threading.current_thread() is threading.main_thread():
    for number in SIGNALS:
      signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def deferred() -> Iterator[Request]:
  """A block in which the first signal is recorded instead of raised.

  Without `listen` (when used as a library) no signals are recorded.
  """
  _deferred.append(Request())
  try:
    yield _deferred[-1]
  finally:
    _deferred.pop()


@contextlib.contextmanager
def at_once() -> Iterator[None]:
  """A block inside `deferred()` that a signal interrupts nevertheless.

  For long work that leaves nothing half-finished; the caller can still save.
  """
  _deferred.append(None)
  try:
    yield
  finally:
    _deferred.pop()
