"""Stage outputs in numbered parts that can be resumed part by part.

A part is one or more files and a record `part-<number>.json` with their sha256.
A restart, with any number of processes, makes only the missing or damaged
parts; parts of another model, corpus or tokenizer are refused.  Parts are
assigned to processes by number (`mine`), so processes do not wait for each
other until process 0 has seen all parts and writes the manifest.
"""

import contextlib
import dataclasses
import pathlib
import re
import time
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from dpr_jax.core import errors, manifests
from dpr_jax.core import workdir as workdir_lib

_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_BETWEEN_LINES = 30.0
# `vectors-00012.npy`, or its temporary name, including that of older versions.
_NAME = re.compile(
  r"(?P<kind>[a-z]+)-(?P<number>\d+)(?P<temporary>\.(dprjax-)?tmp-\d+)?\.\w+"
)
STARTED = "started.json"


@dataclasses.dataclass(frozen=True)
class Parts:
  """The parts of one stage's output.

  Attributes:
    stage: stage that writes the parts; parts with the same config and inputs
      belong together.
    count: total number of parts.
    patterns: globs that match the parts' files.
    process: number of this process, from 0.
    processes: number of processes.
  """

  stage: workdir_lib.Stage
  count: int
  patterns: Sequence[str]
  process: int = 0
  processes: int = 1

  @property
  def mine(self) -> range:
    """Numbers of the parts that this process makes."""
    return range(self.process, self.count, self.processes)

  def begin(self, overwrite: bool = False, replace: bool = False) -> bool:
    """Prepares the folder; True if all parts are done, undamaged and current.

    Damaged parts will be made again.

    Args:
      overwrite: whether to discard all existing parts.
      replace: whether to discard parts made from other inputs or settings;
        False = refuse them.

    Raises:
      InputError: existing parts were made from other inputs or settings, the
        folder is not ours, or its manifest is damaged.
    """
    folder = self.stage.folder
    if not self._is_ours():
      workdir_lib.check_ours(folder, self.stage.name, whole=False)
    if not overwrite:
      self._check_manifest(replace)
    changed = self._changed()
    if changed and not (overwrite or replace):
      raise errors.InputError(
        f"{folder} was made by `dpr-jax {self.stage.name}` with other"
        f" {', '.join(changed)}; --overwrite discards it and starts again"
      )
    with workdir_lib.writing(folder):
      self._remove_temporaries()
    if overwrite or changed:
      if changed and not overwrite:
        logging.info(
          "%s: running again, because of other %s",
          self.stage.name,
          ", ".join(changed),
        )
      with workdir_lib.writing(folder):
        self._clear()
    elif self.stage.manifest.exists():
      manifest = workdir_lib.read_record(self.stage.manifest)
      if self._is_whole(manifest):
        return True
    self._sign()
    return False

  def _sign(self) -> None:
    """Marks the folder as ours while there is no manifest."""
    workdir_lib.write_record(
      self.stage.folder / STARTED,
      {"stage": self.stage.name} | self._identity(),
    )

  def _is_whole(self, manifest: Mapping[str, Any]) -> bool:
    """True if all files of a manifest are undamaged.

    If not, the manifest is replaced by records of its parts, so that `find`
    returns the undamaged parts and the others are made again.
    """
    folder = self.stage.folder
    wrong = {
      name: what
      for part in manifest["parts"]
      for name, what in manifests.damaged_files(folder, part["files"]).items()
    }
    if not wrong:
      with workdir_lib.writing(folder):
        for path, _ in self._files_of_mine(records_only=True):
          path.unlink()  # left by a run that was killed after its last part
        if self.process == 0:
          (folder / STARTED).unlink(missing_ok=True)
      logging.info("%s: done and unchanged, skipped", self.stage.name)
      return True
    logging.warning(
      "%s: will be made again: %s",
      self.stage.name,
      "; ".join(f"{folder / name} {what}" for name, what in wrong.items()),
    )
    if self.process == 0:
      for number, part in enumerate(manifest["parts"]):
        self._write_part(number, part)
      with workdir_lib.writing(self.stage.manifest):
        self.stage.manifest.unlink()
    return False

  def _check_manifest(self, replace: bool) -> None:
    """Refuses a damaged manifest, which cannot identify the files."""
    path = self.stage.manifest
    if not path.exists():
      return
    try:
      manifests.check_manifest(
        path, workdir_lib.read_record(path), self.stage.name
      )
    except errors.InputError as error:
      if not replace:
        said = str(error).partition("; run ")[0]
        raise errors.InputError(
          f"{said}: so its files cannot be identified; `dpr-jax"
          f" {self.stage.name} --overwrite` makes them again"
        ) from error
      logging.warning("%s: made again: %s", self.stage.name, error)
      if self.process == 0:
        self._sign()  # before the manifest, which marks the folder, is removed
        with workdir_lib.writing(path):
          path.unlink(missing_ok=True)

  def _is_ours(self) -> bool:
    """True if the folder has part records; older versions wrote no others."""
    return bool(self.records())

  def find(self, number: int) -> dict[str, Any] | None:
    """The record of a complete, undamaged part; None = to be made."""
    path = self.stage.folder / _record(number)
    if not path.exists():
      return None
    record = self._read_part(path)
    if record is None:
      return None
    wrong = manifests.damaged_files(self.stage.folder, record["files"])
    for name, what in wrong.items():
      logging.warning(
        "%s: made again: %s %s",
        self.stage.name,
        self.stage.folder / name,
        what,
      )
    return None if wrong else record

  def unfinished(self) -> list[dict[str, Any]]:
    """The undamaged records of parts that no manifest has yet."""
    read = map(self._read_part, self.records())
    return [record for record in read if record is not None]

  def _read_part(self, path: pathlib.Path) -> dict[str, Any] | None:
    """A part's record; None, with a warning, if it is damaged."""
    try:
      record = workdir_lib.read_record(path)
      if not isinstance(record.get("files"), dict):
        raise errors.InputError(f"{path} is damaged: it lists no files")
    except errors.InputError as error:
      logging.warning("%s: made again: %s", self.stage.name, error)
      return None
    return record

  def _write_part(self, number: int, values: Mapping[str, Any]) -> None:
    workdir_lib.write_record(
      self.stage.folder / _record(number), self._identity() | dict(values)
    )

  def finish(self, number: int, files: Mapping[str, str], **extra: Any) -> None:
    """Records a part as done.

    Args:
      number: number of the part.
      files: sha256 of the part's files by name.
      **extra: further keys of the record.
    """
    self._write_part(number, {"files": files, **extra})

  def collect(self) -> list[dict[str, Any]] | None:
    """Waits until all processes have finished their parts.

    Returns:
      In process 0: the records of all parts in order, without the config and
      inputs that they share, for `close`.  In other processes: None, after
      process 0 has written the manifest.
    """
    folder, said = self.stage.folder, time.monotonic()
    while True:
      if self.process:
        missing = [] if self._is_closed() else [workdir_lib.MANIFEST]
      else:
        missing = [
          _record(number)
          for number in range(self.count)
          if not (folder / _record(number)).exists()
        ]
      if not missing:
        break
      if time.monotonic() - said > _SECONDS_BETWEEN_LINES:
        said = time.monotonic()
        logging.info(
          "%s: waiting for other processes: %d files missing, the first is %s",
          self.stage.name,
          len(missing),
          missing[0],
        )
      time.sleep(_SECONDS_BETWEEN_LOOKS)
    if self.process:
      return None
    records = [
      workdir_lib.read_record(folder / _record(number))
      for number in range(self.count)
    ]
    common = self._identity().keys()
    return [
      {key: value for key, value in record.items() if key not in common}
      for record in records
    ]

  def _is_closed(self) -> bool:
    """True if process 0 has moved this process's records to the manifest.

    The existence of a manifest is not enough: it may be that of an earlier run,
    which will be replaced.
    """
    if any((self.stage.folder / _record(n)).exists() for n in self.mine):
      return False
    return self.stage.manifest.exists() and not self._changed()

  def close(
    self,
    records: Sequence[Mapping[str, Any]],
    counts: Mapping[str, int],
    **extra: Any,
  ) -> None:
    """Writes the manifest and removes the records of the parts.

    Args:
      records: from `collect`.
      counts: counts for the manifest.
      **extra: further keys of the manifest.
    """
    files = {
      name: sha256
      for record in records
      for name, sha256 in record["files"].items()
    }
    self.stage.finish(counts, files=files, parts=records, **extra)
    with workdir_lib.writing(self.stage.folder):
      for path in (*self.records(), self.stage.folder / STARTED):
        path.unlink(missing_ok=True)

  def _identity(self) -> dict[str, Any]:
    return {
      "config": dict(self.stage.config),
      "inputs": dict(self.stage.inputs),
    }

  def _changed(self) -> list[str]:
    """Inputs and settings that differ from those of the existing parts."""
    there = self.records()
    if self.stage.manifest.exists():
      there.append(self.stage.manifest)
    for path in there:
      found = {}
      with contextlib.suppress(
        errors.InputError
      ):  # a damaged one tells nothing
        found = workdir_lib.read_record(path)
      if not found:
        continue
      changed = [
        f"{name} (was {manifests.short(theirs.get(name))}, is"
        f" {manifests.short(ours.get(name))})"
        for theirs, ours in (
          (found.get("inputs", {}), self.stage.inputs),
          (found.get("config", {}), self.stage.config),
        )
        for name in sorted({*theirs, *ours})
        if theirs.get(name) != ours.get(name)
      ]
      if changed:
        return changed
      if "parts" not in found and path == self.stage.manifest:
        return ["version of dpr-jax that wrote it"]
    return []

  def _clear(self) -> None:
    """Removes this process's parts; process 0 also removes the manifest.

    The records go last: a killed run leaves those of what is still there.
    """
    for path, _ in reversed(list(self._files_of_mine())):
      path.unlink(missing_ok=True)
    if self.process == 0:
      for path in (self.stage.manifest, self.stage.folder / STARTED):
        path.unlink(missing_ok=True)

  def _remove_temporaries(self) -> None:
    """Removes temporary files of killed runs.

    Safe, because no other process writes parts with these numbers.
    """
    left = [path for path, temporary in self._files_of_mine() if temporary]
    if self.process == 0:  # the one that writes the manifest
      stems = [self.stage.manifest.stem]
      if self.processes == 1:  # every process writes this file when it starts
        stems.append(STARTED.removesuffix(".json"))
      for stem in stems:
        for mark in ("dprjax-tmp", "tmp"):  # "tmp": of older versions
          left += self.stage.folder.glob(f"{stem}.{mark}-*")
    for path in left:
      path.unlink(missing_ok=True)

  def records(self) -> list[pathlib.Path]:
    """Paths of the existing records of all processes."""
    found = self.stage.folder.glob(_record("*"))
    named = ((path, _NAME.fullmatch(path.name)) for path in found)
    return sorted(p for p, match in named if match and not match["temporary"])

  def _files_of_mine(
    self, records_only: bool = False
  ) -> Iterator[tuple[pathlib.Path, bool]]:
    """Files of this process's parts, and whether the name is temporary."""
    patterns = () if records_only else self.patterns
    for pattern in (_record("*"), *patterns):
      for path in sorted(self.stage.folder.glob(pattern)):
        found = _NAME.fullmatch(path.name)
        if found and int(found["number"]) % self.processes == self.process:
          yield path, bool(found["temporary"])


def write_array(path, array: np.ndarray) -> str:
  """Writes `.npy` under a temporary name, renames it, returns its sha256.

  Raises:
    DiskError: the disk is full, or the folder cannot be written.
  """
  with workdir_lib.replace_file(path) as temporary:
    with open(temporary, "wb") as file:
      # Given a real file, NumPy writes with C's fwrite and its errors have no
      # reason; an object with `write` keeps Python's errors.
      plain = types.SimpleNamespace(write=file.write)
      np.save(plain, array, allow_pickle=False)
    return workdir_lib.fingerprint_file(temporary)


def check_whole(folder, files: Iterable[tuple[str, str]], command: str) -> None:
  """`InputError` if a file is missing or damaged.

  Args:
    folder: folder of the files.
    files: (name, expected sha256) pairs.
    command: command that fixes it, for the message.
  """
  for name, what in manifests.damaged_files(folder, dict(files)).items():
    raise errors.InputError(
      f"{folder / name} {what}; run `{command}` again: it makes only what is"
      " damaged"
    )


def _record(number: int | str) -> str:
  return f"part-{number:05d}.json" if number != "*" else "part-*.json"
