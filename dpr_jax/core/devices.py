"""One function for one core, mapped over all of them: the only use of pmap.

Train and embed steps are written for one core, against `AXIS`.  State goes in
and comes out as an ordinary tree without a device axis (`in_axes` and
`out_axes` None) and is donated; batches carry a leading axis of local cores.
After `jax.distributed.initialize` the mapping spans all processes.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

AXIS = "cores"
Devices = Sequence[jax.Device] | None  # None = all there are

# The TPU compiler's threads overflow their stacks on BERT-base's train step.
_STACKS = (
  "--fibers_default_thread_stack_size=8388608",
  "--xla_internal_thread_stack_size_bytes=8388608",
)


def libtpu_arguments() -> str:
  """What LIBTPU_INIT_ARGS must be before JAX meets a TPU, or its compiler."""
  given = os.environ.get("LIBTPU_INIT_ARGS", "").split()
  return " ".join([*given, *(one for one in _STACKS if one not in given)])


def map_train_step(
  step: Callable, devices: Devices = None, state_axes: Any = None
) -> Callable:
  """Maps `step(state, batch) -> (state, metrics)` over the cores.

  The state is donated; metrics must be equal on all cores.

  Args:
    step: for one core.
    devices: the cores.
    state_axes: None = the state is replicated; or a tree of None and 0, 0
      where what the cores hold differs and has a leading axis of cores.
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
  """Maps `function(params, batch)` over the cores, without donation.

  The result carries a leading axis of cores.  Of several processes each maps
  over its own cores, unless `devices` says otherwise.
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
  """As `map_over_cores`, for arrays of one shape, compiled here and now.

  Args:
    function: for one core: `function(params, batch)`.
    arguments: parameters and a batch of that shape.
    devices: of this process alone; a process may map over its own.
    options: of the compiler, for this program.
  """
  mapped = map_over_cores(function, devices)
  return mapped.lower(*arguments).compile(compiler_options=options)


def cores() -> int:
  """Number of cores of this process."""
  return jax.local_device_count()


def split_over_cores(batch: Any, devices: Devices = None) -> Any:
  """Reshapes `[rows, …]` leaves to `[local cores, rows / local cores, …]`."""
  count = cores() if devices is None else len(devices)

  def split(x: np.ndarray) -> np.ndarray:
    return x.reshape(count, x.shape[0] // count, *x.shape[1:])

  return jax.tree.map(split, batch)


def replicate(tree: Any, devices: Devices = None) -> Any:
  """Puts a host tree on every core once, so that steps need not copy it."""
  return _put(tree, devices, jax.sharding.PartitionSpec())


def local(tree: Any) -> Any:
  """Replicated arrays of all processes, as arrays of this one's cores alone."""
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
  """What stands on each of this process's cores, `[1, …]`, as `[cores, …]`."""
  mesh = jax.sharding.Mesh(np.array(devices), (AXIS,))
  where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))

  def one(*shards: jax.Array) -> jax.Array:
    shape = (len(shards), *shards[0].shape[1:])
    return jax.make_array_from_single_device_arrays(shape, where, list(shards))

  return jax.tree.map(one, *trees)


def distribute(tree: Any, devices: Devices = None) -> Any:
  """Puts `[cores of all processes, …]` arrays there, a part on each core."""
  return _put(tree, devices, jax.sharding.PartitionSpec(AXIS))


def _put(tree: Any, devices: Devices, spec: jax.sharding.PartitionSpec) -> Any:
  devices = list(jax.devices() if devices is None else devices)
  mesh = jax.sharding.Mesh(np.array(devices), (AXIS,))
  where = jax.sharding.NamedSharding(mesh, spec)
  # Through NumPy and without aliasing: state is donated, and what the caller
  # holds must not go with it.
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
  """NumPy arrays of what `replicate` or `distribute` has put on the cores.

  Where other processes hold parts, all must call it.
  """

  def get(x: Any) -> np.ndarray:
    if isinstance(x, jax.Array) and not (
      x.is_fully_addressable or x.is_fully_replicated
    ):
      return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)

  return jax.tree.map(get, tree)
