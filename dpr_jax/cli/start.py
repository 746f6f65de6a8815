"""What is set up before a command: devices, emulated or not, and processes.

JAX is imported only for a command that computes on devices, or where there are
other processes to meet.
"""

import os
import sys

from dpr_jax.cli import command
from dpr_jax.cli.invocation import Invocation
from dpr_jax.core import errors, multiprocess

_WIDE = "xla_cpu_prefer_vector_width"


def start(call: Invocation) -> None:
  """Chooses the devices, and meets the other processes; before JAX is used.

  Raises:
    InputError: there are no devices, or other processes where there must be
      none.
  """
  row, pod = call.command, call.flags["pod"]
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
    # A process alone can have a TPU: `evaluate` beside a training must not ask.
    _set("jax_platforms", "cpu")
  if row.processes == command.APART:
    return
  multiprocess.start(pod)
  if computes:
    _find_devices()
  if multiprocess.count() > 1 and row.processes == command.ONE:
    raise errors.InputError(f"{row.name} is for one process")


def _find_devices() -> None:
  import jax

  try:
    jax.process_count()
  except RuntimeError as error:
    raise errors.InputError(
      f"JAX found no devices: {str(error).splitlines()[0]}; if another process"
      " has the TPU, wait for its end; --cpu_devices=8 takes the CPU"
    ) from error


def _set(option: str, value: str | int) -> None:
  """Sets an option of JAX, whether or not it has been imported."""
  os.environ[option.upper()] = str(value)
  if "jax" in sys.modules:
    import jax

    jax.config.update(option, value)
