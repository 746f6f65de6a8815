"""Settings and the flags of a call: checked before it begins, or shown."""

import os
from collections.abc import Sequence
from typing import Any

from absl import flags, logging

from dpr_jax.cli import flags as cli_flags
from dpr_jax.cli import (
  settings_checks,
  settings_hints,
  settings_show,
  settings_unread,
)
from dpr_jax.cli.settings_call import Call
from dpr_jax.core.workdir import Workdir


def normalised(arguments: Sequence[str]) -> list[str]:
  """The command line with checked settings, for `flags.FLAGS`.

  Raises:
    InputError: see `settings_hints.normalised`.
  """
  known = {name: bool(flags.FLAGS[name].boolean) for name in flags.FLAGS}
  return settings_hints.normalised(arguments, known)


def check(command: str, config: Any) -> None:
  """Refuses what is wrong, and warns of what counts for nothing.

  Args:
    command: a stage, "run", "demo", "plan" or "bench KIND".
    config: the experiment.

  Raises:
    InputError: see `settings_checks.check`.
  """
  call = _call(command)
  if command == "index" and cli_flags.PLAN.value:  # of any vectors, anywhere
    settings_checks.check_keys(config)
    settings_checks.check_values(config, call)
  else:
    settings_checks.check(config, call)
  if os.environ.get("DPR_JAX_PROCESS_ID", "0") == "0":
    for line in settings_unread.unread(config, call):
      logging.warning("%s", line)


def _call(command: str) -> Call:
  """What the flags ask for."""
  processes = int(os.environ.get("DPR_JAX_NUM_PROCESSES") or 1)
  cores = cli_flags.CPU_DEVICES.value or (8 if command == "demo" else 0)
  return Call(
    command,
    workdir=Workdir(cli_flags.WORKDIR.value)
    if cli_flags.WORKDIR.value
    else None,
    methods=tuple(cli_flags.METHOD.value or ()),
    model=cli_flags.MODEL.value or "",
    mines_from=cli_flags.FROM.value or "bm25",
    tunes=cli_flags.TUNE.value,
    cores=0 if cli_flags.POD.value else cores * processes,
    processes=0 if cli_flags.POD.value else processes,
    typed=_typed(),
  )


def _typed() -> frozenset[str]:
  """Keys of the settings on the command line."""
  if cli_flags.CONFIG.value is None:
    return frozenset()
  return frozenset(flags.FLAGS[cli_flags.CONFIG.name].override_values)


def show(config: Any, file: str) -> str:
  """What `dpr-jax config` prints.

  Args:
    config: the experiment.
    file: where it comes from, "config file" or "workdir".
  """
  settings_checks.check_keys(config)
  rows = settings_show.rows(config, _typed(), file)
  if cli_flags.DIFF.value:
    rows = settings_show.differing(rows)
  as_json = cli_flags.JSON.value is not None
  return settings_show.as_json(rows) if as_json else settings_show.text(rows)
