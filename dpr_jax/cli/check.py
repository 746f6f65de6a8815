"""`dpr-jax check`: prints what `workdir_check` finds."""

from dpr_jax.cli.invocation import Invocation
from dpr_jax.core import errors


def check(call: Invocation) -> None:
  """Prints a line for every artefact; not all in order is exit status 2."""
  from dpr_jax.cli import workdir_check

  workdir, wrong = call.workdir, 0
  for finding in workdir_check.check(workdir, deep=call.flags["deep"]):
    print(finding, flush=True)
    wrong += finding.state != workdir_check.OK
  if wrong:
    raise errors.InputError(
      f"--workdir={workdir.root}: {wrong} of the above are not in order"
    )
