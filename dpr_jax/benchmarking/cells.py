"""What the cells of benchmarks share: processes that measure one thing each.

A cell is started by `harness.run_cell`.  It reads its task, JSON, from standard
input and writes its measurements to the file `result`.
"""

import json
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

from dpr_jax.core import errors, memory
from dpr_jax.core import workdir as workdir_lib

_SAMPLE_SECONDS = 0.02


def main(measure: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
  """Reads the JSON, measures, writes the JSON; exits with 2 on bad input.

  Args:
    measure: function from the task to the measurements.
  """
  spec = json.load(sys.stdin)
  try:
    found = measure(spec)
  except errors.InputError as error:
    print(" ".join(str(error).split()), file=sys.stderr)
    sys.exit(2)
  workdir_lib.write_json(spec["result"], found)


class PeakMemory:
  """Measures the peak memory of this process inside the block.

  Attributes:
    anonymous: peak of the memory that is not mapped from files, which the
      system cannot drop, in bytes; None = not reported.
    grown: `anonymous` minus the memory at the start of the block.
    resident: largest resident set of this process so far, mapped files
      included; None = not reported.
  """

  def __init__(self, children: bool = False):
    """Args: children: whether the memory of child processes is added."""
    self._children = children

  def __enter__(self) -> "PeakMemory":
    self._before = self.anonymous = self._now()
    self._done = threading.Event()
    self._thread = threading.Thread(target=self._watch, daemon=True)
    self._thread.start()
    return self

  def _watch(self) -> None:
    while not self._done.wait(_SAMPLE_SECONDS):
      self._look()

  def _now(self) -> int | None:
    own = memory.status("RssAnon")
    if own is None or not self._children:
      return own
    return own + sum(
      memory.status("RssAnon", child) or 0 for child in memory.children()
    )

  def _look(self) -> None:
    now = self._now()
    if now is not None:
      self.anonymous = max(self.anonymous or 0, now)

  def __exit__(self, *_) -> None:
    self._look()
    self._done.set()
    self._thread.join()
    self.resident = memory.status("VmHWM")
    known = self.anonymous is not None and self._before is not None
    self.grown = self.anonymous - self._before if known else None
