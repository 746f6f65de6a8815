"""The checkpoints of a training: saved in the background, checked before use.

`training/checkpoints/<step>/` holds the parameters and the optimizer's state,
`<step>.sha256.json` beside it the checksums of its files (`checkpoint_files`).
Saving does not stop training.  Older checkpoints are removed only when newer
ones are complete.  `selected.json` says which of them later stages use: one, or
several whose parameters are averaged.
"""

import concurrent.futures
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.models import (
  checkpoint_files,
  model_files,
  model_settings,
  retriever_model,
)

SELECTED = "selected.json"


class Checkpoints:
  """The checkpoints of one training run."""

  def __init__(self, folder: pathlib.Path, keep: int = 2, writes: bool = True):
    """Opens `training/checkpoints`; whoever writes looks at what is there.

    Args:
      folder: of the checkpoints.
      keep: so many stay, the newest; and those that are selected.
      writes: of several processes one writes and opens the folder first; the
        others only restore.

    Raises:
      DiskError: the folder cannot be made.
    """
    self.folder = folder
    self._keep, self._writes = max(keep, 1), writes
    self._thread = concurrent.futures.ThreadPoolExecutor(1)
    self._saving: concurrent.futures.Future | None = None
    self._saving_step = 0
    self._selection: dict[str, Any] | None = None
    self._wrong: dict[int, str] = {}
    if writes:
      with workdir_lib.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint_files.clear(folder)
      self._wrong = problems(folder)

  def steps(self) -> list[int]:
    """Steps of the checkpoints that are whole, ascending."""
    there = checkpoint_files.steps_there(self.folder)
    return [step for step in there if step not in self._wrong]

  def wrong(self) -> dict[int, str]:
    """Why the others must not be used, by step."""
    return dict(self._wrong)

  def save(self, step: int, params: Any, optimizer: Any) -> None:
    """Starts saving; the state is copied before this returns.

    Raises:
      DiskError: the save before this one could not be written.
    """
    if not self._writes:
      raise ValueError("this process only restores")
    self._record()
    if step in self.steps():
      return
    host = jax.tree.map(
      np.asarray, jax.device_get({"params": params, "optimizer": optimizer})
    )
    self._saving = self._thread.submit(
      checkpoint_files.write, self.folder, step, host
    )
    self._saving_step = step

  def look(self) -> None:
    """Waits for nothing, and tells of a save that has failed.

    Raises:
      DiskError: it could not be written.
    """
    if self._saving is not None and self._saving.done():
      self._saving.result()

  def wait(self) -> None:
    """Returns when everything is on disk.

    Raises:
      DiskError: it could not be written.
    """
    self._record()

  def finish(self) -> None:
    """Waits as `wait` does, and closes."""
    self._record()
    self.close()

  def close(self) -> None:
    """Waits for a save that is under way, however it ends."""
    self._thread.shutdown()

  def select(self, steps: Sequence[int], **why: Any) -> None:
    """Says which checkpoints later stages use; they are kept.

    It is written down when all that was begun is on disk.
    """
    self._selection = {"steps": [int(step) for step in steps], **why}

  def selected(self) -> dict[str, Any]:
    """What `select` was told; {} before it, and where it cannot be read."""
    if self._selection is not None:
      return self._selection
    try:
      return read_selected(self.folder)
    except errors.InputError:
      return {}

  def remembered(self) -> dict[str, Any]:
    """What the manifest of a finished training has to know of them.

    Orbax writes times into its files: so of two runs that end with the same
    parameters "weights" is the same, and "checkpoints" is not.
    """
    sealed = self.folder.parent / model_settings.FOLDER / model_files.FILE
    return {
      "selected": self.selected(),
      "checkpoints": {
        str(step): checkpoint_files.identity(self.folder, step)
        for step in self.steps()
      },
      "weights": retriever_model.weights_digest(load_params(self.folder)[1]),
      "model_files": workdir_lib.fingerprint_file(sealed),
    }

  def restore_latest(self, params: Any, optimizer: Any) -> tuple[int, Any, Any]:
    """The newest checkpoint that is whole, as NumPy arrays.

    Args:
      params: a parameter tree of the right structure.
      optimizer: an optimizer state of the right structure.

    Returns:
      (step, params, optimizer); step 0 and the arguments where there is none.

    Raises:
      InputError: there are checkpoints, or have been, and none is whole.
    """
    whole = self.steps()
    if whole:
      for step, why in self._wrong.items():
        what = f"training goes on after step {whole[-1]}"
        if step < whole[-1]:
          what = "it is not used"
        logging.warning("checkpoint %s: %s", why, what)
      return self.restore(whole[-1], params, optimizer)
    recorded = (self.folder / SELECTED).exists()
    known = [s for s in self._wrong if _has_sums(self.folder, s)]
    if recorded or known:
      raise errors.InputError(_nothing_whole(self.folder, self._wrong))
    # A first save that an older version did not complete.
    for step, why in self._wrong.items():
      logging.warning(
        "checkpoint %s: beginning at step 0, not at %d", why, step
      )
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
    # Whoever writes has looked already.
    why = (
      self._wrong.get(step)
      if step in self.steps() and self._writes
      else checkpoint_files.problem(self.folder, step)
    )
    if why:
      raise errors.InputError(f"checkpoint {why}")
    logging.info("loading checkpoint %s", self.folder / str(step))
    like = {"params": params, "optimizer": optimizer}
    found = checkpoint_files.read(self.folder, step, like)
    return step, found["params"], found["optimizer"]

  def _record(self) -> None:
    """Waits for the running save; then what it makes superfluous goes."""
    if not self._writes:
      return
    if self._saving is not None:
      self._saving.result()
      self._saving = None
      self._wrong.pop(self._saving_step, None)
    if self._selection is not None:
      write_selected(self.folder, self._selection)
      self._selection = None
    whole = self.steps()
    if not whole:
      return
    wanted = {*whole[-self._keep :], *self.selected().get("steps", [])}
    for step in checkpoint_files.steps_there(self.folder):
      if step in wanted or step > whole[-1]:
        continue
      if step in self._wrong:
        logging.warning(
          "checkpoint %s, which was damaged, is removed: there are newer ones",
          self.folder / str(step),
        )
        del self._wrong[step]
      checkpoint_files.remove(self.folder, step)


def problems(
  folder: pathlib.Path, steps: Sequence[int] | None = None
) -> dict[int, str]:
  """Why checkpoints must not be used, by step; {} where all are whole.

  Args:
    folder: `training/checkpoints`.
    steps: to look at; None = all that are there.
  """
  if steps is None:
    steps = checkpoint_files.steps_there(folder)
  found = {step: checkpoint_files.problem(folder, step) for step in steps}
  return {step: why for step, why in found.items() if why}


def _has_sums(folder: pathlib.Path, step: int) -> bool:
  return checkpoint_files.sums_path(folder, step).exists()


def _stage(folder: pathlib.Path) -> str:
  """The stage whose checkpoints are in `training` or `reader`."""
  return "train-reader" if folder.parent.name == "reader" else "train"


def _nothing_whole(folder: pathlib.Path, wrong: dict[int, str]) -> str:
  stage = _stage(folder)
  if wrong:
    count = "the only one" if len(wrong) == 1 else f"all {len(wrong)}"
    what = f"{count} of the checkpoints there must not be used: " + "; ".join(
      wrong[step] for step in sorted(wrong)
    )
  else:
    what = f"its checkpoints are gone, and {SELECTED} says that there were some"
  return (
    f"{folder}: {what}. Put back a copy of them, or begin again at step 0:"
    f" `dpr-jax {stage} --overwrite`, in `dpr-jax run` --overwrite={stage}"
  )


def write_selected(folder: pathlib.Path, selected: dict[str, Any]) -> None:
  """Writes down what `read_selected` is to read."""
  workdir_lib.write_record(folder / SELECTED, selected)


def read_selected(folder: pathlib.Path) -> dict[str, Any]:
  """What `Checkpoints.select` wrote last, {} where there is nothing.

  Raises:
    InputError: the file is damaged.
  """
  path = folder / SELECTED
  if not path.exists():
    return {}
  again = f"`dpr-jax {_stage(folder)}` writes it again"
  try:
    found = workdir_lib.read_record(path)
  except errors.InputError as error:
    raise errors.InputError(f"{error}; {again}") from error
  steps = found.get("steps")
  if (
    not isinstance(steps, list)
    or not steps
    or not all(type(step) is int for step in steps)
  ):
    raise errors.InputError(f"{path} is damaged: it names no steps; {again}")
  return found


def _chosen(folder: pathlib.Path) -> list[int]:
  """The steps that are selected; the manifest of a finished run has them too.

  Raises:
    InputError: `selected.json` is damaged and the training is not finished.
  """
  wrong = None
  try:
    if found := read_selected(folder):
      return found["steps"]
  except errors.InputError as error:
    wrong = error
  manifest = folder.parent / workdir_lib.MANIFEST
  if manifest.exists():
    selected = workdir_lib.read_record(manifest).get("selected") or {}
    if steps := selected.get("steps"):
      logging.warning(
        "%s: the manifest says which checkpoints are used",
        wrong or f"{folder / SELECTED} is missing",
      )
      return steps
  if wrong:
    raise wrong
  return []


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
  there, command = checkpoint_files.steps_there(folder), _stage(folder)
  if not there:
    raise errors.InputError(
      f"{folder} holds no checkpoint: run `dpr-jax {command}` with this"
      " --workdir"
    )
  steps = _chosen(folder) if step is None else [step]
  steps = steps or there[-1:]
  missing = [step for step in steps if step not in there]
  if missing:
    raise errors.InputError(
      f"{folder} holds no checkpoint of step {missing[0]}; there are"
      f" {', '.join(map(str, there))}"
    )
  mean = None
  for step in steps:
    logging.info("loading checkpoint %s", folder / str(step))
    why = checkpoint_files.problem(folder, step)
    if why:
      raise errors.InputError(f"checkpoint {why}; {_way_on(folder, there)}")
    params = checkpoint_files.read(folder, step, {"params": None})["params"]
    share = jax.tree.map(
      lambda x: x if len(steps) == 1 else x / len(steps), params
    )
    mean = share if mean is None else jax.tree.map(np.add, mean, share)
  return steps[-1], mean


def _way_on(folder: pathlib.Path, there: list[int]) -> str:
  """What is whole, and what to do, where a checkpoint is not."""
  wrong, stage = problems(folder), _stage(folder)
  whole = [step for step in there if step not in wrong]
  if not whole:
    return (
      "no other one is whole: put back a copy, or run `dpr-jax"
      f" {stage} --overwrite`"
    )
  return (
    f"whole: {', '.join(map(str, whole))}; `dpr-jax {stage}` goes on from step"
    f" {whole[-1]} and makes it again"
  )
