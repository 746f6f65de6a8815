"""One cell of `bench batch`: measures train steps in a process of its own.

Input: JSON on standard input (`config`: path of a config, `result`: path to
write, `cpu_devices`, `repeats`, `memory_share`).  Output: the JSON file
`result`.  The step is compiled first, and run only if the memory that the
compiler predicts is available.  The peak is the process's resident set, without
the peak of the compiler itself.
"""

import pathlib
import time
from typing import Any

import jax
import ml_collections

from dpr_jax.benchmarking import cells, harness, synthetic
from dpr_jax.core import config as config_lib
from dpr_jax.core import devices as devices_lib
from dpr_jax.core import memory
from dpr_jax.models import retriever_model
from dpr_jax.training import train_step


def measure(
  config: ml_collections.ConfigDict, *, repeats: int, memory_share: float
) -> dict[str, Any]:
  """Compiles the config's train step on random texts, runs it if it fits.

  Args:
    config: config of the cell.
    repeats: number of timed steps, after an untimed one.
    memory_share: share of the available memory that the step may need.

  Returns:
    `fits`; `predicted_bytes` = `compiled_temp_bytes` (intermediate results) and
    `compiled_argument_bytes` (state and batch), times `cores`;
    `available_bytes`; and where it fits `peak_bytes`, `start_bytes` (resident
    before the first step), `seconds`, `step_seconds` (their spread),
    `questions_per_second` and `loss` (of the first step).
  """
  available = memory.available_memory()
  model = retriever_model.start(config)
  source = synthetic.make_source(config, model)
  built = train_step.build(config, model, source.steps)
  state = built.place(0, *built.init(model.params))
  batch = devices_lib.split_over_cores(source[0])
  mapped = built.mapped()
  compiled = mapped.lower(state, batch).compile()
  analysis = compiled.memory_analysis()
  temp, arguments = (
    int(analysis.temp_size_in_bytes),
    int(analysis.argument_size_in_bytes),
  )
  cores = devices_lib.cores()
  found: dict[str, Any] = {
    "cores": cores,
    "compiled_temp_bytes": temp,
    "compiled_argument_bytes": arguments,
    "predicted_bytes": cores * (temp + arguments),
    "available_bytes": available,
  }
  found["fits"] = (
    available is None or found["predicted_bytes"] <= memory_share * available
  )
  if not found["fits"]:
    return found
  _forget_peak()
  found["start_bytes"] = memory.status("VmRSS")
  seconds = []
  for _ in range(1 + repeats):
    started = time.perf_counter()
    state, reported = compiled(state, batch)
    loss = float(reported["loss"])
    jax.block_until_ready(state)
    seconds.append(time.perf_counter() - started)
    found.setdefault("loss", loss)
  step = harness.spread(seconds[1:])
  return found | {
    "peak_bytes": memory.status("VmHWM"),
    "seconds": seconds[1:],
    "step_seconds": step,
    "questions_per_second": config.train.batch_size / step["median"],
  }


def _forget_peak() -> None:
  """Resets the peak of the resident set that Linux reports."""
  try:
    pathlib.Path("/proc/self/clear_refs").write_text("5")
  except OSError:
    pass  # then the peak includes the compiler's: it is too high, never too low


def run(spec: dict[str, Any]) -> dict[str, Any]:
  """Measures the config of a task."""
  if spec["cpu_devices"]:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", spec["cpu_devices"])
  return measure(
    config_lib.read(spec["config"]),
    repeats=spec["repeats"],
    memory_share=spec["memory_share"],
  )


if __name__ == "__main__":
  cells.main(run)
