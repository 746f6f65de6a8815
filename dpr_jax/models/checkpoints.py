"""Saves checkpoints in the background and checks them before use.

`training/checkpoints/<step>/` holds the parameters and the optimizer's state,
`<step>.sha256.json` next to it the checksums of its files (`checkpoint_files`).
Training continues while a checkpoint is saved.  Old checkpoints are removed
only when newer ones are complete.  `selected.json` names the checkpoint that
later stages use, or several whose parameters are averaged.  With a share as
"blend" they use `blend/` instead, which holds the mean of those parameters,
with that weight, and of the parameters before training (`write_blend`).
"""

import concurrent.futures
import pathlib
from collections.abc import Mapping, Sequence
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
_PARAMS = "params"  # name of the tree that later stages read


class Checkpoints:
  """The checkpoints of one training run."""

  def __init__(self, folder: pathlib.Path, keep: int = 2, writes: bool = True):
    """Opens `training/checkpoints`; the writing process checks its content.

    Args:
      folder: folder of the checkpoints.
      keep: number of newest checkpoints to keep, besides the selected ones.
      writes: this process writes.  Of several processes one writes and opens
        the folder first; the others only restore.

    Raises:
      DiskError: the folder cannot be created.
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
    """Steps of the complete checkpoints, ascending."""
    there = checkpoint_files.steps_there(self.folder)
    return [step for step in there if step not in self._wrong]

  def wrong(self) -> dict[int, str]:
    """Why the other checkpoints must not be used, by step."""
    return dict(self._wrong)

  def save(self, step: int, params: Any, optimizer: Any) -> None:
    """Starts a save; the state is copied to the host before this returns.

    Raises:
      DiskError: the previous save could not be written.
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
    """Reports a failed save, without waiting for one in progress.

    Raises:
      DiskError: the checkpoint could not be written.
    """
    if self._saving is not None and self._saving.done():
      self._saving.result()

  def wait(self) -> None:
    """Waits until everything is on disk.

    Raises:
      DiskError: the checkpoint could not be written.
    """
    self._record()

  def finish(self) -> None:
    """Calls `wait`, then `close`."""
    self._record()
    self.close()

  def close(self) -> None:
    """Waits for a save in progress, whether it succeeds or fails."""
    self._thread.shutdown()

  def select(self, steps: Sequence[int], **why: Any) -> None:
    """Sets which checkpoints later stages use; they are kept.

    `selected.json` is written when the save in progress is on disk.

    Args:
      steps: steps of the checkpoints; of several the parameters are averaged.
      **why: further entries for `selected.json`.
    """
    self._selection = {"steps": [int(step) for step in steps], **why}

  def selected(self) -> dict[str, Any]:
    """The current selection; {} where there is none or it cannot be read."""
    if self._selection is not None:
      return self._selection
    try:
      return read_selected(self.folder)
    except errors.InputError:
      return {}

  def remembered(self) -> dict[str, Any]:
    """Entries for the manifest of a finished training.

    Orbax writes times into its files, so two runs that end with the same
    parameters have the same "weights" but different "checkpoints".
    """
    sealed = self.folder.parent / model_settings.FOLDER / model_files.FILE
    return {
      "selected": self.selected(),
      "checkpoints": {
        str(name): checkpoint_files.identity(self.folder, name)
        for name in (*self.steps(), *blend_of(self.selected()))
      },
      "weights": retriever_model.weights_digest(load_params(self.folder)[1]),
      "model_files": workdir_lib.fingerprint_file(sealed),
    }

  def restore_latest(self, params: Any, optimizer: Any) -> tuple[int, Any, Any]:
    """The newest complete checkpoint, as NumPy arrays.

    Args:
      params: a parameter tree of the right structure.
      optimizer: an optimizer state of the right structure.

    Returns:
      (step, params, optimizer); step 0 and the arguments where there is none.

    Raises:
      InputError: there are checkpoints, or were some, and none is complete.
    """
    whole = self.steps()
    if whole:
      for step, why in self._wrong.items():
        what = f"resuming after step {whole[-1]}"
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
      logging.warning("checkpoint %s: starting at step 0, not at %d", why, step)
    return 0, params, optimizer

  def restore(
    self, step: int, params: Any, optimizer: Any
  ) -> tuple[int, Any, Any]:
    """One checkpoint; arguments and result as in `restore_latest`.

    Raises:
      InputError: the checkpoint is missing or incomplete.
    """
    if not step:
      return 0, params, optimizer
    # The writing process has checked it when it opened the folder.
    why = (
      self._wrong.get(step)
      if step in self.steps() and self._writes
      else checkpoint_files.problem(self.folder, step)
    )
    if why:
      raise errors.InputError(f"checkpoint {why}")
    logging.info("loading checkpoint %s", self.folder / str(step))
    like = {"params": params, "optimizer": optimizer}
    trees = checkpoint_files.read(self.folder, step, like)
    return step, trees["params"], trees["optimizer"]

  def _record(self) -> None:
    """Waits for the running save, then removes old checkpoints."""
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
          "checkpoint %s was damaged and is removed: there are newer ones",
          self.folder / str(step),
        )
        del self._wrong[step]
      checkpoint_files.remove(self.folder, step)


def problems(
  folder: pathlib.Path, steps: Sequence[checkpoint_files.Name] | None = None
) -> dict[Any, str]:
  """Why checkpoints must not be used, by step; {} where all are complete.

  Args:
    folder: `training/checkpoints`.
    steps: steps to check, and perhaps `BLEND`; None = all steps in the folder.
  """
  if steps is None:
    steps = checkpoint_files.steps_there(folder)
  reasons = {step: checkpoint_files.problem(folder, step) for step in steps}
  return {step: why for step, why in reasons.items() if why}


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
    what = f"its checkpoints are missing, though {SELECTED} names some"
  return (
    f"{folder}: {what}. Restore a copy of them, or start again at step 0:"
    f" `dpr-jax {stage} --overwrite`, in `dpr-jax run` --overwrite={stage}"
  )


def write_selected(folder: pathlib.Path, selected: dict[str, Any]) -> None:
  """Writes `selected.json`, which `read_selected` reads."""
  workdir_lib.write_record(folder / SELECTED, selected)


def blend_of(selected: Mapping[str, Any]) -> list[str]:
  """[`BLEND`] if a selection is of blended parameters, else []."""
  return [checkpoint_files.BLEND] if "blend" in selected else []


def write_blend(
  folder: pathlib.Path, selected: Mapping[str, Any], share: float, params: Any
) -> None:
  """Selects parameters between those of the selected checkpoints and the start.

  A call that is killed leaves the selection as it was, or the new one whole.

  Args:
    folder: `training/checkpoints`.
    selected: the selection, without a blend.
    share: weight of the selected checkpoints in the mean; 1 = no blend.
    params: the mean; not read where `share` is 1.

  Raises:
    DiskError: the folder cannot be written.
  """
  with workdir_lib.writing(folder):
    write_selected(folder, dict(selected))
    checkpoint_files.remove(folder, checkpoint_files.BLEND)
    if share == 1:
      return
    trees = {_PARAMS: jax.tree.map(np.asarray, params)}
    checkpoint_files.write(folder, checkpoint_files.BLEND, trees)
    write_selected(folder, {**selected, "blend": share})


def read_selected(folder: pathlib.Path) -> dict[str, Any]:
  """What `Checkpoints.select` wrote last; {} where there is no file.

  Raises:
    InputError: the file is damaged.
  """
  path = folder / SELECTED
  if not path.exists():
    return {}
  again = f"`dpr-jax {_stage(folder)}` writes it again"
  try:
    record = workdir_lib.read_record(path)
  except errors.InputError as error:
    raise errors.InputError(f"{error}; {again}") from error
  steps = record.get("steps")
  if (
    not isinstance(steps, list)
    or not steps
    or not all(type(step) is int for step in steps)
  ):
    raise errors.InputError(f"{path} is damaged: it names no steps; {again}")
  return record


def _chosen(folder: pathlib.Path) -> dict[str, Any]:
  """The selection, from `selected.json` or a finished run's manifest; or {}.

  Raises:
    InputError: `selected.json` is damaged and the training is not finished.
  """
  wrong = None
  try:
    if record := read_selected(folder):
      return record
  except errors.InputError as error:
    wrong = error
  manifest = folder.parent / workdir_lib.MANIFEST
  if manifest.exists():
    selected = workdir_lib.read_record(manifest).get("selected") or {}
    if selected.get("steps"):
      logging.warning(
        "%s: using the checkpoints that the manifest names",
        wrong or f"{folder / SELECTED} is missing",
      )
      return selected
  if wrong:
    raise wrong
  return {}


def check_any(folder: pathlib.Path) -> list[int]:
  """Steps of the checkpoints, ascending; `InputError` if there are none."""
  there = checkpoint_files.steps_there(folder)
  if not there:
    raise errors.InputError(
      f"{folder} holds no checkpoint: run `dpr-jax {_stage(folder)}` with this"
      " --workdir"
    )
  return there


def load_params(
  folder: pathlib.Path, step: int | None = None
) -> tuple[int, Any]:
  """Parameters of a trained model.

  Args:
    folder: `training/checkpoints`.
    step: step of the checkpoint; None = the selected one (the mean of several,
      or their blend with the start), or the newest where none is selected.

  Returns:
    (step, parameter tree of NumPy arrays); of several steps, the last.

  Raises:
    InputError: there is no such checkpoint, or it is damaged.
  """
  there = check_any(folder)
  selected = _chosen(folder) if step is None else {"steps": [step]}
  steps = selected.get("steps") or there[-1:]
  if blend_of(selected):
    return steps[-1], _params(folder, checkpoint_files.BLEND, there)
  missing = [step for step in steps if step not in there]
  if missing:
    raise errors.InputError(
      f"{folder} holds no checkpoint of step {missing[0]}; there are"
      f" {', '.join(map(str, there))}"
    )
  mean = None
  for step in steps:
    params = _params(folder, step, there)
    # The mean, one checkpoint at a time: two trees are in memory, not all.
    share = jax.tree.map(
      lambda x: x if len(steps) == 1 else x / len(steps), params
    )
    mean = share if mean is None else jax.tree.map(np.add, mean, share)
  return steps[-1], mean


def _params(
  folder: pathlib.Path, name: checkpoint_files.Name, there: list[int]
) -> Any:
  """Parameters of one checkpoint; `InputError` if it is damaged.

  Args:
    folder: `training/checkpoints`.
    name: step, or `BLEND`.
    there: steps of all checkpoints, for the message.
  """
  logging.info("loading checkpoint %s", folder / str(name))
  if why := checkpoint_files.problem(folder, name, [_PARAMS]):
    raise errors.InputError(f"checkpoint {why}; {_way_on(folder, there)}")
  return checkpoint_files.read(folder, name, {_PARAMS: None})[_PARAMS]


def _way_on(folder: pathlib.Path, there: list[int]) -> str:
  """Which checkpoints are complete and what to do about a damaged one."""
  wrong, stage = problems(folder), _stage(folder)
  whole = [step for step in there if step not in wrong]
  if not whole:
    return (
      "no other checkpoint is complete: restore a copy, or run `dpr-jax"
      f" {stage} --overwrite`"
    )
  return (
    f"complete checkpoints: {', '.join(map(str, whole))}; `dpr-jax {stage}`"
    f" resumes from step {whole[-1]} and makes it again"
  )
