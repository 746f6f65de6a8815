"""Metrics of a training run: `metrics.jsonl`, progress lines, profiles.

A row is a JSON object with `step`; training rows hold `loss`, `accuracy`, …,
dev rows `dev_loss`, `dev_average_rank`.  The file is only appended to, except
that a resumed run first drops the rows after the checkpoint it resumes from.
"""

import contextlib
import json
import math
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from dpr_jax.core import progress
from dpr_jax.core import workdir as workdir_lib


class MetricsLog:
  """Appends rows to `metrics.jsonl` and shows progress.

  Of several processes only the first opens it; in the others `write`,
  `advance`, `start_clock` and `close` do nothing.
  """

  def __init__(self, path: pathlib.Path, label: str):
    """Writes and shows nothing before `open`.

    Args:
      path: of the file.
      label: name of the stage, at the beginning of progress lines.
    """
    self._path, self._label, self._file, self._bar = path, label, None, None
    self._compiled = 0.0  # seconds of compilation before the clock started

  def open(self, first_step: int, steps: int) -> list[dict[str, Any]]:
    """Opens the file of a run.

    Args:
      first_step: steps done before; 0 = a new run.
      steps: of the whole run.

    Returns:
      The rows that the file had, those after `first_step` included.

    Raises:
      DiskError: the file cannot be written.
    """
    rows = []
    with workdir_lib.writing(self._path):
      self._path.parent.mkdir(parents=True, exist_ok=True)
      if self._path.exists():
        rows = _keep_rows_until(self._path, first_step)
      self._file = open(self._path, "a", encoding="utf-8")
    self._bar = progress.Progress(steps, self._label, "steps", first_step)
    return rows

  def write(self, row: Mapping[str, Any]) -> None:
    """Appends one row; it is in the file when this returns.

    Raises:
      DiskError: the file cannot be written.
    """
    if self._file is not None:
      with workdir_lib.writing(self._path):
        self._file.write(json.dumps(dict(row)) + "\n")
        self._file.flush()

  def read(self) -> list[dict[str, Any]]:
    """All rows so far."""
    lines = self._path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]

  def has_dev_row(self, step: int) -> bool:
    """True if the file has the dev figures after `step` steps."""
    return any(
      row["step"] == step and any(key.startswith("dev_") for key in row)
      for row in self.read()
    )

  def start_clock(self, compiled: float) -> None:
    """Measures the steps' speed from now on; call it before the first one.

    Args:
      compiled: seconds so far, as in the columns `compile_seconds` and
        `cache_seconds`.
    """
    self._compiled = compiled
    if self._bar is not None:
      self._bar.start_clock()

  def advance(self, row: Mapping[str, Any]) -> None:
    """Advances the progress by one step and shows the figures of `row`."""
    if self._bar is None:
      return
    # Compiling happens once: with it, the time left would be far too long.
    columns = ("compile_seconds", "cache_seconds")
    compiled = sum(row.get(column, 0.0) for column in columns)
    compiled = max(compiled, self._compiled)
    self._bar.exclude(compiled - self._compiled)
    self._compiled = compiled
    shown = {}
    if "loss" in row:
      shown["loss"] = f"{row['loss']:.3g}"
    if "accuracy" in row:
      # The reader's is the share of gold passages that it ranks first.
      name = "ranking" if "rank_loss" in row else "in-batch"
      shown[f"{name} accuracy"] = f"{row['accuracy']:.2f}"
    self._bar.show(shown)
    self._bar.update()

  def close(self) -> None:
    """Ends the bar and closes the file."""
    if self._file is not None:
      self._bar.close()
      with contextlib.suppress(OSError):  # every row has been flushed
        self._file.close()


class Timer:
  """Speed of the steps, and the share of time spent waiting for data."""

  def __init__(self, questions: int, passages: int):
    """Starts the clock.

    Args:
      questions: per step, over all processes.
      passages: likewise.
    """
    self._questions, self._passages = questions, passages
    self._first = self._last = time.monotonic()
    self._waited = 0.0
    self._padding = 0.0

  def wait_for(self, loader) -> Any:
    """The loader's next batch; the wait is added to `data_wait_share`."""
    before = time.monotonic()
    batch = next(loader)
    self._waited += time.monotonic() - before
    self._padding = padding_share(batch)
    return batch

  def lap(self) -> dict[str, float]:
    """Metrics columns for the time since the last lap, in units a second."""
    now = time.monotonic()
    seconds = max(now - self._last, 1e-9)
    row = {
      "questions_per_second": self._questions / seconds,
      "passages_per_second": self._passages / seconds,
      "padding_share": self._padding,
      "data_wait_share": self._waited / seconds,
    }
    self._last, self._waited = now, 0.0
    return row

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Excludes the time of a block (evaluation, saving) from the speed."""
    began = time.monotonic()
    yield
    self._last += time.monotonic() - began

  def total(self) -> float:
    """Seconds since training began."""
    return time.monotonic() - self._first


def padding_share(batch: Mapping[str, Any]) -> float:
  """Share of a batch's token positions that hold no token, 0 to 1."""
  kinds: list[Any] = [batch.get("questions"), batch.get("passages")]
  if "inputs" in batch:  # the reader's
    inputs = batch["inputs"]
    kinds = [inputs["texts"] if isinstance(inputs, Mapping) else inputs]
  tokens = places = 0
  for texts in kinds:
    # Of the reader's padded inputs there are several groups.
    for part in [texts] if isinstance(texts, Mapping) else texts:
      if "tiles" in part:  # packed
        tokens += sum(int(tile["lengths"].sum()) for tile in part["tiles"])
        places += part["token_ids"].size
      elif "lengths" in part:
        tokens += int(part["lengths"].sum())
        places += part["ids"].size
      else:
        tokens += int(part["mask"].sum())
        places += part["mask"].size
  return 1.0 - tokens / places


class Profiler:
  """Records a trace of a range of steps, for TensorBoard or Perfetto."""

  def __init__(self, folder: pathlib.Path, steps: Sequence[int]):
    """Starts nothing yet.

    Args:
      folder: for the trace.
      steps: (first, last) step to trace, both included; () = none.
    """
    self._folder, self._steps, self._running = folder, tuple(steps), False

  def before(self, step: int) -> None:
    """Call before a step is dispatched."""
    if self._steps and step == self._steps[0]:
      jax.profiler.start_trace(self._folder)
      self._running = True

  def after(self, step: int, result: Any) -> None:
    """Call after a step is dispatched; waits for `result` of the last one."""
    if self._running and step == self._steps[1]:
      jax.block_until_ready(result)
      self.close()

  def close(self) -> None:
    """Ends and writes the trace, if one is running."""
    if self._running:
      self._running = False
      with workdir_lib.writing(self._folder):
        jax.profiler.stop_trace()
      logging.info(
        "profile of steps %d to %d written to %s", *self._steps, self._folder
      )


def _keep_rows_until(path: pathlib.Path, step: int) -> list[dict[str, Any]]:
  """Drops rows after `step`, and a last line that a crash left incomplete.

  Returns:
    All rows that there were.
  """
  rows, all_rows = [], []
  lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
  for number, line in enumerate(lines, start=1):
    try:
      row = json.loads(line)
      if row["step"] <= step:
        rows.append(line)
      all_rows.append(row)
    except (ValueError, KeyError, TypeError):
      if number < len(lines):
        logging.warning(
          "%s, line %d is not a row of metrics: removed", path, number
        )
  with workdir_lib.replace_file(path) as temporary:
    temporary.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
  return all_rows


def check_finite(step: int, row: Mapping[str, float], last_good: str) -> None:
  """Stops a run whose loss or gradient is NaN or infinite.

  Raises:
    FloatingPointError: names the step and the last good checkpoint.
  """
  for key in ("loss", "gradient_norm"):
    if not math.isfinite(row[key]):
      raise FloatingPointError(
        f"step {step}: {key} is {row[key]}; the last good checkpoint is"
        f" {last_good}; lower the learning rate, or check the data of this"
        " batch"
      )


def check_parameters(step: int, params: Any, last_good: str) -> None:
  """Stops a run before NaN or infinite parameters are saved.

  Raises:
    FloatingPointError: names the step and the last good checkpoint.
  """
  if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
    raise FloatingPointError(
      f"step {step}: parameters are not finite; the last good checkpoint is"
      f" {last_good}; lower the learning rate"
    )
