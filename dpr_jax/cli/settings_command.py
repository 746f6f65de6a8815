"""`dpr-jax config`, and the check of settings before every other command."""

import os
from typing import Any

from absl import logging

from dpr_jax.cli import (
  settings_checks,
  settings_show,
  settings_unread,
)
from dpr_jax.cli.invocation import Invocation
from dpr_jax.cli.settings_call import Call
from dpr_jax.core import config as config_lib


def check(call: Invocation) -> None:
  """Refuses bad settings; warns about changed settings that are not read.

  Args:
    call: call of a command that needs a config.

  Raises:
    InputError: see `settings_checks.check`.
  """
  config, about = call.config, _about(call)
  # `index --plan` reads no files, so only the values are checked.
  if about.command == "index" and call.flags["plan"]:
    settings_checks.check_keys(config)
    settings_checks.check_values(config, about)
  else:
    settings_checks.check(config, about)
  if os.environ.get("DPR_JAX_PROCESS_ID", "0") == "0":
    for line in settings_unread.unread(config, about):
      logging.warning("%s", line)


def _about(call: Invocation) -> Call:
  """The call as `settings_checks` needs it."""
  processes = int(os.environ.get("DPR_JAX_NUM_PROCESSES") or 1)
  flags = call.flags
  return Call(
    call.command.name,
    workdir=call.workdir if call.has_workdir else None,
    methods=tuple(flags["method"] or ()),
    model=flags["model"] or "",
    mines_from=flags["from"] or "bm25",
    tunes=flags["tune"],
    cores=0 if flags["pod"] else call.cpu_devices * processes,
    processes=0 if flags["pod"] else processes,
    typed=flags.typed_settings,
  )


def show(call: Invocation) -> None:
  """Prints the settings that a call would use."""
  if call.has_config:
    config, file = call.config, call.origin
  else:
    config, file = config_lib.base_config(), settings_show.DEFAULT
  if shown := _shown(config, file, call):
    print(shown)


def _shown(config: Any, file: str, call: Invocation) -> str:
  settings_checks.check_keys(config)
  rows = settings_show.rows(config, call.flags.typed_settings, file)
  if call.flags["diff"]:
    rows = settings_show.differing(rows)
  as_json = call.flags["json"] is not None
  return settings_show.as_json(rows) if as_json else settings_show.text(rows)
