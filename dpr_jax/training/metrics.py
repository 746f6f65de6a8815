"""Training's record: `metrics.jsonl`, and progress a person can watch.

A row is a JSON object with `step`; training rows hold `loss`, `accuracy`, …,
dev rows `dev_loss`, `dev_average_rank`.  The file is only appended to; a
resumed run first cuts what lies after the checkpoint it resumes from.
"""

import contextlib
import json
import math
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from dpr_jax import progress, workdir


class MetricsLog:
  """Appends rows to `metrics.jsonl` and shows progress on a terminal."""

  def __init__(self, path: pathlib.Path, first_step: int, steps: int):
    """Opens the log of a run that goes on after `first_step`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
      _keep_rows_until(path, first_step)
    self._file = open(path, "a", encoding="utf-8")
    self._bar = progress.Progress(steps, "train", "steps", first_step)

  def write(self, row: Mapping[str, Any]) -> None:
    """Appends one row; it is on disk when this returns."""
    self._file.write(json.dumps(dict(row)) + "\n")
    self._file.flush()

  def advance(self, row: Mapping[str, Any]) -> None:
    """Moves the progress on by one step, with the figures of `row`."""
    self._bar.show(
      **{
        key: f"{row[key]:.3g}"
        for key in ("loss", "accuracy", "questions_per_second")
        if key in row
      }
    )
    self._bar.update()

  def close(self) -> None:
    """Ends the bar and closes the file."""
    self._bar.close()
    self._file.close()


class Timer:
  """Time since the last step, and the share of it spent waiting for data."""

  def __init__(self, questions: int):
    self._questions = questions
    self._first = self._last = time.monotonic()
    self._waited = 0.0

  def wait_for(self, loader) -> Any:
    """The loader's next batch; the wait is accounted for."""
    before = time.monotonic()
    batch = next(loader)
    self._waited += time.monotonic() - before
    return batch

  def lap(self) -> dict[str, float]:
    """Speed since the last lap."""
    now = time.monotonic()
    seconds = max(now - self._last, 1e-9)
    row = {
      "questions_per_second": self._questions / seconds,
      "data_wait_share": self._waited / seconds,
    }
    self._last, self._waited = now, 0.0
    return row

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """A block whose time is no step's."""
    began = time.monotonic()
    yield
    self._last += time.monotonic() - began

  def total(self) -> float:
    """Seconds since training began."""
    return time.monotonic() - self._first


def _keep_rows_until(path: pathlib.Path, step: int) -> None:
  """Drops rows after `step`, and a last line that a crash cut short."""
  rows = []
  for line in path.read_text(encoding="utf-8").splitlines():
    try:
      row = json.loads(line)
    except ValueError:
      continue
    if row["step"] <= step:
      rows.append(line)
  with workdir.replace_file(path) as temporary:
    temporary.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


def check_finite(step: int, row: Mapping[str, float], last_good: str) -> None:
  """Stops a run whose loss or gradient is NaN or infinite.

  Raises:
    FloatingPointError: with the step and the last good checkpoint.
  """
  for key in ("loss", "gradient_norm"):
    if not math.isfinite(row[key]):
      raise FloatingPointError(
        f"step {step}: {key} is {row[key]}; the last good checkpoint is"
        f" {last_good}; lower config.train.learning_rate or look at the batch"
      )
