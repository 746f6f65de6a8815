"""Sets up devices and processes before a command starts.

JAX is imported only if the command computes on devices, or if several
processes have to connect.
"""

import importlib.util
import os
import sys

from dpr_jax.cli import command
from dpr_jax.cli.invocation import Invocation
from dpr_jax.core import errors, multiprocess, program_cache

_ALONE = "{} does not support several processes: start it once"
_WIDE = "xla_cpu_prefer_vector_width"


def start(call: Invocation) -> None:
  """Chooses devices and connects to other processes, before JAX is used.

  Raises:
    InputError: JAX finds no devices, or the command does not support several
      processes.
  """
  row, pod = call.command, call.flags["pod"]
  if row.processes == command.STARTS:
    if pod or os.environ.get("DPR_JAX_COORDINATOR"):
      raise errors.InputError(_ALONE.format(row.name))
    return
  computes = row.needs_devices(call.flags)
  if computes or pod:
    from dpr_jax.core import devices

    os.environ["LIBTPU_INIT_ARGS"] = devices.libtpu_arguments()
  if call.cpu_devices:
    xla_flags = os.environ.get("XLA_FLAGS", "")
    if _WIDE not in xla_flags:  # 5 to 8 % faster steps where there is AVX-512
      os.environ["XLA_FLAGS"] = f"{xla_flags} --{_WIDE}=512".strip()
    _set("jax_num_cpu_devices", call.cpu_devices)
  if call.cpu_devices or not (computes or pod):
    # Only one process can hold a TPU: `evaluate` must not take it from a
    # training on the same machine.
    _set("jax_platforms", "cpu")
  if computes and not pod:
    _silence_xla(call.cpu_devices)
  if row.processes == command.APART:
    return
  multiprocess.start(pod)
  if computes:
    program_cache.keep()
    _find_devices()
  if multiprocess.count() > 1 and row.processes == command.ONE:
    raise errors.InputError(_ALONE.format(row.name))


def _silence_xla(cpu_devices: int) -> None:
  """Hides XLA's error lines where one process computes on a CPU.

  There, XLA takes its preferences (+prefer-no-gather) for features that a
  loaded program needs and the processor lacks: two lines for each program.
  True errors are Python exceptions.  Other processes and other devices may have
  errors that only these lines tell.
  """
  plugins = ("libtpu", "jax_plugins")  # the latter are those of GPUs
  on_cpu = cpu_devices or not any(map(importlib.util.find_spec, plugins))
  if on_cpu and not os.environ.get("DPR_JAX_COORDINATOR"):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def _find_devices() -> None:
  import jax

  try:
    jax.process_count()
  except RuntimeError as error:
    raise errors.InputError(
      f"JAX found no devices: {str(error).splitlines()[0]}; if another process"
      " holds the TPU, wait until it ends, or use the CPU with --cpu_devices=8"
    ) from error


def _set(option: str, value: str | int) -> None:
  """Sets a JAX option, whether or not JAX has been imported already."""
  os.environ[option.upper()] = str(value)
  if "jax" in sys.modules:
    import jax

    jax.config.update(option, value)
