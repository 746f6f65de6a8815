"""Reuse of a stage's output for an earlier state of the corpus.

Outputs with a part per range of rows store a 64-bit digest per row, of all that
the row's output depends on.  If only the corpus has changed, the folder is set
aside, and the next run copies what has the same digest: rows may have been
added, removed or moved.  At the end it is removed.  A killed run leaves it
complete, for the next one.
"""

import functools
import os
import pathlib
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Int, UInt64

from dpr_jax.core import errors, sharded_output
from dpr_jax.core import workdir as workdir_lib

_BLOCK = 1 << 20  # digests searched at once, to save memory
CORPUS = "passages"  # name of the corpus among the inputs of a stage


class RowsByDigest:
  """Finds the rows of an earlier corpus by their digests."""

  def __init__(self, digests: UInt64[np.ndarray, " rows"]):
    """`digests` are those of the earlier rows; they are sorted when needed."""
    self._digests = digests

  @functools.cached_property
  def _order(self) -> Int[np.ndarray, " rows"]:
    return np.argsort(self._digests, kind="stable")

  def find(
    self, digests: UInt64[np.ndarray, " some"]
  ) -> Int[np.ndarray, " some"]:
    """The first earlier row with each digest; -1 = none."""
    found = np.full(len(digests), -1)
    if not len(self._digests):
      return found
    for first in range(0, len(digests), _BLOCK):
      some = digests[first : first + _BLOCK]
      places = np.searchsorted(self._digests, some, sorter=self._order)
      rows = self._order[np.minimum(places, len(self._order) - 1)]
      same = self._digests[rows] == some
      found[first : first + len(some)] = np.where(same, rows, -1)
    return found


def folder_of(stage: workdir_lib.Stage) -> pathlib.Path:
  """Where the earlier output of a stage is set aside.

  If the stage's folder is a symbolic link, it is beside the link's target, on
  the same disk.
  """
  folder = _target(stage)
  return folder.with_name(f"{folder.name}-before")


def _target(stage: workdir_lib.Stage) -> pathlib.Path:
  folder = stage.folder
  return folder.resolve() if folder.is_symlink() else folder


def restore_target(stage: workdir_lib.Stage) -> None:
  """Makes the target of a symbolic link, if `set_aside` was killed before."""
  if stage.folder.is_symlink() and folder_of(stage).exists():
    with workdir_lib.writing(stage.folder):
      _target(stage).mkdir(exist_ok=True)


def is_of_another_corpus(
  stage: workdir_lib.Stage, manifest: Mapping[str, Any]
) -> bool:
  """Whether the corpus, and no other input, differs from a manifest's."""
  theirs, ours = dict(manifest["inputs"]), dict(stage.inputs)
  return theirs.pop(CORPUS, None) != ours.pop(CORPUS, None) and theirs == ours


def set_aside(
  stage: workdir_lib.Stage,
  manifest: Mapping[str, Any],
  ours: Iterable[str] = (),
) -> bool:
  """Moves a stage's folder aside, unless it has files of the user.

  The target of a symbolic link is moved, not the link.

  Args:
    stage: the stage.
    manifest: manifest in the folder, of an output that can be reused.
    ours: names of files and folders of ours that the manifest does not list.

  Returns:
    Whether the folder was moved.

  Raises:
    InputError: its place is taken by a folder that `discard` does not know.
  """
  known = {*manifest["files"], workdir_lib.MANIFEST, *ours}
  # Of a run that was killed after it had written the manifest.
  known |= {path.name for path in sharded_output.Parts(stage, 0, ()).records()}
  known.add(sharded_output.STARTED)
  if {path.name for path in stage.folder.iterdir()} - known:
    return False
  discard(stage)
  before = folder_of(stage)
  if before.exists() and any(before.iterdir()):
    raise errors.InputError(
      f"{before} has no manifest of {stage.name}, so it is not removed, but"
      f" {stage.folder} has to be set aside there: move it away, or use"
      " --overwrite"
    )
  with workdir_lib.writing(stage.folder):
    os.replace(_target(stage), before)
  restore_target(stage)
  logging.info(
    "%s: the corpus has changed: reusing the output for passages that have not",
    stage.name,
  )
  return True


def discard(stage: workdir_lib.Stage) -> None:
  """Removes what was set aside, if there is anything."""
  restore_target(stage)
  folder = folder_of(stage)
  try:
    workdir_lib.read_manifest(folder, stage.name)
  except errors.InputError:  # there is nothing, or it is not ours
    return
  with workdir_lib.writing(folder):
    for path in folder.iterdir():
      # The manifest goes last: without it a killed run would leave the rest.
      if path.is_dir():
        shutil.rmtree(path)
      elif path.name != workdir_lib.MANIFEST:
        path.unlink()
    shutil.rmtree(folder)
