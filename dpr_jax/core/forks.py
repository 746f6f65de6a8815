"""Detects use of JAX or FAISS objects in a child process after `fork()`.

JAX and FAISS run threads, and a forked child does not have them: objects loaded
before the fork would wait for them forever.  So these objects remember the
process that loaded them, and raise an error in any other.
"""

import os

_REASON = (
  "a child of fork() has none of the threads that JAX and FAISS need, and would"
  " wait forever: load it in the child, or start processes with"
  " multiprocessing.get_context('spawn')"
)


class ForkError(RuntimeError):
  """An object that was loaded in another process is used in this one."""


class Home:
  """The process in which an object was made."""

  def __init__(self):
    self._process = os.getpid()

  def check(self, owner: object) -> None:
    """Raises `ForkError` in any other process."""
    if os.getpid() != self._process:
      raise ForkError(
        f"this {type(owner).__name__} was loaded in process {self._process} and"
        f" is used in process {os.getpid()}: {_REASON}"
      )
