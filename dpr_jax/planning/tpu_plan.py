"""`dpr-jax plan`: predicts memory and best possible speed on a TPU.

Input: a config and a topology.  libtpu compiles the real train and embed steps
on this machine, without a TPU.  Output: a report of memory, FLOPs, collectives,
and the time of a step at the chip's peak figures.

Differences from a training run: one process compiles for all devices of the
topology, while on a pod every host compiles the same program for its own
devices; the texts of packed rows are drawn from histograms of lengths
(`text_lengths`), and without these, or without packing, all texts have full
length, as in the embed step; device memory outside of the step (a second batch
in transfer) is not counted.
"""

import copy
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
from dpr_jax.core import errors, jax_unstable, setting_rules
from dpr_jax.inference import encoder as encoder_lib
from dpr_jax.inference import length_tiles
from dpr_jax.models import dual_encoder, stacked_layers
from dpr_jax.planning import chips, costs, hlo, sizes, text_lengths
from dpr_jax.training import train_step

_QUIET = {
  "TPU_SKIP_MDS_QUERY": "1",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # safe, because no TPU is opened
  "TPU_STDERR_LOG_LEVEL": "3",
  "TPU_MIN_LOG_LEVEL": "3",
  "TPU_ACCELERATOR_TYPE": "v5litepod-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
}
# The compiler's errors for a program, or its temporaries, that do not fit.
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
  """Predicted costs of one compiled step.

  Attributes:
    fits: whether the program fits into the chip's memory.
    memory: bytes per device by kind: "arguments", "temporaries", "code",
      "outputs" (without those that reuse the memory of arguments), "total"; if
      it does not fit, only "total", which may be that of the temporaries.
    hbm_limit: bytes per device that the compiler may use.
    model_flops: FLOPs of the model, over all devices.
    compiled_flops: FLOPs of the program's matrix products, over all devices.
    hbm_bytes: bytes between a device and its memory in one step.
    collectives: rows of "kind", "count" and "bytes" of one step, per device.
    seconds: seconds at peak figures: "compute" and "memory" (of operations
      limited by one or the other), "interconnect", and "step", their sum.
    compile_seconds: seconds of compilation on this machine.
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

  def said(self) -> str:
    """Memory, and whether it fits, in words."""
    fits = "fits" if self.fits else "does not fit"
    return f"{self.memory['total'] / 2**30:.2f} GiB, {fits}"

  def flops_ratio(self) -> float:
    """Ratio of compiled to model FLOPs."""
    return self.compiled_flops / self.model_flops


def devices(topology: chips.Topology) -> list[Any]:
  """The devices of a topology, to compile for.

  Raises:
    InputError: libtpu is not installed, or does not know the topology.
  """
  for name, value in _QUIET.items():
    os.environ.setdefault(name, value)
  os.environ["LIBTPU_INIT_ARGS"] = devices_lib.libtpu_arguments()
  # TPU programs cannot be loaded from the compilation cache without a TPU.
  jax_unstable.stop_compilation_cache()
  options: dict[str, Any] = {"chip_config_name": topology.chip.config}
  if topology.chips < 4 or topology.hosts == 1:
    options["chips_per_host_bounds"] = topology.host
  try:
    return jax_unstable.topology_devices(topology.name, options)
  except Exception as error:  # whatever the plugin raises
    raise errors.InputError(
      f"--topology={topology.name}: {str(error).splitlines()[0]}; plan needs"
      " the TPU compiler: pip install 'dpr-jax[tpu]'"
    ) from error


def resolved(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """A copy of the config with "auto" resolved as on a TPU."""
  config = copy.deepcopy(config)
  with config.unlocked():
    config.model = sizes.resolved(config.model)
    if config.model.compute_dtype == "auto":
      config.model.compute_dtype = "bfloat16"
    if config.train.layers == "auto":
      config.train.layers = "scanned"
  return config


def train_steps(config: ml_collections.ConfigDict) -> int:
  """Number of steps of the whole training."""
  train = config.train
  if train.max_steps:
    return train.max_steps
  questions = config_lib.at_least(
    "plan.train_questions", config.plan.train_questions, 1
  )
  return setting_rules.total_steps(0, train.epochs, questions, train.batch_size)


def packed_rows(
  config: ml_collections.ConfigDict,
  topology: chips.Topology,
  lengths: text_lengths.Lengths | None,
) -> text_lengths.Rows | None:
  """The rows that a training packs its texts into.

  None = it pads texts, or their lengths are not known.

  Raises:
    InputError: the number of devices does not divide the batch, or a chunk size
      not the texts of a device.
  """
  if lengths is None or not config.train.packing:
    return None
  setting_rules.divides(config.train.batch_size, topology.cores)
  return text_lengths.rows_of(
    config, lengths, topology.cores, topology.hosts, train_steps(config)
  )


def lower_train(
  config: ml_collections.ConfigDict,
  on: list[Any],
  lengths: text_lengths.Lengths | None = None,
  rows: text_lengths.Rows | None = None,
) -> tuple[Any, int]:
  """The train step, lowered for the devices `on`, and its model FLOPs.

  Args:
    config: configuration of the experiment.
    on: devices.
    lengths: lengths of the texts, for the FLOPs; None = full length.
    rows: rows of packed texts; None = padded texts of full length.
  """
  model = sizes.model_of(config)
  steps = max(train_steps(config), config.train.warmup_steps + 1)
  built = train_step.build(config, model, steps, cores=len(on))
  state = built.shapes(model.params)
  lowered = built.mapped(on).lower(state, sizes.batch(config, len(on), rows))
  return lowered, sizes.train_flops(config, model.encoder, lengths)


def compile_train(
  config: ml_collections.ConfigDict,
  topology: chips.Topology,
  on: list[Any],
  lengths: text_lengths.Lengths | None,
  *,
  quick: bool,
) -> tuple[Step, text_lengths.Rows | None]:
  """The compiled train step, and the rows of its packed texts.

  Args:
    config: configuration of the experiment.
    topology: TPU slice to plan for.
    on: its devices.
    lengths: lengths of the texts; None = full length.
    quick: see `compile_step`.

  Raises:
    InputError: see `packed_rows`.
  """
  rows = packed_rows(config, topology, lengths)
  lowered, flops = lower_train(config, on, lengths, rows)
  return compile_step(lowered, topology, flops, quick=quick), rows


def lower_embed(
  config: ml_collections.ConfigDict, on: list[Any]
) -> tuple[Any, int, int]:
  """The lowered embed step, its model FLOPs, and passages per step."""
  model, cores = sizes.model_of(config), len(on)
  length = sizes.resolved(config.model).passage_length
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
    encoder_lib.encode_tile, model.encoder, dual_encoder.PASSAGE, False
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
  """Compiles a step and analyses the program.

  Args:
    lowered: step lowered for the topology's devices.
    topology: topology with peak figures.
    model_flops: FLOPs of the model, over all devices.
    quick: whether to lower the compiler's effort: a fifth of the time, nearly
      the same memory.
  """
  started = time.monotonic()
  try:
    options = jax_unstable.quick_compile_options() if quick else None
    compiled = lowered.compile(options)
  except jax.errors.JaxRuntimeError as error:
    taken = too_large(str(error))
    if taken is None:
      raise
    used, limit = taken
    return Step(False, {"total": used}, limit, model_flops)
  seconds = time.monotonic() - started
  return analyse(compiled, topology, model_flops, seconds)


def too_large(message: str) -> tuple[int, int] | None:
  """(bytes needed, bytes allowed) from the compiler's error.

  None = the error has another reason.
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
    # Roofline: an operation takes the longer of computation and HBM traffic.
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
  lengths: text_lengths.Lengths | None = None,
  quick: bool = False,
  embed: bool = True,
  say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
  """The whole report, as plain data for JSON.

  Args:
    config: the experiment.
    topology: TPU slice to plan for.
    lengths: lengths of the texts of the training; None = full length.
    quick: see `compile_step`.
    embed: whether to plan the embed step as well.
    say: function that is called with progress messages.
  """
  config = resolved(config)
  on = devices(topology)
  say(f"compiling the train step for {topology.name}")
  train, rows = compile_train(config, topology, on, lengths, quick=quick)
  report: dict[str, Any] = {
    "topology": topology.name,
    "cores": topology.cores,
    "hosts": topology.hosts,
    "config": config_lib.sections(config, "model", "train", "embed"),
    "quick": quick,
    "texts": text_lengths.figures(
      config, sizes.limits(config), topology.cores, lengths, rows
    ),
    "train": _figures(train),
  }
  if train.fits:
    steps = train_steps(config)
    hours = steps * train.seconds["step"] / 3600
    report["train"] |= {
      "steps": steps,
      "questions_per_second": config.train.batch_size / train.seconds["step"],
      "hours": hours,
      "chip_hours": hours * topology.chips,
    }
  if embed:
    say(f"compiling the embed step for {topology.name}")
    lowered, flops, texts = lower_embed(config, on)
    encode = compile_step(lowered, topology, flops, quick=quick)
    report["embed"] = _figures(encode) | {"passages_per_step": texts}
    if encode.fits:
      hours = -(-config.plan.passages // texts) * encode.seconds["step"] / 3600
      report["embed"] |= {
        "passages": config.plan.passages,
        "passages_per_second": texts / encode.seconds["step"],
        "hours": hours,
        "chip_hours": hours * topology.chips,
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
