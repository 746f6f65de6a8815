"""Standard input and output whose errors do not end a session.

Characters that the terminal cannot show are escaped, a line of stdin that
cannot be decoded is reported as one bad line, and a closed pipe
(`dpr-jax ... | head -1`) ends a command quietly.
"""

import contextlib
import os
import select
import sys
from collections.abc import Iterator

from dpr_jax.core import errors

CLOSED = 141  # exit status of a process killed by SIGPIPE: 128 + 13


def escape_what_cannot_be_shown() -> None:
  """From now on prints characters unknown to the terminal as escapes."""
  for stream in (sys.stdout, sys.stderr):
    if hasattr(stream, "reconfigure"):
      stream.reconfigure(errors="backslashreplace")


def can_show(text: str) -> bool:
  """True if stdout can print a text without escapes."""
  try:
    text.encode(sys.stdout.encoding or "ascii")
  except UnicodeEncodeError:
    return False
  return True


def lines() -> Iterator[str | None]:
  """Lines of standard input without line ends; None = cannot be decoded.

  UTF-8 is tried first, then the terminal's encoding.
  """
  if sys.stdin is None:  # closed by the caller
    return
  if not hasattr(sys.stdin, "buffer"):
    yield from (line.rstrip("\r\n") for line in sys.stdin)
    return
  for line in sys.stdin.buffer:
    yield _decoded(line.rstrip(b"\r\n"))


def _decoded(line: bytes) -> str | None:
  for encoding in ("utf-8", sys.stdin.encoding):
    try:
      return line.decode(encoding)
    except UnicodeDecodeError:
      continue
  return None


def reader_is_gone() -> bool:
  """True if the other end of the stdout pipe is closed."""
  try:
    number = sys.stdout.fileno()
  except (AttributeError, OSError, ValueError):  # None, not a file, or closed
    return False
  watched = select.poll()
  watched.register(number, select.POLLOUT)
  return any(event & select.POLLERR for _, event in watched.poll(0))


@contextlib.contextmanager
def full_disk_refused() -> Iterator[None]:
  """A block that prints; `InputError` if stdout is a file on a full disk."""
  try:
    yield
  except BrokenPipeError:
    raise
  except OSError as error:
    _discard()
    raise errors.InputError(
      f"standard output cannot be written: {error.strerror}"
    ) from error


def flush() -> int:
  """Writes out what was printed.

  Returns:
    0, or CLOSED if the other end of the pipe is closed.

  Raises:
    InputError: see `full_disk_refused`.
  """
  try:
    with full_disk_refused():
      if sys.stdout is not None:
        sys.stdout.flush()
  except BrokenPipeError:
    _discard()
    return CLOSED
  return 0


def _discard() -> None:
  """Discards buffered output: else Python reports an error when it exits."""
  nowhere = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nowhere, sys.stdout.fileno())
  os.close(nowhere)
