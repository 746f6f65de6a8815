"""Maps functions over devices with `jax.pmap`, and moves arrays to devices.

This is the only module that uses pmap.  Train and embed steps are written for
one device and use the axis name `AXIS` in collectives.  State goes in and comes
out as an ordinary tree without a device axis (`in_axes` and `out_axes` None)
and is donated; batches have a leading axis of local devices.  After
`jax.distributed.initialize` the mapping spans all processes.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from dpr_jax.core import jax_unstable

AXIS = "cores"
Devices = Sequence[jax.Device] | None  # None = all devices

# The TPU compiler's threads overflow their stacks on BERT-base's train step.
_STACKS = (
  "--fibers_default_thread_stack_size=8388608",
  "--xla_internal_thread_stack_size_bytes=8388608",
)


def libtpu_arguments() -> str:
  """Value of LIBTPU_INIT_ARGS to set before JAX loads libtpu."""
  given = os.environ.get("LIBTPU_INIT_ARGS", "").split()
  return " ".join([*given, *(one for one in _STACKS if one not in given)])


def map_train_step(
  step: Callable, devices: Devices = None, state_axes: Any = None
) -> Callable:
  """Maps `step(state, batch) -> (state, metrics)` over the devices.

  The state is donated; metrics must be equal on all devices.

  Args:
    step: function for one device.
    devices: devices to map over; None = all.
    state_axes: None = the whole state is replicated; else a tree of None
      (replicated) and 0 (differs by device: leading axis of devices).
  """
  return jax.pmap(
    step,
    axis_name=AXIS,
    in_axes=(state_axes, 0),
    out_axes=(state_axes, None),
    donate_argnums=(0,),
    devices=devices,
  )


def map_over_cores(function: Callable, devices: Devices = None) -> Callable:
  """Maps `function(params, batch)` over the devices, without donation.

  The result has a leading axis of devices.  With several processes, each one
  maps over its own devices, unless `devices` is given.
  """
  if devices is None and jax.process_count() > 1:
    devices = jax.local_devices()
  return jax.pmap(
    function, axis_name=AXIS, in_axes=(None, 0), out_axes=0, devices=devices
  )


def compile_over_cores(
  function: Callable,
  arguments: tuple[Any, Any],
  devices: Sequence[jax.Device],
  options: dict[str, Any],
) -> Callable:
  """As `map_over_cores` for one shape of arrays, compiled immediately.

  Args:
    function: function for one device: `function(params, batch)`.
    arguments: parameters and a batch, of the shapes to compile for.
    devices: devices of this process.
    options: XLA compiler options for this program.
  """
  mapped = map_over_cores(function, devices)
  return mapped.lower(*arguments).compile(compiler_options=options)


def cores() -> int:
  """Number of devices of this process."""
  return jax.local_device_count()


def split_over_cores(batch: Any, devices: Devices = None) -> Any:
  """Reshapes `[rows, …]` to `[local devices, rows / local devices, …]`."""
  count = cores() if devices is None else len(devices)

  def split(x: np.ndarray) -> np.ndarray:
    return x.reshape(count, x.shape[0] // count, *x.shape[1:])

  return jax.tree.map(split, batch)


def replicate(tree: Any, devices: Devices = None) -> Any:
  """Copies a host tree to every device, so that steps need not copy it."""
  return _put(tree, devices, jax.sharding.PartitionSpec())


def local(tree: Any) -> Any:
  """Replicated arrays of all processes as arrays on this process's devices."""
  if jax.process_count() == 1:
    return tree
  devices = jax.local_devices()
  mesh = jax.sharding.Mesh(np.array(devices), (AXIS,))
  here = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

  def own(x: jax.Array) -> jax.Array:
    parts = {shard.device: shard.data for shard in x.addressable_shards}
    return jax.make_array_from_single_device_arrays(
      x.shape, here, [parts[device] for device in devices]
    )

  return jax.tree.map(own, tree)


def assemble(trees: Sequence[Any], devices: Sequence[jax.Device]) -> Any:
  """Joins one `[1, …]` array per device to `[devices, …]`, without copying."""
  mesh = jax.sharding.Mesh(np.array(devices), (AXIS,))
  where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))

  def one(*shards: jax.Array) -> jax.Array:
    shape = (len(shards), *shards[0].shape[1:])
    return jax.make_array_from_single_device_arrays(shape, where, list(shards))

  return jax.tree.map(one, *trees)


def distribute(tree: Any, devices: Devices = None) -> Any:
  """Shards `[devices of all processes, …]` arrays by their leading axis."""
  return _put(tree, devices, jax.sharding.PartitionSpec(AXIS))


def _put(tree: Any, devices: Devices, spec: jax.sharding.PartitionSpec) -> Any:
  devices = list(jax.devices() if devices is None else devices)
  mesh = jax.sharding.Mesh(np.array(devices), (AXIS,))
  where = jax.sharding.NamedSharding(mesh, spec)
  # Copied (through NumPy, without aliasing): state is donated, which would
  # delete the caller's arrays as well.
  tree = jax.tree.map(np.asarray, tree)
  here = jax.process_index()
  if all(device.process_index == here for device in devices):
    return jax.device_put(tree, where, may_alias=False)
  return jax.tree.map(
    lambda x: jax.make_array_from_callback(
      x.shape, where, lambda index: x[index]
    ),
    tree,
  )


def fetch(tree: Any) -> Any:
  """Copies arrays from the devices to NumPy, whole.

  If other processes hold parts of an array, all processes must call this.
  """

  def get(x: Any) -> np.ndarray:
    if isinstance(x, jax.Array) and not (
      x.is_fully_addressable or x.is_fully_replicated
    ):
      gather = jax_unstable.multihost_utils().process_allgather
      return np.asarray(gather(x, tiled=True))
    return np.asarray(x)

  return jax.tree.map(get, tree)
