"""`dpr-jax bench scale`: how time, memory and disk grow with the corpus.

Every stage runs on generated corpora of several sizes (`scale_texts.py`), each
in a process of its own (`scale_cell.py`), and its measurements are kept in the
folder, so that an interrupted run is resumed.  From the growth between the
sizes follow the slopes and a projection to all of Wikipedia, which is compared
with this machine and the host of a v5e-8.
"""

import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import rich.table
from absl import logging

from dpr_jax.benchmarking import harness, scale_cell
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.evaluation import tables

WIKIPEDIA = 21_015_324  # passages of the DPR paper
MEMORY_LIMIT = 24e9  # bytes; a stage that projects beyond is marked
QUESTIONS = 1000
# A slope above this is growth faster than the input; less may be noise.
STEEP = 1.1
_LEAST_SECONDS = 10.0  # CPU time of a stage whose slope means anything
# Bytes of memory and CPUs of the host of an 8-chip v5e slice.
# https://docs.cloud.google.com/tpu/docs/v5e, ct5lp-hightpu-8t
V5E_HOST = {"memory_gb": 384.0, "cores": 224}
_MEASURES = {
  "cpu_seconds": "time",
  "anonymous_bytes": "memory",
  "disk_bytes": "disk",
}
_CELL = "cell.json"


def bench(
  sizes: Sequence[int],
  folder: str,
  *,
  questions: int = QUESTIONS,
  json_file: str | None = None,
) -> dict[str, Any]:
  """Measures all stages at all sizes, prints the tables, returns the report.

  Args:
    sizes: numbers of passages.
    folder: folder of the corpora, workdirs and measurements; measurements that
      it already has are not repeated.
    questions: train and dev questions each.
    json_file: file for the report, written after every stage; None = none.

  Raises:
    InputError: a size is too small, or the folder is of another measurement.
  """
  sizes = sorted(set(sizes))
  if not questions >= 1 or sizes[0] < 2 * questions:
    raise errors.InputError(
      f"--passages={sizes[0]}: too few for {questions} train and as many dev"
      f" questions: give at least {2 * questions}"
    )
  top = pathlib.Path(folder)
  top.mkdir(parents=True, exist_ok=True)
  _check_folder(top, questions)
  report = {
    "bench": "scale",
    "machine": harness.machine() | {"disk_free": shutil.disk_usage(top).free},
    "versions": harness.versions(),
    "settings": {"passages": sizes, "questions": questions, "dim": 32},
    "stages": {name: {} for name in scale_cell.STAGES},
  }
  for size in sizes:
    for stage in scale_cell.STAGES:
      found = _measure(top, size, stage, questions)
      report["stages"][stage][str(size)] = found
      if json_file:
        workdir_lib.write_json(json_file, report)
      if "failure" in found:
        break  # later stages need this one
  report["projection"] = {
    stage: project(cells) for stage, cells in report["stages"].items()
  }
  if json_file:
    workdir_lib.write_json(json_file, report)
  print_report(report)
  return report


def _check_folder(top: pathlib.Path, questions: int) -> None:
  """Writes, or compares, what all measurements in a folder have in common."""
  path, ours = top / "scale.json", {"bench": "scale", "questions": questions}
  if not path.exists():
    if any(top.iterdir()):
      raise errors.InputError(
        f"--out={top} has other files: give an empty folder, or that of an"
        " earlier `bench scale`"
      )
    workdir_lib.write_json(path, ours)
  elif (theirs := workdir_lib.read_json(path)) != ours:
    raise errors.InputError(
      f"--out={top} has measurements of {theirs}, not of {ours}: give another"
      " folder"
    )


def _measure(
  top: pathlib.Path, size: int, stage: str, questions: int
) -> dict[str, Any]:
  """A stage's measurements at a size: those in the folder, or new ones."""
  place = top / str(size)
  kept = place / "cells" / f"{stage}.json"
  if kept.exists():
    logging.info("bench scale: %d passages: %s: measured before", size, stage)
    return workdir_lib.read_json(kept)
  kept.parent.mkdir(parents=True, exist_ok=True)
  spec = {
    "passages": size,
    "questions": questions,
    "texts": str(place / "texts"),
    "workdir": str(place / "workdir"),
  }
  found: dict[str, Any] = {}
  made = kept.parent / f"{scale_cell.TEXTS}.json"
  for name, path in ((scale_cell.TEXTS, made), (stage, kept)):
    if path.exists():
      continue
    logging.info("bench scale: %d passages: %s", size, name)
    result = kept.parent / _CELL
    found = harness.run_cell("scale_cell", {**spec, "stage": name}, result)
    if "failure" in found:
      return found  # not kept: the next run tries again
    result.replace(path)
  logging.info(
    "bench scale: %d passages: %s took %.1f s", size, stage, found["seconds"]
  )
  return found


def slope(sizes: Sequence[int], values: Sequence[float | int]) -> float | None:
  """Exponent of the growth: the slope of the logarithms by least squares.

  Args:
    sizes: numbers of passages.
    values: measurements, above 0.

  Returns:
    The exponent; None with fewer than two sizes, or where a value is 0.
  """
  if len(sizes) < 2 or min(values) <= 0:
    return None
  return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def extrapolate(
  sizes: Sequence[int], values: Sequence[float | int], target: int = WIKIPEDIA
) -> float:
  """The value at `target` passages, the larger of two estimates.

  The power law of `slope` underestimates a fixed part plus a part per passage;
  the straight line through the last two sizes, growth that bends upwards.
  With a single size, the value in proportion.
  """
  size, value = sizes[-1], values[-1]
  power = slope(sizes, values)
  if power is None:
    return value * target / size
  line = (value - values[-2]) / (size - sizes[-2])
  return max(value * (target / size) ** power, value + line * (target - size))


def project(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """Slopes and projection of a stage, by measure; and its marks.

  Args:
    cells: measurements by number of passages, ascending.

  Returns:
    {"time" | "memory" | "disk": {"slope", "at_wikipedia"}}, and "marks", a
    list of reasons for concern.
  """
  found: dict[str, Any] = {"marks": []}
  whole = {int(n): cell for n, cell in cells.items() if "failure" not in cell}
  for key, name in _MEASURES.items():
    known = {n: cell[key] for n, cell in whole.items() if cell[key] is not None}
    if not known or not max(known.values()):
      continue
    if name == "memory" and len(known) < 2:
      continue  # most of it does not depend on the size
    sizes, values = list(known), list(known.values())
    steep = slope(sizes, values)
    found[name] = {"slope": steep, "at_wikipedia": extrapolate(sizes, values)}
    told = name != "time" or values[-1] >= _LEAST_SECONDS
    if steep is not None and steep > STEEP and told:
      found["marks"].append(f"{name} grows faster than the input")
  memory = found.get("memory", {}).get("at_wikipedia", 0)
  if memory > MEMORY_LIMIT:
    found["marks"].append(f"more than {MEMORY_LIMIT / harness.GIGA:.0f} GB")
  if len(whole) < len(cells):
    found["marks"].append("failed")
  return found


def print_report(report: Mapping[str, Any]) -> None:
  """Prints the measurements and the projection as tables."""
  sizes = [str(size) for size in report["settings"]["passages"]]
  table = rich.table.Table(
    title="Seconds, CPU seconds, GB of memory, GB of disk;"
    f" {report['settings']['questions']} train and dev questions each",
    title_justify="left",
  )
  table.add_column("stage", no_wrap=True)
  for size in sizes:
    table.add_column(f"{int(size):,}", justify="right", no_wrap=True)
  for stage, cells in report["stages"].items():
    table.add_row(stage, *(_cell(cells.get(size)) for size in sizes))
  tables.print_table(table)
  table = rich.table.Table(
    title=f"Slopes, and projection to {WIKIPEDIA:,} passages",
    title_justify="left",
  )
  table.add_column("stage", no_wrap=True)
  for name in ("time", "memory", "disk", "CPU hours", "GB memory", "GB disk"):
    table.add_column(name, justify="right", no_wrap=True)
  table.add_column("marks", no_wrap=True)
  for stage, found in report["projection"].items():
    table.add_row(stage, *_projected(found))
  tables.print_table(table)
  print(
    "CPU time and memory are of all processes of the stage; memory is the peak"
    " without mapped files, which the system can drop.  A slope is the exponent"
    " of the growth."
  )
  print(_fit_line(report))
  print(harness.machine_line({**report, "matrix_peak_gflops": None}))


def _cell(found: Mapping[str, Any] | None) -> str:
  if found is None or "failure" in found:
    return "-" if found is None else found["failure"]
  memory, disk = (
    None if found[key] is None else found[key] / harness.GIGA
    for key in ("anonymous_bytes", "disk_bytes")
  )
  shown = [
    f"{found['seconds']:.1f}",
    f"{found['cpu_seconds']:.1f}",
    "-" if memory is None else f"{memory:.2f}",
  ]
  return " / ".join([*shown, f"{disk:.3f}" if disk else "-"])


def _projected(found: Mapping[str, Any]) -> list[str]:
  measures = [found.get(name, {}) for name in _MEASURES.values()]
  slopes = [measure.get("slope") for measure in measures]
  units = (3600.0, harness.GIGA, harness.GIGA)
  values = [
    measure["at_wikipedia"] / unit if measure else None
    for measure, unit in zip(measures, units, strict=True)
  ]
  return [
    *("-" if each is None else f"{each:.2f}" for each in slopes),
    *("-" if each is None else f"{each:.2f}" for each in values),
    "; ".join(found["marks"]),
  ]


def needs(report: Mapping[str, Any]) -> tuple[float, float]:
  """(largest memory, sum of disk) of the projection, in GB."""
  found = report["projection"].values()
  memory, disk = (
    [
      each[name]["at_wikipedia"] / harness.GIGA
      for each in found
      if name in each
    ]
    for name in ("memory", "disk")
  )
  return max(memory, default=0.0), sum(disk)


def _fit_line(report: Mapping[str, Any]) -> str:
  """What the projection needs, and what the two machines have."""
  memory, disk = needs(report)
  machine = report["machine"]
  hosts = {
    "this machine": machine["memory_gb"],
    "the host of a v5e-8": V5E_HOST["memory_gb"],
  }
  fits = ", ".join(
    f"{name} has {has:.0f} GB: {'fits' if memory <= has else 'does NOT fit'}"
    for name, has in hosts.items()
    if has
  )
  free = machine["disk_free"] / harness.GIGA
  return (
    f"{WIKIPEDIA:,} passages need {memory:.1f} GB of memory ({fits}), and"
    f" {disk:.0f} GB of disk with vectors of {report['settings']['dim']}"
    f" dimensions ({free:.0f} GB are free here)."
  )
