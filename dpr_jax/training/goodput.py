"""Where the wall time of a training run goes: goodput, and what is lost to it.

Every second between the start of the loop and its end is charged to one cause,
so that all causes add up to the wall time.  Goodput is the share of `STEPS`.
Columns of `metrics.jsonl` hold the totals of all calls that continued the run;
a call that resumes reads them there, and charges the time of the steps that
were lost to "restart".
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dpr_jax.models import bert, flops

STEPS = "steps"
# Cause to its words in the line at the end of a run.
LOST = {
  "start": "starting",
  "compile": "compiling",
  "data": "waiting for data",
  "checkpoint": "saving checkpoints",
  "evaluation": "evaluating",
  "round": "mining between rounds",
  "restart": "lost to restarts",
}
_COLUMN = "lost_{}_seconds"


class Goodput:
  """The clock of one call of the loop."""

  def __init__(
    self,
    flops: Callable[[Mapping[str, Any]], int] | None = None,
    peak: float | None = None,
  ):
    """Starts the clock; what comes first is charged to "start".

    Args:
      flops: function from this process's batch to the FLOPs that its texts
        need without padding; None = not known.
      peak: FLOPs per second of one device at best; None = not known.
    """
    self._seconds = dict.fromkeys((STEPS, *LOST), 0.0)
    self._cause, self._since = "start", time.monotonic()
    self._earlier = 0.0  # seconds in steps in earlier calls
    self._flops, self._peak = flops, peak
    self._sent: deque[int] = deque()  # FLOPs of steps whose metrics are awaited
    self._done = 0

  def resume(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
    """Adds what earlier calls spent; their steps after `step` are lost.

    The time so far is of a restart too.  Nothing is known of the time between
    two calls, nor of rows before this was recorded.

    Args:
      rows: rows of `metrics.jsonl` of the earlier calls, in their order.
      step: step of the checkpoint that is resumed from; 0 = a new run.
    """
    rows = [row for row in rows if "run_seconds" in row]
    kept = [row for row in rows if row["step"] <= step]
    self._charge(self._cause)
    if step:
      self._seconds["restart"] += self._seconds["start"]
      self._seconds["start"], self._cause = 0.0, "restart"
    if not rows:
      return
    until = kept[-1] if kept else {"run_seconds": 0.0}
    self._seconds["restart"] += rows[-1]["run_seconds"] - until["run_seconds"]
    lost = {name: until.get(_COLUMN.format(name), 0.0) for name in LOST}
    for name, seconds in lost.items():
      self._seconds[name] += seconds
    self._earlier = until["run_seconds"] - sum(lost.values())
    self._seconds[STEPS] += self._earlier

  def begin(self) -> None:
    """The first step is next: from now on the time is of steps."""
    self._charge(self._cause)
    self._cause = STEPS

  @contextlib.contextmanager
  def lost_to(self, cause: str) -> Iterator[None]:
    """A block whose time is lost to a cause; the innermost block counts."""
    self._charge(self._cause)
    outer, self._cause = self._cause, cause
    try:
      yield
    finally:
      self._charge(cause)
      self._cause = outer

  @contextlib.contextmanager
  def waiting(self, running: Any) -> Iterator[None]:
    """A block that waits for data.

    It is lost only if the devices have become idle: not while they compute.

    Args:
      running: arrays that the devices compute; None = they are idle.
    """
    self._charge(self._cause)
    yield
    arrays = jax.tree.leaves(running)
    idle = all(array.is_ready() for array in arrays)
    self._charge("data" if idle else self._cause)

  @contextlib.contextmanager
  def compiling(self, seconds: Callable[[], float]) -> Iterator[None]:
    """A block that may trace and compile, among other work.

    Args:
      seconds: function that returns the seconds that all such work has taken.
    """
    self._charge(self._cause)
    before = seconds()
    yield
    self._charge("compile", at_most=seconds() - before)
    self._charge(self._cause)

  def _charge(self, cause: str, at_most: float = float("inf")) -> None:
    """Charges the time since the last charge, or a part of it."""
    spent = min(time.monotonic() - self._since, at_most)
    self._seconds[cause] += spent
    self._since += spent

  def sent(self, batch: Mapping[str, Any]) -> None:
    """Call when a step is sent to the devices, with its batch."""
    if self._flops is not None:
      self._sent.append(self._flops(batch))

  def columns(self, seconds: float) -> dict[str, float]:
    """Columns for the oldest step that was sent, whose metrics have arrived.

    Args:
      seconds: time of the step.
    """
    row = {}
    if self._sent:
      flops = self._sent.popleft()
      self._done += flops
      row["useful_flops_per_second"] = flops / seconds
      if self._peak:
        row["mfu"] = flops / seconds / self._devices_peak
    return row | self._totals()

  def _totals(self) -> dict[str, float]:
    self._charge(self._cause)
    total = sum(self._seconds.values())
    lost = {
      _COLUMN.format(name): round(self._seconds[name], 3)
      for name in LOST
      if self._seconds[name]
    }
    return {
      "run_seconds": round(total, 3),
      "goodput": self._seconds[STEPS] / total if total else 0.0,
      **lost,
    }

  def summary(self) -> dict[str, float]:
    """The record of the run; FLOPs are of this call's steps alone."""
    record = self._totals()
    own = self._seconds[STEPS] - self._earlier
    if self._done and own:
      record["useful_flops_per_second"] = self._done / own
      if self._peak:
        record["mfu"] = self._done / own / self._devices_peak
    return record

  def line(self, name: str, steps: int) -> str:
    """The summary as one line; causes below half a percent are left out.

    Args:
      name: name of the stage.
      steps: steps done, those of earlier calls included.
    """
    record = self.summary()
    total = record["run_seconds"]
    parts = [f"{100 * record['goodput']:.0f} % in steps"]
    for cause, words in LOST.items():
      share = 100 * record.get(_COLUMN.format(cause), 0.0) / max(total, 1e-9)
      if share >= 0.5:
        parts.append(f"{share:.0f} % {words}")
    said = f"{name}: {steps} steps in {total:.0f} s: {', '.join(parts)}"
    if "mfu" in record:
      return f"{said}; {100 * record['mfu']:.0f} % of the devices' peak"
    if "useful_flops_per_second" in record:
      rate = record["useful_flops_per_second"] / 1e9
      return f"{said}; {rate:.1f} GFLOP/s without padding"
    return said

  @property
  def _devices_peak(self) -> float:
    return self._peak * jax.local_device_count()


def flops_of(
  config: bert.BertConfig,
) -> Callable[[Mapping[str, Any]], int]:
  """Function from a batch to the FLOPs of training on its texts."""
  return lambda batch: flops.training_flops(config, text_lengths(batch))


def text_lengths(batch: Any) -> np.ndarray:
  """Tokens of each text of a batch, in any of its layouts.

  Padded texts have a `mask`, the reader's inputs and the tiles of packed rows
  have `lengths`.
  """
  if isinstance(batch, Mapping):
    if "mask" in batch:
      return np.asarray(batch["mask"]).sum(axis=-1).ravel()
    if "lengths" in batch:
      return np.asarray(batch["lengths"]).ravel()
    batch = list(batch.values())
  if not isinstance(batch, list | tuple):
    return np.zeros(0, int)
  return np.concatenate(
    [np.zeros(0, int), *(text_lengths(part) for part in batch)]
  )
