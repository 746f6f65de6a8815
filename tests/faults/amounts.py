"""How many trials the tests of faults make."""

import os


def amount(full: int, brief: int) -> int:
  """`full` with DPR_JAX_FAULTS=full, else `brief`."""
  return full if os.environ.get("DPR_JAX_FAULTS") == "full" else brief
