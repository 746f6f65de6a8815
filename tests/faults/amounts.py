"""How many trials: all of them in `make faults`, a few in `make test`."""

import os

FULL = os.environ.get("DPR_JAX_FAULTS") == "full"


def amount(full: int, brief: int) -> int:
  """`full` in `make faults`, else `brief`."""
  return full if FULL else brief
