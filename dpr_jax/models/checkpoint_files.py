"""Writes and reads the files of one checkpoint, with Orbax and checksums.

A checkpoint is a folder `<step>` as Orbax writes it and `<step>.sha256.json`
next to it, {file: sha256}.  Orbax does not detect bit rot, so a checkpoint is
used only if its files match the checksums.  Both are renamed into place when
their content is on disk, the checksums first: a killed process never leaves a
checkpoint without checksums.
"""

import collections
import contextlib
import logging as py_logging
import pathlib
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from dpr_jax.core import atomic_files, disk_errors, errors
from dpr_jax.core import workdir as workdir_lib

# The checkpoint of weights between those of a training and its start: without
# the optimizer's state, and not one that training can resume from.
BLEND = "blend"
Name = int | str  # training step, or `BLEND`

_SUMS = re.compile(rf"(\d+|{BLEND})\.sha256\.json")
_UNFINISHED = "*.orbax-checkpoint-tmp*"  # Orbax's name while it writes
_LIBRARIES = ("/orbax/", "/tensorstore/", "/asyncio/")  # see `_quiet`
_TURN = threading.RLock()


def sums_path(folder: pathlib.Path, step: Name) -> pathlib.Path:
  """`<step>.sha256.json` in the folder of the checkpoints."""
  return folder / f"{step}.sha256.json"


def steps_there(folder: pathlib.Path) -> list[int]:
  """Steps of all checkpoints in a folder, complete or not, ascending."""
  return sorted(
    int(path.name)
    for path in folder.glob("*")
    if path.name.isdigit() and path.is_dir()
  )


def clear(folder: pathlib.Path) -> None:
  """Removes what a killed process left: incomplete checkpoints, lone sums."""
  atomic_files.clear_leftovers([folder])
  for path in folder.glob(_UNFINISHED):  # of an older version
    shutil.rmtree(path, ignore_errors=True)
  for path in folder.glob("*.sha256.json"):
    match = _SUMS.fullmatch(path.name)
    if match and not (folder / match[1]).exists():
      path.unlink(missing_ok=True)


def remove(folder: pathlib.Path, step: Name) -> None:
  """Removes a checkpoint, its checksums first: without them it is not used."""
  sums_path(folder, step).unlink(missing_ok=True)
  shutil.rmtree(folder / str(step), ignore_errors=True)


def write(folder: pathlib.Path, step: Name, trees: Mapping[str, Any]) -> None:
  """Writes a checkpoint; replaces an existing one of this step.

  Args:
    folder: folder of the checkpoints.
    step: training step or `BLEND`, the checkpoint's name.
    trees: trees of NumPy arrays, by name.

  Raises:
    InputError: the disk is full, or cannot be written; no files are left.
  """
  path = folder / str(step)
  remove(folder, step)
  with workdir_lib.replace_folder(path, None) as temporary:
    whole = temporary / "whole"
    args = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
    try:
      with _quiet(), _checkpointer() as checkpointer:
        checkpointer.save(whole, args=ocp.args.Composite(**args))
    except BaseException:
      _remove_for_good(temporary)
      raise
    for part in whole.iterdir():
      part.rename(temporary / part.name)
    whole.rmdir()
    workdir_lib.write_json(sums_path(folder, step), _sums(temporary))


def _remove_for_good(folder: pathlib.Path) -> None:
  """Removes a folder in which threads of a failed save may still write.

  Nobody can wait for those threads, and they make the folder anew when it is
  gone: it is removed until it has stayed away for a second.
  """
  away = 0
  for _ in range(300):
    if folder.exists():
      away = 0
      shutil.rmtree(folder, ignore_errors=True)
    elif away == 10:
      return
    away += 1
    time.sleep(0.1)


def read(
  folder: pathlib.Path, step: Name, like: Mapping[str, Any]
) -> dict[str, Any]:
  """A checkpoint's trees as NumPy arrays; see `problem` first.

  Args:
    folder: folder of the checkpoints.
    step: training step of the checkpoint.
    like: the trees to read, by name: a tree of arrays of the same shapes; None
      = accept any.

  Raises:
    InputError: the checkpoint has other shapes, or cannot be read.
  """
  abstract = {
    name: None
    if tree is None
    else jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype), tree
    )
    for name, tree in like.items()
  }
  try:
    with _quiet(), _checkpointer() as checkpointer:
      trees_read = checkpointer.restore(
        folder / str(step),
        args=ocp.args.Composite(
          **{
            name: ocp.args.StandardRestore(tree)
            for name, tree in abstract.items()
          }
        ),
      )
  # Orbax and tensorstore raise many types; the bytes are those written.
  except Exception as error:
    if refused := disk_errors.refusal(error):
      raise errors.InputError(
        f"cannot read checkpoint {folder / str(step)}: {refused[0]}"
      ) from error
    first = str(error).strip().partition("\n")[0]
    raise errors.InputError(
      f"checkpoint {folder / str(step)} cannot be read, though its files are"
      f" those that were written: {type(error).__name__}: {first[:300]}; was it"
      " trained with other sizes than this config's?"
    ) from error
  return jax.tree.map(np.asarray, dict(trees_read))


def problem(
  folder: pathlib.Path, step: Name, trees: Sequence[str] | None = None
) -> str | None:
  """Why a checkpoint must not be used; None where it is complete and valid.

  Args:
    folder: folder of the checkpoints.
    step: training step of the checkpoint.
    trees: names of the trees that will be read; None = all.  Of the files of
      the others, only the names are compared: the optimizer's state is as
      large as the parameters, and only training reads it.
  """
  path, record = folder / str(step), sums_path(folder, step)
  if not path.is_dir():
    return f"{path} is missing"
  if not record.exists():
    return (
      f"{path} has no checksums: {record.name} is missing, so it is unknown"
      " whether the checkpoint is complete"
    )
  try:
    recorded = workdir_lib.read_json(record)
  except errors.InputError as error:
    return f"{path} cannot be checked: {error}"
  if not isinstance(recorded, dict) or not recorded:
    return f"{path} cannot be checked: {record} holds no checksums"
  skipped = {
    name: recorded[name]
    for name in recorded
    if trees is not None and "/" in name and name.split("/")[0] not in trees
  }
  try:
    sums = _sums(path, skipped)
  except errors.InputError as error:
    return f"{path} is damaged: {error}"
  return _differences(path, recorded, sums) or _foreign(folder, step)


def _foreign(folder: pathlib.Path, step: Name) -> str | None:
  """A line if the manifest of a finished training names another checkpoint."""
  manifest = folder.parent / workdir_lib.MANIFEST
  try:
    ours = workdir_lib.read_record(manifest)["checkpoints"][str(step)]
  except (errors.InputError, KeyError, TypeError):  # not finished, or older
    return None
  found = identity(folder, step)
  if found == ours:
    return None
  return (
    f"{folder / str(step)} is not of this training: it is checkpoint"
    f" {workdir_lib.short(found)}, {manifest} names {workdir_lib.short(ours)}"
  )


def identity(folder: pathlib.Path, step: Name) -> str:
  """The sha256 of a checkpoint's checksums, which manifests record."""
  return workdir_lib.fingerprint_file(sums_path(folder, step))


def _differences(
  path: pathlib.Path, recorded: Mapping[str, str], found: Mapping[str, str]
) -> str | None:
  """A line that names the files that differ; None where none does."""
  wrong = []
  changed = [
    name for name in found if name in recorded and found[name] != recorded[name]
  ]
  if changed:
    name = changed[0]
    wrong.append(
      f"{name} has sha256 {found[name]}, recorded is {recorded[name]}"
    )
  if len(changed) > 1:
    wrong.append(f"{len(changed) - 1} more files differ")
  for names, what in (
    (sorted(recorded.keys() - found.keys()), "missing"),
    (sorted(found.keys() - recorded.keys()), "not recorded"),
  ):
    if names:
      more = f" and {len(names) - 3} more" if len(names) > 3 else ""
      wrong.append(f"{what}: {', '.join(names[:3])}{more}")
  return f"{path} is damaged: {'; '.join(wrong)}" if wrong else None


def _sums(
  folder: pathlib.Path, known: Mapping[str, str] | None = None
) -> dict[str, str]:
  """The sha256 of every file in a folder; `known` ones are not computed."""
  names = [
    str(path.relative_to(folder))
    for path in sorted(folder.rglob("*"))
    if path.is_file()
  ]
  return {
    name: (known or {}).get(name) or workdir_lib.fingerprint_file(folder / name)
    for name in names
  }


def _checkpointer() -> ocp.Checkpointer:
  """A checkpointer of Orbax in which a process does not wait for the others.

  The saved state is the same in all processes, and in host memory.
  """
  options = ocp.options.MultiprocessingOptions()
  if jax.process_count() > 1:
    me = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
      primary_host=me,
      active_processes={me},
      barrier_sync_key_prefix=f"process_{me}",
    )
  handler = ocp.CompositeCheckpointHandler(
    composite_options=ocp.CompositeOptions(multiprocessing_options=options)
  )
  return ocp.Checkpointer(handler, multiprocessing_options=options)


class _Held(py_logging.Filter):
  """Holds back the log records of the libraries of a save."""

  def __init__(self):
    super().__init__()
    self.records = collections.deque[py_logging.LogRecord](maxlen=100)

  def filter(self, record: py_logging.LogRecord) -> bool:
    """False for records that are held back."""
    if any(name in record.pathname for name in _LIBRARIES):
      self.records.append(record)
      return False
    return True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """A block of Orbax calls of which, if it fails, only the exception is shown.

  On a full disk Orbax, asyncio and tensorstore would each log tracebacks,
  hundreds of lines.  Where the block succeeds their log records are shown.
  After a failure they stay hidden: the libraries' threads log late.  Threads
  take turns, because the filters and the hook are those of the process.
  """
  with _TURN:
    held = _Held()
    handlers = {*py_logging.root.handlers, logging.get_absl_handler()}
    hook = sys.unraisablehook

    def closed_loop_is_no_news(unraisable: Any) -> None:
      # tensorstore reports to a loop that the failed save has closed already.
      if str(unraisable.exc_value) != "Event loop is closed":
        hook(unraisable)

    for handler in handlers:
      handler.addFilter(held)
    sys.unraisablehook = closed_loop_is_no_news
    yield
    sys.unraisablehook = hook
    for handler in handlers:
      handler.removeFilter(held)
    for record in held.records:
      py_logging.getLogger(record.name).handle(record)
