"""One function for one core, mapped over all of them: the only use of pmap.

Train and embed steps are written for one core, against `AXIS`.  State goes in
and comes out as an ordinary tree without a device axis (`in_axes` and
`out_axes` None) and is donated; batches carry a leading axis of local cores.
After `jax.distributed.initialize` the mapping spans all processes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

AXIS = "cores"
Devices = Sequence[jax.Device] | None  # None = all there are


def map_train_step(step: Callable, devices: Devices = None) -> Callable:
  """Maps `step(state, batch) -> (state, metrics)` over the cores.

  The state is replicated and donated; metrics must be equal on all cores.
  """
  return jax.pmap(
    step,
    axis_name=AXIS,
    in_axes=(None, 0),
    out_axes=(None, None),
    donate_argnums=(0,),
    devices=devices,
  )


def map_over_cores(function: Callable, devices: Devices = None) -> Callable:
  """Maps `function(params, batch)` over the cores, without donation.

  The result carries a leading axis of cores.
  """
  return jax.pmap(
    function, axis_name=AXIS, in_axes=(None, 0), out_axes=0, devices=devices
  )


def cores() -> int:
  """Number of cores of this process."""
  return jax.local_device_count()


def split_over_cores(batch: Any, devices: Devices = None) -> Any:
  """Reshapes `[rows, …]` leaves to `[local cores, rows / local cores, …]`."""
  count = cores() if devices is None else len(devices)

  def split(x: np.ndarray) -> np.ndarray:
    return x.reshape(count, x.shape[0] // count, *x.shape[1:])

  return jax.tree.map(split, batch)


def place_over_cores(batch: Any) -> Any:
  """Puts `[local cores, …]` leaves on their cores, where calls leave them."""
  mesh = jax.sharding.Mesh(np.array(jax.devices()), (AXIS,))
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))
  if jax.process_count() == 1:
    return jax.device_put(batch, split)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(split, x), batch
  )


def replicate(tree: Any, devices: Devices = None) -> Any:
  """Puts a host tree on every core once, so that steps need not copy it."""
  mesh = jax.sharding.Mesh(np.array(devices or jax.devices()), (AXIS,))
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  # Through NumPy and without aliasing: state is donated, and what the caller
  # holds must not go with it.
  tree = jax.tree.map(np.asarray, tree)
  if jax.process_count() == 1:
    return jax.device_put(tree, everywhere, may_alias=False)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(everywhere, x), tree
  )
