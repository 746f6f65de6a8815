"""`dpr-jax report`, and the report at the end of `run`."""

import contextlib
import pathlib

from absl import logging

from dpr_jax.cli import experiment
from dpr_jax.cli.invocation import Invocation
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib


def report(call: Invocation) -> None:
  """Writes the report of a workdir and prints its path."""
  from dpr_jax.reporting import report as report_lib

  out, against = call.path("out"), call.path("against")
  # Elsewhere it can be written of a workdir that is read-only or in use.
  lock = contextlib.nullcontext() if out else experiment.opened(call.workdir)
  report_lib.check_workdir(call.workdir)
  with lock:
    path = report_lib.write(
      call.workdir,
      name=call.flags["name"],
      match=call.flags["match"],
      against=against and workdir_lib.Workdir(against),
      out=out and pathlib.Path(out),
    )
  print(f"report: {path}")


def at_the_end(call: Invocation) -> None:
  """Writes the report of a run whose stages are done, if anything changed.

  A report that cannot be made is a warning: the run itself is complete.
  """
  from dpr_jax.reporting import report as report_lib

  try:
    path = report_lib.write(
      call.workdir,
      name=call.flags["name"],
      match=call.flags["match"],
      overwrite=False,
    )
  except errors.DiskError:
    raise
  except errors.InputError as error:
    logging.warning("report: not written: %s", error)
    return
  print(f"report: {path}")
