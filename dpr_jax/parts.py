"""A stage's output in numbered parts, each finished on its own.

A part is one or several files and a record `part-<number>.json` beside them
with their sha256.  Whoever starts again, with however many processes, makes
only the parts that are not there; what another model, corpus or tokenizer left
is refused.  Parts are dealt to processes by number alone (`mine`): nobody
waits for anybody, until process 0 sees all of them and writes the manifest.
"""

import dataclasses
import pathlib
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from dpr_jax import errors, workdir

_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_BETWEEN_LINES = 30.0
# `vectors-00012.npy`, or what a killed process left of it under its temporary
# name.
_NAME = re.compile(
  r"(?P<kind>[a-z]+)-(?P<number>\d+)(?P<temporary>\.tmp-\d+)?\."
)


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

  stage: workdir.Stage
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
      InputError: what is there was made from something else.
    """
    folder = self.stage.folder
    folder.mkdir(parents=True, exist_ok=True)
    changed = self._changed()
    if changed and not (overwrite or replace):
      raise errors.InputError(
        f"{folder} holds the work of another {self.stage.name}: other"
        f" {', '.join(changed)}; --overwrite throws it away and starts anew"
      )
    self._remove_temporaries()
    if overwrite or changed:
      self._clear()
      return False
    if not self.stage.manifest.exists():
      return False
    manifest = workdir.read_json(self.stage.manifest)
    damaged = [
      name
      for part in manifest["parts"]
      for name, sha256 in part["files"].items()
      if not _is_whole(folder / name, sha256)
    ]
    if not damaged:
      for path, _ in self._files_of_mine(records_only=True):
        path.unlink()  # of a run that was killed after its last part
      logging.info("%s: done and unchanged, skipped", self.stage.name)
      return True
    logging.warning(
      "%s: damaged or missing, made again: %s",
      self.stage.name,
      ", ".join(damaged),
    )
    if self.process == 0:
      for number, part in enumerate(manifest["parts"]):
        workdir.write_json(folder / _record(number), self._identity() | part)
      self.stage.manifest.unlink()
    return False

  def find(self, number: int) -> dict[str, Any] | None:
    """The record of a part that is there and whole, or None."""
    path = self.stage.folder / _record(number)
    if not path.exists():
      return None
    record = workdir.read_json(path)
    for name, sha256 in record["files"].items():
      if not _is_whole(self.stage.folder / name, sha256):
        logging.warning(
          "%s: %s is damaged or missing, made again", self.stage.name, name
        )
        return None
    return record

  def finish(self, number: int, files: Mapping[str, str], **extra: Any) -> None:
    """Records a part as done.

    Args:
      number: of the part.
      files: sha256 by name.
      **extra: what else to remember of it.
    """
    workdir.write_json(
      self.stage.folder / _record(number),
      self._identity() | {"files": files, **extra},
    )

  def collect(self) -> list[dict[str, Any]] | None:
    """Waits for the parts of all processes.

    Returns:
      In process 0 the records in order, without what they have in common; for
      `close`.  None in the others, once the manifest is there.
    """
    folder, said = self.stage.folder, time.monotonic()
    while True:
      if self.process:
        missing = [] if self._is_closed() else [workdir.MANIFEST]
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
      workdir.read_json(folder / _record(number))
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
    for path in self._records():
      path.unlink()

  def _identity(self) -> dict[str, Any]:
    return {"config": self.stage.config, "inputs": self.stage.inputs}

  def _changed(self) -> list[str]:
    """What of the stage is other than in what is there, with both values."""
    there = self._records()
    if self.stage.manifest.exists():
      there.append(self.stage.manifest)
    for path in there:
      found = workdir.read_json(path)
      changed = [
        f"{name} (there {_short(theirs.get(name))}, now"
        f" {_short(ours.get(name))})"
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
      self.stage.manifest.unlink(missing_ok=True)
    for path, _ in self._files_of_mine():
      path.unlink(missing_ok=True)

  def _remove_temporaries(self) -> None:
    """Removes what killed runs left; nobody else writes these files now."""
    left = [path for path, temporary in self._files_of_mine() if temporary]
    if self.process == 0:  # the one that writes the manifest
      left += self.stage.folder.glob(f"{self.stage.manifest.stem}.tmp-*")
    for path in left:
      path.unlink(missing_ok=True)

  def _records(self) -> list[pathlib.Path]:
    """The records that are there, of all processes."""
    found = self.stage.folder.glob(_record("*"))
    return sorted(p for p in found if not _NAME.match(p.name)["temporary"])

  def _files_of_mine(
    self, records_only: bool = False
  ) -> Iterator[tuple[pathlib.Path, bool]]:
    """Files and records of our numbers, and whether the name is temporary."""
    patterns = () if records_only else self.patterns
    for pattern in (_record("*"), *patterns):
      for path in sorted(self.stage.folder.glob(pattern)):
        found = _NAME.match(path.name)
        if found and int(found["number"]) % self.processes == self.process:
          yield path, bool(found["temporary"])


def write_array(path, array: np.ndarray) -> str:
  """Writes `.npy` under a temporary name, renames it, returns its sha256.

  Raises:
    InputError: the disk is full, or the folder cannot be written.
  """
  try:
    with workdir.replace_file(path) as temporary:
      np.save(temporary, array, allow_pickle=False)
      return workdir.fingerprint_file(temporary)
  except OSError as error:
    # NumPy says how much it could not write, not why.
    reason = error.strerror or f"No space left on device ({error})"
    raise errors.InputError(
      f"cannot write {path}: {reason}; make room (what is done so far is kept)"
      " and run the command again"
    ) from error


def check_whole(folder, files: Iterable[tuple[str, str]], command: str) -> None:
  """`InputError` where a file is missing or its bytes are not those written.

  Args:
    folder: where they are.
    files: names and sha256.
    command: mends it.
  """
  for name, sha256 in files:
    path = folder / name
    if not path.exists():
      raise errors.InputError(f"{path} is missing: run `{command}` again")
    if not _is_whole(path, sha256):
      raise errors.InputError(
        f"{path} is not the file that the manifest describes (its sha256 is"
        f" not {sha256}): it is damaged or was replaced; run `{command}` again:"
        " it makes only what is damaged"
      )


def _record(number: int | str) -> str:
  return f"part-{number:05d}.json" if number != "*" else "part-*.json"


def _is_whole(path, sha256: str) -> bool:
  return path.exists() and workdir.fingerprint_file(path) == sha256


def _short(value: Any) -> str:
  text = str(value)
  return text if len(text) < 16 else f"{text[:12]}…"
