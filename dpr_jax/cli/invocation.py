"""One call of `dpr-jax`: the command, its flags, the config, the workdir.

It is created after the command line is parsed and passed to the command's
function.  No package below `cli` reads flags.
"""

import dataclasses
import pathlib
from typing import Any

from dpr_jax.cli.command import Command
from dpr_jax.cli.flags import Values
from dpr_jax.core import errors
from dpr_jax.core.workdir import Workdir, user_path

# The config file that loads the workdir's own config if `--config` is left out.
LOADER = pathlib.Path(__file__).with_name("stored_config.py")


@dataclasses.dataclass(frozen=True)
class Invocation:
  """The argument of a command's function.

  Attributes:
    command: the command that was called; in a stage of `run`, still `run`.
    words: words after the command's name.
    flags: values by name.
    own_config: config in place of `--config`; None = that of `--config`, or
      the one stored in the workdir.
    own_workdir: workdir in place of `--workdir`; None = that of `--workdir`.
  """

  command: Command
  words: tuple[str, ...]
  flags: Values
  own_config: Any = None
  own_workdir: Workdir | None = None

  @property
  def workdir(self) -> Workdir:
    """The workdir; `InputError` if none is given."""
    if self.own_workdir is not None:
      return self.own_workdir
    if not self.flags["workdir"]:
      raise errors.InputError("--workdir is missing: --workdir=DIR")
    return Workdir(self.flags["workdir"])

  @property
  def has_workdir(self) -> bool:
    """Whether a workdir is given."""
    return self.own_workdir is not None or bool(self.flags["workdir"])

  @property
  def has_config(self) -> bool:
    """Whether there is a config, from `--config` or from the workdir."""
    return self.own_config is not None or self.flags["config"] is not None

  @property
  def config(self) -> Any:
    """The config, with checked keys and absolute paths.

    Raises:
      InputError: there is none, it cannot be loaded, or its keys are wrong.
    """
    if self.own_config is not None:
      return self.own_config
    from dpr_jax.cli import settings_checks
    from dpr_jax.core import config as config_lib

    found = self.flags["config"]
    if found is None:
      where = ""
      if self.flags["workdir"]:
        file = self.workdir.root / config_lib.FILE
        where = f" ({file} does not exist either)"
      raise errors.InputError(
        f"--config is missing: --config=configs/X.py{where}"
      )
    try:
      found.items()
    except OSError as error:  # a file that cannot be loaded shows only now
      raise errors.InputError(f"--config: {error}") from error
    settings_checks.check_keys(found)
    return config_lib.with_full_paths(found)

  @property
  def origin(self) -> str:
    """Where the config comes from: "workdir", or "config file"."""
    ours = self.flags.config_file.startswith(f"{LOADER}:")
    return "workdir" if ours else "config file"

  @property
  def cpu_devices(self) -> int:
    """Number of emulated devices; 0 = the devices of the machine."""
    return self.flags["cpu_devices"] or self.command.cpu_devices

  def path(self, flag: str) -> str | None:
    """The value of a flag that names a file or folder, `~` expanded."""
    value = self.flags[flag]
    return value and str(user_path(value))

  def with_config(
    self, config: Any, workdir: Workdir | None = None
  ) -> "Invocation":
    """The same call with another config, and perhaps another workdir."""
    where = workdir or self.own_workdir
    return dataclasses.replace(self, own_config=config, own_workdir=where)
