"""What the tests of workdirs share."""

from dpr_jax.core import workdir as workdir_lib


def stage(folder, config=1, data="x"):
  """A stage `embed` with one setting and one input."""
  return workdir_lib.Stage("embed", folder, {"a": config}, {"data": data})
