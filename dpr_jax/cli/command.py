"""What a row of the table of commands says."""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

from dpr_jax.cli.flags import Flag, Values

# How a command runs on several processes.
TOGETHER = "together"  # every process calls the function
FIRST = "first"  # the first calls it, the others wait
ONE = "one"  # refused where there are several
APART = "apart"  # every process by itself: it looks for no others

# Where `run` does a stage.
ALWAYS = "always"
WITH_READER = "with a reader"  # where config.reader.train is set

# What a command does with the config, besides reading it.
CHECKED = "checked"  # must be there; all values are checked at once
STORED = "stored"  # the workdir's own will do; values are not checked
NONE = "none"  # what is wrong in it does not matter

# What a command uses of a workdir: settings that contradict it are refused.
TOWERS = "towers"
READER = "reader"
START = "start"  # the towers before training may be made anew


@dataclasses.dataclass(frozen=True)
class Command:
  """One row.

  Attributes:
    name: as it is typed, "bench train" included.
    help: one sentence, without its end.
    function: "module:function" below `dpr_jax.cli`, taking an `Invocation`.
    example: what stands behind the name in a call that makes sense.
    usage: what stands behind the name, "" = `--config=FILE --workdir=DIR`.
    flags: its own.
    devices: whether it computes on devices; a process alone can have a TPU, so
      others must not ask for it.
    processes: TOGETHER, FIRST, ONE or APART.
    in_run: "" = not a stage; ALWAYS or WITH_READER.  The order of the rows is
      that of `run`.
    config: CHECKED, STORED or NONE.
    uses: some of TOWERS, READER and START.
    settings: stages whose settings it reads; () = those of its own name.
    cpu_devices: emulated, where --cpu_devices does not say.
    takes_words: whether more words than its name may follow.
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
    """The function, imported now."""
    module, _, name = self.function.partition(":")
    return getattr(importlib.import_module(f"dpr_jax.cli.{module}"), name)

  def needs_devices(self, values: Values) -> bool:
    """Whether this call computes on devices."""
    return self.devices(values) if callable(self.devices) else self.devices

  def used(self, values: Values) -> tuple[str, ...]:
    """What this call uses of a workdir."""
    return self.uses(values) if callable(self.uses) else self.uses
