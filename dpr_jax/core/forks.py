"""Objects that hold devices or threads, and `fork()`.

JAX and FAISS run threads, which a forked child does not have: what was loaded
before the fork waits for them there for ever.  So such objects remember their
process, and say so in any other.
"""

import os

_REASON = (
  "a child of fork() has none of the threads that JAX and FAISS need, and would"
  " wait for ever: load it in the child, or start processes with"
  " multiprocessing.get_context('spawn')"
)


class ForkError(RuntimeError):
  """Something that was loaded in another process cannot be used in this one."""


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
