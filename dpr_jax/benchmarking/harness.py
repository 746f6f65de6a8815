"""Fair speed comparisons: contenders take turns in one process.

A machine's speed drifts within minutes, so figures of separate runs are not
comparable.  Here the contenders alternate (A B A B ...) on the same inputs,
after warm-up rounds that are not counted.  A report has the median and spread
of each, and the speedup both as the ratio of medians and as the median of the
ratios of each round; also the machine, its measured peak of matrix products,
and the versions of the libraries.
"""

import dataclasses
import gc
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from dpr_jax.core import errors, memory
from dpr_jax.core import workdir as workdir_lib

PACKAGES = (
  "dpr-jax",
  "jax",
  "jaxlib",
  "numpy",
  "torch",
  "onnxruntime",
  "sentence-transformers",
  "transformers",
  "tokenizers",
)
PEAK_SIZE = 4096  # rows and columns
GIGA = 1e9


def run_cell(
  module: str, spec: Mapping[str, Any], result: pathlib.Path
) -> dict[str, Any]:
  """Runs a module of this folder in a process of its own.

  Memory and threads are then measured separately, and running out of memory
  does not end the benchmark.

  Args:
    module: name of a module that reads its task, JSON, from standard input.
    spec: the task; the key `result` is added to it.
    result: file for the module's result, a JSON object.

  Returns:
    The result; {"failure": reason} if the process failed.

  Raises:
    InputError: the module refused its task (exit status 2).
  """
  done = subprocess.run(
    [sys.executable, "-m", f"dpr_jax.benchmarking.{module}"],
    input=json.dumps({**spec, "result": str(result)}),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
    errors="replace",
    check=False,
  )
  last = (done.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
  if done.returncode == 2:
    raise errors.InputError(last)
  if done.returncode:
    # Probably out of memory, which is a result to report.
    return {"failure": f"exit {done.returncode}: {last[:300]}"}
  return workdir_lib.read_json(result)


@dataclasses.dataclass(frozen=True)
class Contender:
  """One of the programs to compare.

  Attributes:
    name: name shown in the table.
    run: function that does the work of round `number`.
  """

  name: str
  run: Callable[[int], Any]


@dataclasses.dataclass(frozen=True)
class Outcome:
  """The measurements of a contest, by contender's name.

  Attributes:
    seconds: seconds of each round.
    results: return value of `run` in each round.
  """

  seconds: dict[str, list[float]]
  results: dict[str, list[Any]]


def contest(
  contenders: Sequence[Contender],
  *,
  rounds: int,
  warmups: Sequence[int] = (0,),
  clock: Callable[[], float] = time.perf_counter,
) -> Outcome:
  """Lets the contenders take turns.

  Args:
    contenders: contenders in the order of their turns.
    rounds: number of measured rounds, numbered from 0.
    warmups: numbers of rounds to run before, without measuring.
    clock: function that returns seconds.
  """
  for number in warmups:
    for contender in contenders:
      started = clock()
      contender.run(number)
      logging.info("warm-up: %s %.2f s", contender.name, clock() - started)
  seconds: dict[str, list[float]] = {each.name: [] for each in contenders}
  results: dict[str, list[Any]] = {each.name: [] for each in contenders}
  for number in range(rounds):
    for contender in contenders:
      gc.collect()  # else a contender is charged for another's garbage
      started = clock()
      result = contender.run(number)
      seconds[contender.name].append(clock() - started)
      results[contender.name].append(result)
    logging.info(
      "round %d of %d: %s",
      number + 1,
      rounds,
      ", ".join(f"{name} {each[-1]:.2f} s" for name, each in seconds.items()),
    )
  return Outcome(seconds, results)


def spread(values: Sequence[float]) -> dict[str, float]:
  """Minimum, quartiles, median and maximum, by name."""
  names = ("least", "quartile1", "median", "quartile3", "greatest")
  found = np.percentile(np.asarray(values, float), (0, 25, 50, 75, 100))
  return dict(zip(names, map(float, found), strict=True))


def speedup(
  ours: Sequence[float], theirs: Sequence[float]
) -> dict[str, float | list[float]]:
  """How many times faster ours is.

  Args:
    ours: our seconds by round.
    theirs: seconds of the other side in the same rounds.

  Returns:
    `of_medians`: their median over ours; `median_of_pairs`: the median of the
    ratios of each round, which drift does not affect; `pairs`: those ratios.
  """
  pairs = [b / a for a, b in zip(ours, theirs, strict=True)]
  return {
    "of_medians": float(np.median(theirs) / np.median(ours)),
    "median_of_pairs": float(np.median(pairs)),
    "pairs": pairs,
  }


def speedup_line(name: str, peer: str, found: Mapping[str, Any]) -> str:
  """A result of `speedup` as a sentence."""
  pairs = found["pairs"]
  return (
    f"{name} is {found['of_medians']:.2f} times as fast as {peer} by medians,"
    f" {found['median_of_pairs']:.2f} by the median of {len(pairs)} pairs"
    f" ({min(pairs):.2f} to {max(pairs):.2f})"
  )


def matrix_peak(
  size: int = PEAK_SIZE, clock: Callable[[], float] = time.perf_counter
) -> float:
  """GFLOP/s of NumPy's float32 matrix product, best of four.

  An estimate of the machine's peak, of which reports give shares.
  """
  generator = np.random.default_rng(0)
  one, other = generator.standard_normal((2, size, size), np.float32)
  result = np.empty_like(one)
  best = float("inf")
  for _ in range(4):
    started = clock()
    np.matmul(one, other, out=result)
    best = min(best, clock() - started)
  return 2 * size**3 / best / GIGA


def machine() -> dict[str, Any]:
  """Hardware and system, without names and paths."""
  found = memory.meminfo()
  return {
    "cpu": _cpu_model(),
    "cores": memory.usable_cpus(),
    "memory_gb": round(found["MemTotal"] / GIGA, 1) if found else None,
    "system": f"{platform.system()} {platform.machine()}",
    "python": platform.python_version(),
    "load_average": [round(load, 2) for load in os.getloadavg()],
  }


def check_writable(path: str | os.PathLike) -> None:
  """Checks before a long measurement that its report can be written.

  Raises:
    InputError: the file cannot be written.
  """
  path = pathlib.Path(path)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent):
      pass
    if path.is_dir():
      raise IsADirectoryError(0, "it is a folder")
  except OSError as error:
    raise errors.InputError(
      f"--json={path} cannot be written: {error.strerror}"
    ) from error


def versions() -> dict[str, str | None]:
  """Versions of `PACKAGES`; None = not installed."""
  found: dict[str, str | None] = {}
  for name in PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = None
  return found


def machine_line(report: Mapping[str, Any]) -> str:
  """Machine, peak and versions of a report in one line."""
  found = report["machine"]
  peak = report.get("matrix_peak_gflops")
  parts = [
    f"{found['cpu']}, {found['cores']} CPU cores, {found['memory_gb']} GB",
    f"load {found['load_average'][0]} at the start",
    *([f"matrix products at best {peak:.0f} GFLOP/s"] if peak else []),
    *(
      f"{name} {report['versions'][name]}"
      for name in ("jax", "torch", "sentence-transformers")
      if report["versions"][name]
    ),
  ]
  return "; ".join(parts)


def _cpu_model() -> str:
  try:
    text = pathlib.Path("/proc/cpuinfo").read_text()
  except OSError:
    return platform.processor()
  for line in text.splitlines():
    if line.startswith("model name"):
      return line.partition(":")[2].strip()
  return platform.processor()
