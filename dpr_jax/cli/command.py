"""`Command`: the type of a row in the table of commands (`commands.py`)."""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

from dpr_jax.cli.flags import Flag, Values
from dpr_jax.core import multiprocess

# How a command runs on several processes.
TOGETHER = "together"  # every process calls the function
FIRST = "first"  # process 0 calls the function, the others wait
ONE = "one"  # refused with several processes
APART = "apart"  # each process runs alone, without connecting to the others
STARTS = "starts"  # as ONE; it starts other commands, and leaves JAX to them

# When `run` includes a stage.
ALWAYS = "always"
WITH_TRAINING = "with a training"  # if config.data.train is not "none"
WITH_READER = "with a reader"  # if config.reader.train is set

# How a command treats the config.
CHECKED = "checked"  # required; all values are checked before the start
STORED = "stored"  # the workdir's own config is enough; values are not checked
NONE = "none"  # errors in the config do not matter

# Models of a workdir that a command uses: settings that contradict the trained
# model are refused.
TOWERS = "towers"
READER = "reader"
START = "start"  # the towers before training, which may be created again


@dataclasses.dataclass(frozen=True)
class Command:
  """One command of `dpr-jax`.

  Attributes:
    name: words typed after `dpr-jax`, for example "train" or "bench train".
    help: one sentence without its full stop.
    function: "module:function" in `dpr_jax.cli`; takes an `Invocation`.
    example: arguments of a realistic call, for the help text.
    usage: placeholder of the arguments in the usage line.
    flags: flags that the command accepts.
    devices: whether it computes on devices.  Only one process can hold a TPU,
      so commands that do not compute must not open it.
    processes: behavior with several processes: TOGETHER, FIRST, ONE, APART or
      STARTS.
    in_run: ALWAYS, WITH_TRAINING or WITH_READER; "" = not a stage.  `run`
      follows the order of the rows.
    config: how the config is treated: CHECKED, STORED or NONE.
    uses: models that it uses: any of TOWERS, READER and START.
    settings: stages whose settings it reads; () = the stage of its own name.
    cpu_devices: number of emulated devices if --cpu_devices is not given; 0 =
      the devices of the machine.
    takes_words: whether further words (questions) may follow the name.
  """

  name: str
  help: str
  function: str
  example: str = "--config=configs/nq_100k.py --workdir=W"
  usage: str = "--config=FILE --workdir=DIR"
  flags: tuple[Flag, ...] = ()
  devices: bool | Callable[[Values], bool] = False
  processes: str = TOGETHER
  in_run: str = ""
  config: str = CHECKED
  uses: tuple[str, ...] | Callable[[Values], tuple[str, ...]] = ()
  settings: tuple[str, ...] = ()
  cpu_devices: int = 0
  takes_words: bool = False

  def load(self) -> Callable[[Any], None]:
    """Imports the command's module and returns its function."""
    module, _, name = self.function.partition(":")
    return getattr(importlib.import_module(f"dpr_jax.cli.{module}"), name)

  def call(self, invocation: Any) -> None:
    """Calls the function on all processes or on process 0, as the row says."""
    function = self.load()
    if self.processes == FIRST:
      multiprocess.first_alone(lambda: function(invocation))
    else:
      function(invocation)

  def needs_devices(self, values: Values) -> bool:
    """Whether this call computes on devices."""
    return self.devices(values) if callable(self.devices) else self.devices

  def used(self, values: Values) -> tuple[str, ...]:
    """Models of the workdir that this call uses."""
    return self.uses(values) if callable(self.uses) else self.uses
