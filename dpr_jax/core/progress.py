"""Progress that a person can watch: a bar on a terminal, else lines.

Every long loop of every stage shows itself through `Progress`.
"""

import os
import sys
import time

import tqdm
from absl import logging

SECONDS_BETWEEN_LINES = 10.0


class Progress(tqdm.tqdm):
  """A tqdm bar; where stderr is not a terminal, a log line every 10 seconds.

  With TQDM_DISABLE in the environment there are lines on a terminal, too.
  """

  def __init__(self, total: int | None, label: str, unit: str, first: int = 0):
    """Starts at `first` of `total` units."""
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
        rate = (self._count - self._first) / (now - self._started)
        logging.info(
          "%s: %d%s %s, %.1f %s/s%s",
          self._label,
          self._count,
          f" of {self._all}" if self._all else "",
          self._unit,
          rate,
          self._unit,
          self._suffix(),
        )
    return super().update(n)

  def show(self, **values: str) -> None:
    """Values that stand behind the bar or in the line."""
    self._values = values
    if not self.disable:
      self.set_postfix(values, refresh=False)

  def _suffix(self) -> str:
    values = getattr(self, "_values", {})
    return "".join(f", {key} {value}" for key, value in values.items())
