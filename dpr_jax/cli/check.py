"""`dpr-jax check`: prints the findings of `workdir_check`."""

from dpr_jax.cli.invocation import Invocation
from dpr_jax.core import errors


def check(call: Invocation) -> None:
  """Prints a line for every artefact; exit status 2 unless all are ok."""
  from dpr_jax.cli import workdir_check

  workdir, wrong = call.workdir, 0
  for finding in workdir_check.check(workdir, deep=call.flags["deep"]):
    print(finding, flush=True)
    wrong += finding.state != workdir_check.OK
  if wrong:
    raise errors.InputError(
      f"--workdir={workdir.root}: {wrong} of the items above are not ok"
    )
