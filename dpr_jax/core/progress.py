"""Progress of long work: a bar on a terminal, otherwise a log line at times.

Every long loop of every stage reports through `Progress`.  The lines are

  train: step 7/112, 13.9 s/step, 24:20 left, loss 0.217
  embed: 1,200/10,000 passages, 45 passages/s, 3:16 left
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
    """Starts the clock.

    Args:
      total: units to do, those done before included; None = not known.
      label: name of the work, at the beginning of each line.
      unit: what is counted, in the plural.
      first: units done before this call; they do not count for the speed.
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
    self._values: dict[str, str] = {}
    self._last_line = time.monotonic()
    self.start_clock()

  def start_clock(self) -> None:
    """Measures the speed from now on: what came before was other work."""
    self._started, self._first = time.monotonic(), self._count

  def exclude(self, seconds: float) -> None:
    """Does not count past seconds of other work (compiling) for the speed."""
    self._started = min(self._started + seconds, time.monotonic())

  def update(self, n: int = 1) -> bool | None:
    """Advances by `n` units."""
    self._count += n
    if self.disable:
      now = time.monotonic()
      if now - self._last_line >= SECONDS_BETWEEN_LINES:
        self._last_line = now
        self._log(now - self._started)
    return super().update(n)

  def show(self, values: dict[str, str]) -> None:
    """Sets the figures at the end of the bar or line: name to number."""
    self._values = values
    if not self.disable:
      self.set_postfix(values, refresh=False)

  def _log(self, seconds: float) -> None:
    """One line; with --log_json its numbers are fields of the object."""
    done = self._count - self._first
    fields = {"label": self._label, "unit": self._unit, "done": self._count}
    parts = [self._place()]
    if done and seconds > 0:
      parts.append(_speed(done, seconds, self._unit))
      fields["per_second"] = done / seconds
    if self._all:
      fields["total"] = self._all
      if done and seconds > 0:
        left = max(self._all - self._count, 0) * seconds / done
        parts.append(f"{clock(left)} left")
        fields["seconds_left"] = left
    for name, value in self._values.items():
      parts.append(f"{name} {value}")
      fields[name.replace(" ", "_").replace("-", "_")] = float(value)
    logging.info(
      "%s: %s",
      self._label,
      ", ".join(parts),
      extra={
        "fields": {
          key: float(f"{value:.4g}") if isinstance(value, float) else value
          for key, value in fields.items()
        }
      },
    )

  def _place(self) -> str:
    """`step 7/112`, `1,200/10,000 passages`; `1,200 rows` without a total."""
    place = f"{self._count:,}"
    if self._all:
      place += f"/{self._all:,}"
    if self._unit == "steps":
      return f"step {place}"
    return f"{place} {self._unit}"


def _speed(done: int, seconds: float, unit: str) -> str:
  """`45 passages/s`, or `13.9 s/step` where one takes over a second."""
  rate = done / seconds
  if rate >= 1:
    return f"{_short(rate)} {unit}/s"
  return f"{_short(1 / rate)} s/{unit.removesuffix('s')}"


def _short(number: float) -> str:
  """One decimal below 100 unless it is 0, none from there on."""
  if number >= 99.95:
    return f"{number:,.0f}"
  return f"{number:.1f}".removesuffix(".0")


def clock(seconds: float) -> str:
  """`m:ss`, from an hour on `h:mm:ss`."""
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f"{hours}:{minutes:02}:{rest:02}"
  return f"{minutes}:{rest:02}"
