"""The config and the workdir of a call: checked, locked and kept consistent.

A workdir stores its config: `config.json` is written by every command that
changed something in the workdir, and is used if `--config` is left out.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence

import ml_collections

from dpr_jax.cli import command, settings_command
from dpr_jax.cli.invocation import LOADER, Invocation
from dpr_jax.core import config as config_lib
from dpr_jax.core import errors, multiprocess
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.models import model_settings


def with_stored_config(arguments: Sequence[str]) -> list[str]:
  """The command line, with the workdir's own config if it names no `--config`.

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
  # `demo` has a config of its own.
  if "config" in values or not values.get("workdir") or "demo" in arguments[:2]:
    return arguments
  file = workdir_lib.Workdir(values["workdir"]).root / config_lib.FILE
  if not file.is_file():
    return arguments
  return [*arguments[:1], f"--config={LOADER}:{file}", *arguments[1:]]


def check(call: Invocation) -> None:
  """Refuses a config that the command cannot use, before anything starts.

  Raises:
    InputError: see `settings_checks.check` and `settled`.
  """
  mode = call.command.config
  brings_its_own = call.command.name == "demo" and not call.has_config
  if mode == command.NONE or brings_its_own:
    return
  if call.has_workdir and call.has_config:
    settled(call, call.command)
  if mode == command.CHECKED:
    settings_command.check(call)


def settled(
  call: Invocation, row: command.Command
) -> ml_collections.ConfigDict:
  """The config as a command uses it: trained models set their own settings.

  Args:
    call: a call with a config and a workdir.
    row: the command, or one of the stages of `run`.

  Raises:
    InputError: the config contradicts the trained model; all keys are named.
  """
  uses = row.used(call.flags)
  if not uses:
    return call.config
  keep = model_settings.FREE
  if row.name == "train-reader":  # starts from its own checkpoint
    keep = (*keep, *model_settings.BEGINNING)
  return model_settings.settle(
    call.config,
    call.workdir,
    reads=command.READER in uses,
    starts=command.START in uses,
    keep=keep,
  )


@contextlib.contextmanager
def opened(where: workdir_lib.Workdir) -> Iterator[workdir_lib.Workdir]:
  """Locks a workdir for the block."""
  if not multiprocess.is_first():  # process 0 holds the lock for all
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
  """Writes `config.json` if the block has changed something in a workdir.

  Skipped and refused stages do not count as changes.  A missing `config.json`
  is written in any case.
  """
  if not multiprocess.is_first():
    yield
    return
  before = _footprint(where)
  try:
    yield
  except BaseException:  # an interrupted training has written checkpoints
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
  """(modification time in ns, size in bytes) of the stages' JSON files."""
  found = {}
  for name in workdir_lib.FOLDERS:
    for pattern in ("*.json", "*/*.json", "*/*/*.json"):
      for file in (where.root / name).glob(pattern):
        with contextlib.suppress(OSError):
          status = os.stat(file)
          found[str(file)] = status.st_mtime_ns, status.st_size
  return found
