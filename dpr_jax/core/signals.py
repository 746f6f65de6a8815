"""SIGTERM and SIGINT end a command in order, and never in the middle of a step.

A signal raises `Interrupted` wherever the program is, so that temporary files
are removed on the way out.  Inside `deferred()` it is only noted: training
finishes its step, saves, and then ends.  A second signal does not wait.
"""

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(BaseException):
  """Ends the command; no handler of ordinary errors may swallow it.

  Attributes:
    exit_code: 128 + the signal's number: 130 or 143.
  """

  def __init__(self, number: int):
    super().__init__(f"interrupted by {signal.Signals(number).name}")
    self.exit_code = 128 + number


@dataclasses.dataclass
class Request:
  """The signal that asked for an end, or None."""

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
  """From here on both signals raise `Interrupted`; main thread only."""
  for number in SIGNALS:
    signal.signal(number, _handle)


def ignore() -> None:
  """From here on neither signal does anything: the program is ending anyway."""
  if threading.current_thread() is threading.main_thread():
    for number in SIGNALS:
      signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def deferred() -> Iterator[Request]:
  """A block that is told of the first signal instead of being broken off.

  Without `listen` (in a program that uses us as a library) it never is.
  """
  _deferred.append(Request())
  try:
    yield _deferred[-1]
  finally:
    _deferred.pop()


@contextlib.contextmanager
def at_once() -> Iterator[None]:
  """A block inside `deferred()` that a signal breaks off all the same.

  For long work that leaves nothing half-done; the caller may still save.
  """
  _deferred.append(None)
  try:
    yield
  finally:
    _deferred.pop()
