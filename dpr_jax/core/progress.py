"""Progress of long loops: a bar on a terminal, else a log line every 10 s.

All long loops of all stages use `Progress`.
"""

import os
import sys
import time

import tqdm
from absl import logging

SECONDS_BETWEEN_LINES = 10.0


class Progress(tqdm.tqdm):
  """A tqdm bar; if stderr is not a terminal, a log line every 10 seconds.

  With TQDM_DISABLE in the environment, lines are used on a terminal too.
  """

  def __init__(self, total: int | None, label: str, unit: str, first: int = 0):
    """Starts the display.

    Args:
      total: number of units at the end; None = not known.
      label: name of the loop, which begins the line.
      unit: plural name of the units, such as "steps".
      first: number of units that an earlier run has done; they do not count
        for the speed.
    """
    super().__init__(
      total=total,
      initial=first,
      desc=label,
      unit=f" {unit}",
      disable=bool(os.environ.get("TQDM_DISABLE")) or not sys.stderr.isatty(),
      dynamic_ncols=True,
    )
    self._label, self._unit, self._count = label, unit, first
    self._first, self._all = first, total
    self._started = self._said = time.monotonic()

  def update(self, n: int = 1) -> bool | None:
    """Moves on by `n` units."""
    self._count += n
    if self.disable:
      now = time.monotonic()
      if now - self._said >= SECONDS_BETWEEN_LINES:
        self._said = now
        logging.info("%s", self._line(now - self._started))
    return super().update(n)

  def _line(self, seconds: float) -> str:
    """`train: step 7/112, 13.9 s/step, 24:20 left, loss 0.5`."""
    total, unit = f"/{self._all}" if self._all else "", self._unit
    place = f"{self._count}{total} {unit}"
    if unit == "steps":
      place = f"step {self._count}{total}"
    parts = [f"{self._label}: {place}"]
    done = self._count - self._first
    if done and seconds:
      if seconds > done:  # less than one unit per second
        parts.append(f"{seconds / done:.1f} s/{unit.removesuffix('s')}")
      else:
        parts.append(f"{done / seconds:.1f} {unit}/s")
      if self._all and self._count < self._all:
        left = seconds / done * (self._all - self._count)
        parts.append(f"{self.format_interval(left)} left")
    return ", ".join(parts) + self._suffix()

  def show(self, **values: str) -> None:
    """Sets values to show after the bar or at the end of the line."""
    self._values = values
    if not self.disable:
      self.set_postfix(values, refresh=False)

  def _suffix(self) -> str:
    values = getattr(self, "_values", {})
    return "".join(f", {key} {value}" for key, value in values.items())
