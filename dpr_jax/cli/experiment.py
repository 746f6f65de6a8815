"""The config and the workdir that the flags name, opened, and kept in step.

A workdir remembers its config: `config.json` is written by whatever has really
done something there, and stands for `--config` where that is left out.
"""

import contextlib
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections
from absl import flags

from dpr_jax.cli import flags as cli_flags
from dpr_jax.cli import settings_checks, settings_command
from dpr_jax.core import config as config_lib
from dpr_jax.core import errors, multiprocess
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.models import model_settings

_CONFIG_AT_WILL = ("ask", "export")  # the workdir may say all
_NO_CONFIG = ("import", "check", "config")  # what is wrong in it is not theirs
_LOADER = pathlib.Path(__file__).with_name("stored_config.py")
# What uses a model that was trained in the workdir.
_AFTER_TRAINING = (
  *("embed", "index", "retrieve", "train-reader", "read", "evaluate"),
  *("ask", "export", "bench encode", "bench search"),
)


def workdir() -> workdir_lib.Workdir:
  """The workdir that the flags name."""
  if not cli_flags.WORKDIR.value:
    raise errors.InputError("--workdir is missing: --workdir=DIR")
  return workdir_lib.Workdir(cli_flags.WORKDIR.value)


def path(flag: Any) -> str | None:
  """The value of a flag that names a file or folder, `~` expanded."""
  return flag.value and str(workdir_lib.user_path(flag.value))


def config() -> ml_collections.ConfigDict:
  """The config that the flags name, all of its keys known, paths absolute."""
  if cli_flags.CONFIG.value is None:
    where = ""
    if cli_flags.WORKDIR.value:
      where = f" ({workdir().root / config_lib.FILE} is not there either)"
    raise errors.InputError(
      f"--config is missing: --config=configs/X.py{where}"
    )
  try:
    cli_flags.CONFIG.value.items()
  except OSError as error:  # a file that cannot be loaded shows only now
    raise errors.InputError(f"--config: {error}") from error
  settings_checks.check_keys(cli_flags.CONFIG.value)
  return config_lib.with_full_paths(cli_flags.CONFIG.value)


def with_stored_config(arguments: Sequence[str]) -> list[str]:
  """The command line, with the workdir's own config where it names none.

  Args:
    arguments: as in `sys.argv`; `~` of a `--config` is expanded.
  """
  arguments = list(arguments)
  values: dict[str, str] = {}
  for number, argument in enumerate(arguments):
    if argument == "--":
      break
    name, equals, value = argument.partition("=")
    flag = name.lstrip("-")
    if not name.startswith("-") or flag not in ("config", "workdir"):
      continue
    if not equals:
      value = "".join(arguments[number + 1 : number + 2])
    elif flag == "config" and value.startswith("~"):
      arguments[number] = f"{name}={workdir_lib.user_path(value)}"
    values[flag] = value
  # `demo` brings a config of its own.
  if "config" in values or not values.get("workdir") or "demo" in arguments[:2]:
    return arguments
  file = workdir_lib.Workdir(values["workdir"]).root / config_lib.FILE
  if not file.is_file():
    return arguments
  return [*arguments[:1], f"--config={_LOADER}:{file}", *arguments[1:]]


def origin() -> str:
  """Where the config comes from: "workdir", or "config file"."""
  name = flags.FLAGS[cli_flags.CONFIG.name].config_filename
  return "workdir" if name.startswith(f"{_LOADER}:") else "config file"


def check(command: str) -> None:
  """Refuses a config that a command could not do with, before anything starts.

  Args:
    command: a stage, or another command, "bench KIND".

  Raises:
    InputError: as of `settings_checks.check` and of `settled`.
  """
  if command in _NO_CONFIG or (
    command == "demo" and cli_flags.CONFIG.value is None
  ):
    return
  if cli_flags.WORKDIR.value and cli_flags.CONFIG.value is not None:
    settled(config(), workdir(), command)
  if command not in _CONFIG_AT_WILL:
    settings_command.check(command, config())


def settled(
  values: ml_collections.ConfigDict, where: workdir_lib.Workdir, command: str
) -> ml_collections.ConfigDict:
  """The config as a command uses it: what was trained there decides.

  Args:
    values: as asked for.
    where: the workdir.
    command: a stage, or another command, "bench KIND".

  Raises:
    InputError: the config contradicts what was trained; all keys are named.
  """
  mines = command == "mine" and cli_flags.FROM.value == "model"
  if not mines and command not in _AFTER_TRAINING:
    return values
  reads = (
    command in ("read", "ask")
    or (command == "retrieve" and cli_flags.RERANK.value is not None)
    or (command == "export" and cli_flags.WHAT.value == "reader")
  )
  keep = model_settings.FREE
  if command == "train-reader":  # begins from a checkpoint of its own
    keep = (*keep, *model_settings.BEGINNING)
  return model_settings.settle(
    values,
    where,
    reads=reads,
    starts=command in ("embed", "export"),
    keep=keep,
  )


@contextlib.contextmanager
def opened(where: workdir_lib.Workdir) -> Iterator[workdir_lib.Workdir]:
  """A workdir, locked for the block."""
  if not multiprocess.is_first():  # the first holds the lock for all
    multiprocess.barrier()
    yield where
    return
  with workdir_lib.locked(where):
    multiprocess.barrier()
    yield where


@contextlib.contextmanager
def remembered(
  values: ml_collections.ConfigDict, where: workdir_lib.Workdir
) -> Iterator[None]:
  """Writes `config.json` if the block has done something in a workdir.

  What was skipped or refused changes nothing.  Where there is no `config.json`
  it is written in any case.
  """
  if not multiprocess.is_first():
    yield
    return
  before = _footprint(where)
  try:
    yield
  except BaseException:  # a training that was interrupted has been trained
    if _footprint(where) != before:
      with contextlib.suppress(errors.InputError):
        _remember(values, where)
    raise
  file = where.root / config_lib.FILE
  if not file.exists() or _footprint(where) != before:
    _remember(values, where)


def _remember(
  values: ml_collections.ConfigDict, where: workdir_lib.Workdir
) -> None:
  values = model_settings.settle(values, where, check=False, keep=())
  new, file = config_lib.plain(values), where.root / config_lib.FILE
  with contextlib.suppress(errors.InputError):
    if file.exists() and workdir_lib.read_json(file) == new:
      return
  workdir_lib.write_json(file, new)


def _footprint(where: workdir_lib.Workdir) -> dict[str, tuple[int, int]]:
  """Age and size of the JSON files that stages write, by path."""
  found = {}
  for name in workdir_lib.FOLDERS:
    for pattern in ("*.json", "*/*.json", "*/*/*.json"):
      for file in (where.root / name).glob(pattern):
        with contextlib.suppress(OSError):
          status = os.stat(file)
          found[str(file)] = status.st_mtime_ns, status.st_size
  return found
