"""Checkpoints: Orbax, wrapped, and checked bit by bit before use.

`training/checkpoints/<step>/` holds the parameters and the optimizer's state as
Orbax writes them, asynchronously and atomically.  Orbax does not notice bit
rot, so the sha256 of every file is recorded in `<step>.sha256.json` beside it
once the save is complete, and compared before a restore.  Older checkpoints are
removed only when newer ones are complete.  `selected.json` says which of them
later stages use: one, or several whose parameters are averaged.
"""

import concurrent.futures
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from dpr_jax import errors, workdir

SELECTED = "selected.json"


class Checkpoints:
  """The checkpoints of one training run."""

  def __init__(self, folder: pathlib.Path, keep: int = 2, writes: bool = True):
    """Opens `training/checkpoints`.

    Args:
      folder: of the checkpoints.
      keep: so many stay, the newest; and those that are selected.
      writes: of several processes one writes and opens the folder first; the
        others only restore.
    """
    self.folder = folder
    self._keep, self._writes = max(keep, 1), writes
    folder.mkdir(parents=True, exist_ok=True)
    self._manager = ocp.CheckpointManager(
      folder,
      options=_options(max_to_keep=None, cleanup_tmp_directories=writes),
    )
    self._unrecorded: set[int] = set()
    self._thread = concurrent.futures.ThreadPoolExecutor(1)
    self._recording: concurrent.futures.Future | None = None
    self._selection: dict[str, Any] | None = None
    for step in self.steps() if writes else ():
      if not _checksums_path(folder, step).exists():
        logging.warning("checkpoint %d was not completed: removed", step)
        self._manager.delete(step)

  def steps(self) -> list[int]:
    """Steps of complete checkpoints, ascending."""
    return sorted(self._manager.all_steps())

  def save(self, step: int, params: Any, optimizer: Any) -> None:
    """Starts saving; the state is copied before this returns."""
    if not self._writes:
      raise ValueError("this process only restores")
    self._record()
    if step in self.steps():
      return
    host = jax.tree.map(
      np.asarray, jax.device_get({"params": params, "optimizer": optimizer})
    )
    self._manager.save(
      step,
      args=ocp.args.Composite(
        **{name: ocp.args.StandardSave(tree) for name, tree in host.items()}
      ),
    )
    self._unrecorded.add(step)

  def record_finished(self) -> None:
    """Makes a save that has ended count, and waits for none.

    A checkpoint without checksums is not used: a run that is killed would go on
    from the one before.  They are computed in a thread, since of several
    processes the others would wait for this one's next step.
    """
    if self._recording is not None:
      if self._recording.done():
        self._record()
    elif self._unrecorded and not self._manager.is_saving_in_progress():
      self._recording = self._thread.submit(self._write_checksums)

  def wait(self) -> None:
    """Returns when everything is on disk, with checksums."""
    self._record()

  def finish(self) -> None:
    """Waits as `wait` does, and closes."""
    self._record()
    self._thread.shutdown()
    self._manager.close()

  def select(self, steps: Sequence[int], **why: Any) -> None:
    """Says which checkpoints later stages use; they are kept.

    It is written down when all that was begun is on disk.
    """
    self._selection = {"steps": [int(step) for step in steps], **why}

  def selected(self) -> dict[str, Any]:
    """What `select` was told, {} before it."""
    return read_selected(self.folder)

  def restore_latest(self, params: Any, optimizer: Any) -> tuple[int, Any, Any]:
    """The newest checkpoint that is whole, as NumPy arrays.

    Args:
      params: a parameter tree of the right structure.
      optimizer: an optimizer state of the right structure.

    Returns:
      (step, params, optimizer); step 0 and the arguments where there is none.
    """
    for step in reversed(self.steps()):
      try:
        return self.restore(step, params, optimizer)
      except errors.InputError as error:
        logging.warning("%s; trying an older checkpoint", error)
    return 0, params, optimizer

  def restore(
    self, step: int, params: Any, optimizer: Any
  ) -> tuple[int, Any, Any]:
    """One checkpoint; arguments and result as of `restore_latest`.

    Raises:
      InputError: it is not here, or not whole.
    """
    if not step:
      return 0, params, optimizer
    _check(self.folder, step)
    like = {"params": params, "optimizer": optimizer}
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype), like
    )
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        **{
          name: ocp.args.StandardRestore(tree)
          for name, tree in abstract.items()
        }
      ),
    )
    restored = jax.tree.map(np.asarray, dict(restored))
    return step, restored["params"], restored["optimizer"]

  def _record(self) -> None:
    """Waits for the running save and records the sha256 of its files."""
    if not self._writes:
      return
    self._manager.wait_until_finished()
    if self._recording is None:
      self._write_checksums()
    else:
      self._recording.result()
    self._recording = None
    self._unrecorded.clear()
    if self._selection is not None:
      workdir.write_json(self.folder / SELECTED, self._selection)
      self._selection = None
    wanted = {*self.steps()[-self._keep :], *self.selected().get("steps", [])}
    for step in self.steps():
      if step not in wanted:
        self._manager.delete(step)
    kept = {str(step) for step in self.steps()}
    for path in self.folder.glob("*.sha256.json"):
      if path.name.split(".")[0] not in kept:
        path.unlink()

  def _write_checksums(self) -> None:
    for step in self._unrecorded:
      workdir.write_json(
        _checksums_path(self.folder, step), _checksums(self.folder / str(step))
      )


def _options(**values: Any) -> ocp.CheckpointManagerOptions:
  """Orbax's options; a process does not wait for the others.

  The state that is saved is the same on all of them, and on the host.
  """
  if jax.process_count() > 1:
    me = jax.process_index()
    values["multiprocessing_options"] = ocp.options.MultiprocessingOptions(
      primary_host=me,
      active_processes={me},
      barrier_sync_key_prefix=f"process_{me}",
    )
    values["create"] = False
  return ocp.CheckpointManagerOptions(**values)


def _checksums_path(folder: pathlib.Path, step: int) -> pathlib.Path:
  return folder / f"{step}.sha256.json"


def _checksums(folder: pathlib.Path) -> dict[str, str]:
  return {
    str(path.relative_to(folder)): workdir.fingerprint_file(path)
    for path in sorted(folder.rglob("*"))
    if path.is_file()
  }


def _check(folder: pathlib.Path, step: int) -> None:
  """Compares a checkpoint with its checksums."""
  path = _checksums_path(folder, step)
  if not path.exists():
    raise errors.InputError(
      f"checkpoint {folder / str(step)} has no checksums ({path.name}): it was"
      " not completed"
    )
  recorded = workdir.read_json(path)
  if _checksums(folder / str(step)) != recorded:
    raise errors.InputError(
      f"checkpoint {folder / str(step)} is damaged: its files do not have the"
      f" sha256 recorded in {path.name}"
    )


def read_selected(folder: pathlib.Path) -> dict[str, Any]:
  """What `Checkpoints.select` wrote last, {} where there is nothing."""
  path = folder / SELECTED
  return workdir.read_json(path) if path.exists() else {}


def load_params(
  folder: pathlib.Path, step: int | None = None
) -> tuple[int, Any]:
  """Parameters of a trained model.

  Args:
    folder: `training/checkpoints`.
    step: of which checkpoint; None = as selected (the mean, where several
      are), else the newest.

  Returns:
    (step, parameter tree of NumPy arrays); of several steps, the last.

  Raises:
    InputError: there is no such checkpoint, or it is damaged.
  """
  there = sorted(
    int(path.name) for path in folder.glob("*") if path.name.isdigit()
  )
  if not there:
    raise errors.InputError(
      f"{folder} holds no checkpoint: run `dpr-jax train` with this --workdir"
    )
  steps = read_selected(folder).get("steps") if step is None else [step]
  steps = steps or there[-1:]
  missing = [step for step in steps if step not in there]
  if missing:
    raise errors.InputError(
      f"{folder} holds no checkpoint of step {missing[0]}; there are"
      f" {', '.join(map(str, there))}"
    )
  mean = None
  with ocp.CheckpointManager(folder, options=_options()) as manager:
    for step in steps:
      _check(folder, step)
      params = manager.restore(
        step, args=ocp.args.Composite(params=ocp.args.StandardRestore())
      )["params"]
      share = jax.tree.map(
        lambda x: (
          np.asarray(x) if len(steps) == 1 else np.asarray(x) / len(steps)
        ),
        params,
      )
      mean = share if mean is None else jax.tree.map(np.add, mean, share)
  return steps[-1], mean
