"""A stage's output in numbered parts, each finished on its own.

A part is one or several files and a record `part-<number>.json` beside them
with their sha256.  Whoever starts again, with however many processes, makes
only the parts that are not there; what another model, corpus or tokenizer left
is refused.  Parts are dealt to processes by number alone (`mine`): nobody
waits for anybody, until process 0 sees all of them and writes the manifest.
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
# `vectors-00012.npy`, or what a killed process left of it under its temporary
# name, that of older versions included.
_NAME = re.compile(
  r"(?P<kind>[a-z]+)-(?P<number>\d+)(?P<temporary>\.(dprjax-)?tmp-\d+)?\.\w+"
)
STARTED = "started.json"


@dataclasses.dataclass(frozen=True)
class Parts:
  """The parts of one stage.

  Attributes:
    stage: whose output it is; its config and inputs say what belongs together.
    count: how many parts there are in all.
    patterns: globs of the parts' files.
    process: number of this process.
    processes: number of all processes.
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
    """Looks at what is there; True where all is done, whole and ours.

    A part that is damaged will be made again.

    Args:
      overwrite: nothing that is there is used.
      replace: what was made from something else is thrown away, not refused.

    Raises:
      InputError: what is there was made from something else, or is not ours,
        or its manifest is damaged.
    """
    folder = self.stage.folder
    if not self._is_ours():
      workdir_lib.check_ours(folder, self.stage.name, whole=False)
    if not overwrite:
      self._check_manifest(replace)
    changed = self._changed()
    if changed and not (overwrite or replace):
      raise errors.InputError(
        f"{folder} holds the work of another {self.stage.name}: other"
        f" {', '.join(changed)}; --overwrite throws it away and starts anew"
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
    """Says whose the folder is while there is no manifest."""
    workdir_lib.write_record(
      self.stage.folder / STARTED,
      {"stage": self.stage.name} | self._identity(),
    )

  def _is_whole(self, manifest: Mapping[str, Any]) -> bool:
    """True where all files of a manifest are; else its parts are found again.

    A part that is damaged will be made again.
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
          path.unlink()  # of a run that was killed after its last part
        if self.process == 0:
          (folder / STARTED).unlink(missing_ok=True)
      logging.info("%s: done and unchanged, skipped", self.stage.name)
      return True
    logging.warning(
      "%s: made again: %s",
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
    """Refuses a damaged manifest: it does not say what the files are."""
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
          f"{said}: whose files these are is not known; `dpr-jax"
          f" {self.stage.name} --overwrite` makes them again"
        ) from error
      logging.warning("%s: made again: %s", self.stage.name, error)
      if self.process == 0:
        self._sign()  # before what else says whose the folder is goes
        with workdir_lib.writing(path):
          path.unlink(missing_ok=True)

  def _is_ours(self) -> bool:
    """True where a record of a part says so; older versions left no other."""
    return bool(self._records())

  def find(self, number: int) -> dict[str, Any] | None:
    """The record of a part that is there and whole, or None."""
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

  def _read_part(self, path: pathlib.Path) -> dict[str, Any] | None:
    """A part's record; None, and says so, where it is damaged."""
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
      number: of the part.
      files: sha256 by name.
      **extra: what else to remember of it.
    """
    self._write_part(number, {"files": files, **extra})

  def collect(self) -> list[dict[str, Any]] | None:
    """Waits for the parts of all processes.

    Returns:
      In process 0 the records in order, without what they have in common; for
      `close`.  None in the others, once the manifest is there.
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
          "%s: waits for other processes: %d files to come, first %s",
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
    """True where the first process has taken our records into its manifest.

    A manifest alone could be that of an earlier run, soon to be replaced.
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
    """Writes the manifest; the records are then no longer needed.

    Args:
      records: from `collect`.
      counts: for the manifest.
      **extra: further keys of the manifest.
    """
    files = {
      name: sha256
      for record in records
      for name, sha256 in record["files"].items()
    }
    self.stage.finish(counts, files=files, parts=records, **extra)
    with workdir_lib.writing(self.stage.folder):
      for path in (*self._records(), self.stage.folder / STARTED):
        path.unlink(missing_ok=True)

  def _identity(self) -> dict[str, Any]:
    return {
      "config": dict(self.stage.config),
      "inputs": dict(self.stage.inputs),
    }

  def _changed(self) -> list[str]:
    """What of the stage is other than in what is there, with both values."""
    there = self._records()
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
        f"{name} (there {manifests.short(theirs.get(name))}, now"
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
    """Removes this process's parts; process 0 also the manifest."""
    if self.process == 0:
      for path in (self.stage.manifest, self.stage.folder / STARTED):
        path.unlink(missing_ok=True)
    for path, _ in self._files_of_mine():
      path.unlink(missing_ok=True)

  def _remove_temporaries(self) -> None:
    """Removes what killed runs left; nobody else writes these files now."""
    left = [path for path, temporary in self._files_of_mine() if temporary]
    if self.process == 0:  # the one that writes the manifest
      stems = [self.stage.manifest.stem]
      if self.processes == 1:  # every process writes this at its beginning
        stems.append(STARTED.removesuffix(".json"))
      for stem in stems:
        for mark in ("dprjax-tmp", "tmp"):  # the second of older versions
          left += self.stage.folder.glob(f"{stem}.{mark}-*")
    for path in left:
      path.unlink(missing_ok=True)

  def _records(self) -> list[pathlib.Path]:
    """The records that are there, of all processes."""
    found = self.stage.folder.glob(_record("*"))
    named = ((path, _NAME.fullmatch(path.name)) for path in found)
    return sorted(p for p, match in named if match and not match["temporary"])

  def _files_of_mine(
    self, records_only: bool = False
  ) -> Iterator[tuple[pathlib.Path, bool]]:
    """Files and records of our numbers, and whether the name is temporary."""
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
      # NumPy writes to a real file by itself, and does not say why it cannot.
      plain = types.SimpleNamespace(write=file.write)
      np.save(plain, array, allow_pickle=False)
    return workdir_lib.fingerprint_file(temporary)


def check_whole(folder, files: Iterable[tuple[str, str]], command: str) -> None:
  """`InputError` where a file is missing or its bytes are not those written.

  Args:
    folder: where they are.
    files: names and sha256.
    command: mends it.
  """
  for name, what in manifests.damaged_files(folder, dict(files)).items():
    raise errors.InputError(
      f"{folder / name} {what}; run `{command}` again: it makes only what is"
      " damaged"
    )


def _record(number: int | str) -> str:
  return f"part-{number:05d}.json" if number != "*" else "part-*.json"
