"""`dpr-jax bench batch`: memory and speed of training for large batches.

Every cell (a batch size with one of `WAYS`) runs in a fresh process
(`batch_cell.py`), on a random BERT of `config.model.random_*` and random
tokens, so no data is needed.  A cell that is predicted not to fit is compiled
but not run.  The benchmark fails if the losses of the ways differ.
"""

import copy
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np
import rich.table
from absl import logging

from dpr_jax.benchmarking import harness
from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.evaluation import tables

BATCH_SIZES = (128, 1024, 8192)
REPEATS = 3
WAYS = {
  "plain": {"gradient_cache": False, "loss": "gathered"},
  "gradient cache": {"gradient_cache": True, "loss": "gathered"},
  "gradient cache, tiled loss": {"gradient_cache": True, "loss": "tiled"},
  "gradient cache, ring loss": {"gradient_cache": True, "loss": "ring"},
}
# Defaults if the config sets none: texts per chunk, passages per loss tile.
CHUNK_SIZE = 32
LOSS_TILE = 512
MEMORY_SHARE = 0.8  # share of available memory that a cell may need
TOLERANCE = 1e-4  # relative difference of losses


def bench(
  config: ml_collections.ConfigDict,
  *,
  cpu_devices: int,
  batch_sizes: Sequence[int] = BATCH_SIZES,
  repeats: int = 0,
  json_file: str | None = None,
) -> dict[str, Any]:
  """Measures every cell, prints the table, returns (and writes) the report.

  Args:
    config: the experiment; batch size and loss are replaced in every cell.
    cpu_devices: number of emulated devices; 0 = the machine's devices.
    batch_sizes: global batch sizes in questions.
    repeats: timed steps per cell, after an untimed one; 0 = `REPEATS`.
    json_file: file for the report, written after every cell; None = none.

  Raises:
    InputError: a batch size is not a multiple of the devices.
    RuntimeError: the losses of the ways differ.
  """
  for size in batch_sizes:
    if size < 1 or size % max(cpu_devices, 1):
      raise errors.InputError(
        f"--batch_sizes: {size} must be a positive multiple of the"
        f" {max(cpu_devices, 1)} devices"
      )
  repeats = repeats or REPEATS
  report: dict[str, Any] = {
    "bench": "batch",
    "machine": harness.machine(),
    "versions": harness.versions(),
    "settings": {
      "cpu_devices": cpu_devices,
      "repeats": repeats,
      "memory_share": MEMORY_SHARE,
      "config": config_lib.plain(cell_config(config, batch_sizes[0], "plain")),
    },
    "cells": [],
  }
  for size in batch_sizes:
    for way in WAYS:
      logging.info("batch of %d questions, %s", size, way)
      cell = {"questions": size, "way": way} | _run_cell(
        cell_config(config, size, way), cpu_devices, repeats
      )
      report["cells"].append(cell)
      logging.info("%s", _outcome(cell))
      if json_file:
        workdir_lib.write_json(json_file, report)
  tables.print_table(table(report))
  print(harness.machine_line(report))
  check_losses(report["cells"])
  return report


def cell_config(
  config: ml_collections.ConfigDict, questions: int, way: str
) -> ml_collections.ConfigDict:
  """The config of one cell."""
  config = copy.deepcopy(config)
  config.model.checkpoint = "random"
  train = config.train
  train.update(WAYS[way])
  train.batch_size = questions
  train.warmup_steps = 0
  if train.gradient_cache:
    train.chunk_size = train.chunk_size or CHUNK_SIZE
  if train.loss != "gathered":
    train.loss_tile = train.loss_tile or LOSS_TILE
  return config


def _run_cell(
  config: ml_collections.ConfigDict,
  cpu_devices: int,
  repeats: int,
  memory_share: float = MEMORY_SHARE,
) -> dict[str, Any]:
  """Runs `batch_cell` in a process of its own and returns its result."""
  with tempfile.TemporaryDirectory(prefix="dpr-jax-bench-") as folder:
    given, found = (pathlib.Path(folder) / f"{n}.json" for n in ("in", "out"))
    workdir_lib.write_json(given, config_lib.plain(config))
    spec = {
      "config": str(given),
      "cpu_devices": cpu_devices,
      "repeats": repeats,
      "memory_share": memory_share,
    }
    cell = harness.run_cell("batch_cell", spec, found)
  # A crash (out of memory after all) leaves open whether the cell fits.
  return {"fits": None, **cell} if "failure" in cell else cell


def check_losses(cells: Sequence[dict[str, Any]]) -> None:
  """Checks that all ways computed the same loss of the same batch.

  Raises:
    RuntimeError: the losses differ by more than `TOLERANCE`.
  """
  for size in sorted({cell["questions"] for cell in cells}):
    losses = {
      cell["way"]: cell["loss"]
      for cell in cells
      if cell["questions"] == size and cell["fits"]
    }
    values = np.array(list(losses.values()))
    if len(values) and np.ptp(values) > TOLERANCE * np.abs(values).max():
      raise RuntimeError(
        f"the ways of training disagree on the first loss of {size} questions:"
        f" {losses}"
      )


def table(report: dict[str, Any]) -> rich.table.Table:
  """The report as a table.

  Memory is that of all devices together: as predicted by the compiler for a
  step, and the process's resident set before the first step and at its peak.
  """
  found = rich.table.Table(
    title="Memory and speed of a step by batch size", title_justify="left"
  )
  found.add_column("questions", justify="right", no_wrap=True)
  found.add_column("way", no_wrap=True)
  for name in (
    "compiled GB",
    "at the start GB",
    "peak GB",
    "questions/s",
    "s/step (quartiles)",
  ):
    found.add_column(name, justify="right", no_wrap=True)
  previous = None
  for cell in report["cells"]:
    if previous not in (None, cell["questions"]):
      found.add_section()
    previous = cell["questions"]
    found.add_row(str(cell["questions"]), cell["way"], *_figures(cell))
  return found


def _figures(cell: dict[str, Any]) -> list[str]:
  if cell["fits"] is None:
    return ["-", "-", cell["failure"], "-", "-"]
  predicted = _gigabytes(cell["predicted_bytes"])
  if not cell["fits"]:
    return [predicted, "-", f"does not fit: {predicted} GB", "-", "-"]
  step = cell["step_seconds"]
  return [
    predicted,
    _gigabytes(cell["start_bytes"]),
    _gigabytes(cell["peak_bytes"]),
    f"{cell['questions_per_second']:.1f}",
    f"{step['median']:.2f} ({step['quartile1']:.2f} to"
    f" {step['quartile3']:.2f})",
  ]


def _gigabytes(size: int | None) -> str:
  return "-" if size is None else f"{size / harness.GIGA:.2f}"


def _outcome(cell: dict[str, Any]) -> str:
  compiled, _, peak, speed, _ = _figures(cell)
  return f"compiled {compiled} GB, peak {peak} GB, {speed} questions/s"
