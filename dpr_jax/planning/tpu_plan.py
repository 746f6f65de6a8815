"""`dpr-jax plan`: will it run on that TPU, and how fast at best?

In come a config and a topology; libtpu compiles the very train and embed step
for it, on this machine, without a TPU; out comes a report of memory, FLOPs,
collectives and the time that a step takes at the chip's peak figures.

What differs from training: one process compiles for all cores of the topology,
where on a pod every host compiles the same program for its own part; batches
with length groups, whose shapes depend on the data, are planned at full length;
and what a host keeps on its cores beside the step (the parameters of the dev
evaluation are the same arrays; a second batch that is on its way) is not
counted.
"""

import dataclasses
import functools
import os
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from dpr_jax.core import config as config_lib
from dpr_jax.core import devices as devices_lib
from dpr_jax.core import errors, setting_rules
from dpr_jax.inference import encoder as encoder_lib
from dpr_jax.inference import length_tiles
from dpr_jax.models import stacked_layers
from dpr_jax.planning import chips, costs, hlo, sizes
from dpr_jax.training import train_step

_QUIET = {
  "TPU_SKIP_MDS_QUERY": "1",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing of a TPU is held
  "TPU_STDERR_LOG_LEVEL": "3",
  "TPU_MIN_LOG_LEVEL": "3",
  "TPU_ACCELERATOR_TYPE": "v5litepod-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
}
_QUICK = {"exec_time_optimization_effort": -1.0}
# The compiler's words for too large a program, all of it or its temporaries.
_TOO_LARGE = (
  re.compile(r"[Uu]sed ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm"),
  re.compile(
    r"HLO temporaries \(([\d.]+)([KMGT])\) exceeds available HBM"
    r" \(([\d.]+)([KMGT])\)"
  ),
)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Step:
  """What the compiler and the arithmetic say of one mapped function.

  Attributes:
    fits: it compiles into the chip's memory.
    memory: bytes per core by kind: "arguments", "temporaries", "code",
      "outputs" (those that are not in place of arguments), "total"; where it
      does not fit, "total" alone, which may be that of the temporaries.
    hbm_limit: bytes that the compiler may use.
    model_flops: of the model, over all cores.
    compiled_flops: of the program's products, over all cores.
    hbm_bytes: between a core and its memory.
    collectives: rows of "kind", "count" and "bytes" of one step, per core.
    seconds: at peak: "compute" and "memory" (operations that wait for one or
      the other), "interconnect", and "step", their sum.
    compile_seconds: on this machine.
  """

  fits: bool
  memory: dict[str, int]
  hbm_limit: int
  model_flops: int
  compiled_flops: int = 0
  hbm_bytes: int = 0
  collectives: tuple[dict[str, Any], ...] = ()
  seconds: dict[str, float] = dataclasses.field(default_factory=dict)
  compile_seconds: float = 0.0

  def flops_ratio(self) -> float:
    """Compiled to model FLOPs."""
    return self.compiled_flops / self.model_flops


def devices(topology: chips.Topology) -> list[Any]:
  """Devices to compile for.

  Raises:
    InputError: libtpu is not installed, or does not know the topology.
  """
  for name, value in _QUIET.items():
    os.environ.setdefault(name, value)
  os.environ["LIBTPU_INIT_ARGS"] = devices_lib.libtpu_arguments()
  from jax.experimental import topologies
  from jax.experimental.compilation_cache import compilation_cache

  # Without a TPU its programs cannot be read back from a cache.
  jax.config.update("jax_enable_compilation_cache", False)
  compilation_cache.reset_cache()

  options: dict[str, Any] = {"chip_config_name": topology.chip.config}
  if topology.cores < 4 or topology.hosts == 1:
    options["chips_per_host_bounds"] = topology.host
  try:
    found = topologies.get_topology_desc(topology.name, "tpu", **options)
  except Exception as error:  # whatever the plugin raises
    raise errors.InputError(
      f"--topology={topology.name}: {str(error).splitlines()[0]}; plan needs"
      " the TPU compiler: pip install 'dpr-jax[tpu]'"
    ) from error
  return list(found.devices)


def resolved(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """The config with what "auto" means on a TPU."""
  config = config.copy_and_resolve_references()
  with config.unlocked():
    if config.model.compute_dtype == "auto":
      config.model.compute_dtype = "bfloat16"
    if config.train.layers == "auto":
      config.train.layers = "scanned"
  return config


def train_steps(config: ml_collections.ConfigDict) -> int:
  """Steps of the whole training."""
  train = config.train
  if train.max_steps:
    return train.max_steps
  questions = config_lib.at_least(
    "plan.train_questions", config.plan.train_questions, 1
  )
  return setting_rules.total_steps(0, train.epochs, questions, train.batch_size)


def lower_train(
  config: ml_collections.ConfigDict, on: list[Any]
) -> tuple[Any, int]:
  """The train step, lowered for devices, and its model FLOPs."""
  model = sizes.model_of(config)
  steps = max(train_steps(config), config.train.warmup_steps + 1)
  built = train_step.build(config, model, steps, cores=len(on))
  state = built.shapes(model.params)
  lowered = built.mapped(on).lower(state, sizes.batch(config, len(on)))
  return lowered, sizes.train_flops(config, model.encoder)


def lower_embed(
  config: ml_collections.ConfigDict, on: list[Any]
) -> tuple[Any, int, int]:
  """The step that encodes passages, its model FLOPs, and its passages."""
  model, cores = sizes.model_of(config), len(on)
  length = config.model.passage_length
  rows = max(
    1, (config.embed.tokens_per_core or length_tiles.TPU_TOKENS) // length
  )
  batch = (
    jax.ShapeDtypeStruct((cores, rows, length), jnp.int32),
    jax.ShapeDtypeStruct((cores, rows), jnp.int32),
  )
  params = jax.eval_shape(
    lambda x: model.encoder.fuse(stacked_layers.stack(x, jnp.stack)),
    model.params,
  )
  encode = functools.partial(
    encoder_lib.encode_tile, model.encoder, encoder_lib.PASSAGE, False
  )
  mapped = devices_lib.map_over_cores(encode, on)
  flops = sizes.encode_flops(model.encoder, rows * cores, length)
  return mapped.lower(params, batch), flops, rows * cores


def compile_step(
  lowered: Any,
  topology: chips.Topology,
  model_flops: int,
  *,
  quick: bool = False,
) -> Step:
  """Compiles, and reads what came out.

  Args:
    lowered: for the topology's devices.
    topology: for its figures.
    model_flops: over all cores.
    quick: the compiler tries less hard for speed: a fifth of the time, nearly
      the same memory.
  """
  started = time.monotonic()
  try:
    compiled = lowered.compile(_QUICK if quick else None)
  except jax.errors.JaxRuntimeError as error:
    taken = too_large(str(error))
    if taken is None:
      raise
    used, limit = taken
    return Step(False, {"total": used}, limit, model_flops)
  seconds = time.monotonic() - started
  return analyse(compiled, topology, model_flops, seconds)


def too_large(message: str) -> tuple[int, int] | None:
  """Bytes that a program would take, and may take, from the compiler's error.

  None where the error is about something else.
  """
  for pattern in _TOO_LARGE:
    found = pattern.search(message)
    if found:
      used, limit = (
        int(float(found[n]) * _UNITS[found[n + 1]]) for n in (1, 3)
      )
      return used, limit
  return None


def analyse(
  compiled: Any,
  topology: chips.Topology,
  model_flops: int,
  seconds: float = 0.0,
) -> Step:
  """Memory, FLOPs, traffic and time of a compiled step."""
  chip = topology.chip
  stats = compiled.memory_analysis()
  memory = {
    "arguments": stats.argument_size_in_bytes,
    "temporaries": stats.temp_size_in_bytes,
    "code": stats.generated_code_size_in_bytes,
    "outputs": stats.output_size_in_bytes - stats.alias_size_in_bytes,
  }
  memory["total"] = sum(memory.values())
  program = hlo.Program(compiled.as_text())
  operations = costs.operations(program)
  times = {"compute": 0.0, "memory": 0.0, "interconnect": 0.0}
  for one in operations:
    compute, wait = one.flops / chip.flops, one.bytes / chip.hbm_bandwidth
    kind = "compute" if compute >= wait else "memory"
    times[kind] += one.times * max(compute, wait)
  rows: dict[str, dict[str, Any]] = {}
  for one in program.collectives():
    row = rows.setdefault(one.kind, {"kind": one.kind, "count": 0, "bytes": 0})
    row["count"] += one.times
    row["bytes"] += one.times * one.bytes
    times["interconnect"] += one.times * topology.seconds(one.kind, one.bytes)
  return Step(
    fits=True,
    memory=memory,
    hbm_limit=chip.hbm_bytes,
    model_flops=model_flops,
    compiled_flops=topology.cores
    * sum(one.flops * one.times for one in operations),
    hbm_bytes=sum(one.bytes * one.times for one in operations),
    collectives=tuple(sorted(rows.values(), key=lambda row: row["kind"])),
    seconds=times | {"step": sum(times.values())},
    compile_seconds=seconds,
  )


def plan(
  config: ml_collections.ConfigDict,
  topology: chips.Topology,
  *,
  quick: bool = False,
  embed: bool = True,
  say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
  """The whole report, as JSON holds it.

  Args:
    config: the experiment.
    topology: where it shall run.
    quick: see `compile_step`.
    embed: plan the embed step as well.
    say: is told what is going on.
  """
  config = resolved(config)
  on = devices(topology)
  say(f"compiling the train step for {topology.name}")
  lowered, flops = lower_train(config, on)
  train = compile_step(lowered, topology, flops, quick=quick)
  report: dict[str, Any] = {
    "topology": topology.name,
    "cores": topology.cores,
    "hosts": topology.hosts,
    "config": config_lib.sections(config, "model", "train", "embed"),
    "quick": quick,
    "train": _figures(train),
  }
  if train.fits:
    steps = train_steps(config)
    hours = steps * train.seconds["step"] / 3600
    report["train"] |= {
      "steps": steps,
      "questions_per_second": config.train.batch_size / train.seconds["step"],
      "hours": hours,
      "chip_hours": hours * topology.cores,
    }
  if embed:
    say(f"compiling the embed step for {topology.name}")
    lowered, flops, rows = lower_embed(config, on)
    encode = compile_step(lowered, topology, flops, quick=quick)
    report["embed"] = _figures(encode) | {"passages_per_step": rows}
    if encode.fits:
      hours = -(-config.plan.passages // rows) * encode.seconds["step"] / 3600
      report["embed"] |= {
        "passages": config.plan.passages,
        "passages_per_second": rows / encode.seconds["step"],
        "hours": hours,
        "chip_hours": hours * topology.cores,
      }
  return report


def _figures(step: Step) -> dict[str, Any]:
  found = dataclasses.asdict(step)
  if step.fits:
    total = step.seconds["step"]
    found["shares"] = {
      name: step.seconds[name] / total
      for name in ("compute", "memory", "interconnect")
    }
    found["flops_ratio"] = step.flops_ratio()
  return found
