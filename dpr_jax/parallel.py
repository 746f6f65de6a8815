"""One function for one core, mapped over all of them: the only use of pmap.

Train and embed steps are written for one core, against `AXIS`.  State goes in
and comes out as an ordinary tree without a device axis (`in_axes` and
`out_axes` None) and is donated; batches carry a leading axis of local cores.
`jax.pmap` is used with the cores of this process and, after
`jax.distributed.initialize`, spans all processes.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

AXIS = "cores"


def map_train_step(step: Callable) -> Callable:
  """Maps `step(state, batch) -> (state, metrics)` over the cores.

  The state is replicated and donated; metrics must be equal on all cores.
  """
  return jax.pmap(
    step,
    axis_name=AXIS,
    in_axes=(None, 0),
    out_axes=(None, None),
    donate_argnums=(0,),
  )


def map_over_cores(function: Callable, *, gathered: bool = False) -> Callable:
  """Maps `function(params, batch)` over the cores without donation.

  Args:
    function: for one core; may use collectives over `AXIS`.
    gathered: the result is equal on all cores and comes without a core axis.
  """
  return jax.pmap(
    function,
    axis_name=AXIS,
    in_axes=(None, 0),
    out_axes=None if gathered else 0,
  )


def cores() -> int:
  """Number of cores of this process."""
  return jax.local_device_count()


def split_over_cores(batch: Any) -> Any:
  """Reshapes `[rows, …]` leaves to `[local cores, rows / local cores, …]`."""
  count = cores()

  def split(x: np.ndarray) -> np.ndarray:
    return x.reshape(count, x.shape[0] // count, *x.shape[1:])

  return jax.tree.map(split, batch)


def replicate(tree: Any) -> Any:
  """Puts a host tree on every core once, so that steps need not copy it."""
  mesh = jax.sharding.Mesh(np.array(jax.devices()), (AXIS,))
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  if jax.process_count() == 1:
    return jax.device_put(tree, everywhere)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(everywhere, np.asarray(x)),
    tree,
  )
