"""Manifests: records of a stage's config, inputs, counts and file checksums.

Every stage writes its own folder with a `manifest.json`, which holds the config
sections that the stage depends on, fingerprints of its inputs, counts, and the
sha256 of every file.  A stage is skipped if its manifest matches and its files
are undamaged.  A manifest contains a checksum of itself and is validated when
read; manifests of older versions have no checksum.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Iterable, Mapping
from typing import Any

from absl import logging

from dpr_jax import version
from dpr_jax.core import atomic_files, errors, progress
from dpr_jax.core.atomic_files import MANIFEST

_CHECKSUM, _VERSION = "checksum", "dpr_jax"
_UNFINISHED = "unfinished"
FALSE_NEGATIVES = "false_negatives"  # measured by `mine`
# Keys that describe how and when an output was made; they are not part of its
# fingerprint.
_OF_THE_RUN = frozenset(
  ("created", "seconds", "cores", "build_seconds", "passages_per_second")
  + ("padding_share", "recall", "tuning", "parts", "checkpoints", "verdict")
  + (FALSE_NEGATIVES,)
)
_PARTS = {"config": dict, "inputs": dict, "counts": dict, "files": dict}
# Commands that rebuild an output, if not `dpr-jax STAGE --overwrite`: `train`
# resumes, and `embed` rebuilds only what is damaged.
_COMMANDS = {
  "bm25": "dpr-jax mine --overwrite",
  "train": "dpr-jax train",
  "train-reader": "dpr-jax train-reader",
  "embed": "dpr-jax embed",
  "export": "dpr-jax export",
  "rerank": "dpr-jax retrieve --rerank=reader --overwrite",
}


def command(stage: str) -> str:
  """The command that rebuilds a stage's output, for messages."""
  return _COMMANDS.get(stage, f"dpr-jax {stage} --overwrite")


BIG_FILE = 2_500_000_000  # bytes; hashing fewer takes less than 5 s
HASHED_PER_SECOND = 500_000_000  # bytes, from a fast disk on one CPU core


def fingerprint(value: Any) -> str:
  """sha256 of a JSON-able value, independent of key order."""
  text = json.dumps(value, sort_keys=True, default=_plain)
  return hashlib.sha256(text.encode()).hexdigest()


def fingerprint_file(path: str | os.PathLike, algorithm: str = "sha256") -> str:
  """Hash of a file's bytes; `InputError` if it cannot be read."""
  try:
    with open(path, "rb") as file:
      size = os.fstat(file.fileno()).st_size
      if size >= BIG_FILE:
        logging.info(
          "computing the %s of %s (%.1f GB, about %s)",
          algorithm,
          path,
          size / 1e9,
          progress.clock(size / HASHED_PER_SECOND),
        )
      return hashlib.file_digest(
        file, lambda: hashlib.new(algorithm, usedforsecurity=False)
      ).hexdigest()
  except OSError as error:
    raise errors.InputError(f"cannot read {path}: {error.strerror}") from error


def _plain(value: Any) -> Any:
  if isinstance(value, tuple | set):
    return list(value)
  raise TypeError(f"{type(value).__name__} does not belong in a manifest")


def short(value: Any) -> str:
  """A value as shown in messages, cut to 12 characters if it is long."""
  text = str(value)
  return text if len(text) < 16 else f"{text[:12]}…"


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Writes a JSON file atomically."""
  with atomic_files.replace_file(path) as temporary:
    temporary.write_text(
      json.dumps(value, indent=2, ensure_ascii=False, default=_plain) + "\n",
      encoding="utf-8",
    )


def read_json(path: str | os.PathLike) -> Any:
  """Reads a JSON file; `InputError` with the line if it is malformed."""
  try:
    return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
  except OSError as error:
    raise errors.InputError(f"cannot read {path}: {error.strerror}") from error
  except RecursionError as error:
    raise errors.InputError(
      f"{path} is not JSON of dpr-jax: its brackets are nested too deeply"
    ) from error
  except ValueError as error:
    raise errors.InputError(f"{path} is not JSON: {error}") from error


def write_record(path: str | os.PathLike, values: Mapping[str, Any]) -> None:
  """Writes a JSON object together with its checksum, for `read_record`."""
  # The checksum is that of the values as read back: keys are strings, tuples
  # are lists.
  plain = json.loads(json.dumps(dict(values), default=_plain))
  plain[_VERSION] = version.__version__
  write_json(path, plain | {_CHECKSUM: fingerprint(plain)})


def read_record(path: str | os.PathLike) -> dict[str, Any]:
  """Reads what `write_record` wrote, and checks its checksum.

  Records of older versions have no checksum and are returned as they are.

  Raises:
    InputError: the file is missing, is not JSON, or is damaged.
  """
  values = read_json(path)
  if not isinstance(values, dict):
    raise errors.InputError(f"{path} is damaged: it holds no JSON object")
  recorded = values.pop(_CHECKSUM, None)
  if recorded is None and _VERSION not in values:
    return values
  found = fingerprint(values)
  if found != recorded:
    raise errors.InputError(
      f"{path} is damaged: the checksum of its contents is {short(found)}, and"
      f" {short(recorded)} is recorded"
    )
  del values[_VERSION]
  return values


def read_manifest(
  folder: pathlib.Path, stage: str, name: str = MANIFEST
) -> dict[str, Any]:
  """Reads and validates the manifest of `stage` in `folder`.

  Raises:
    InputError: the stage has not run in this workdir or has not finished, or
      the manifest is damaged.
  """
  path = folder / name
  if not path.exists():
    raise errors.InputError(
      f"{path} is missing: run `{command(stage).removesuffix(' --overwrite')}`"
      " with this --workdir first"
    )
  try:
    record = read_record(path)
  except errors.InputError as error:
    raise errors.InputError(f"{error}; run `{command(stage)}`") from error
  manifest = check_manifest(path, record, stage)
  if manifest.get("stage") != stage:
    raise errors.InputError(
      f"{path} is of `dpr-jax {manifest.get('stage')}`, not of `dpr-jax"
      f" {stage}`: the folder does not belong here; run `{command(stage)}`"
    )
  if manifest.get(_UNFINISHED):
    raise errors.InputError(
      f"{path}: the stage was not finished: run"
      f" `{command(stage).removesuffix(' --overwrite')}` again"
    )
  return manifest


def check_manifest(
  path: pathlib.Path, manifest: dict[str, Any], stage: str
) -> dict[str, Any]:
  """Returns a manifest; `InputError` if a required key is missing or bad."""
  wrong = [
    f"{key} is {manifest[key]!r}"[:80] if key in manifest else f"no {key}"
    for key, kind in _PARTS.items()
    if not isinstance(manifest.get(key), kind)
  ]
  if not wrong and not all(
    isinstance(name, str) and isinstance(sha256, str)
    for name, sha256 in manifest["files"].items()
  ):
    wrong = ["files are not names with sha256"]
  if wrong:
    raise errors.InputError(
      f"{path} is damaged: {', '.join(wrong)}; run `{command(stage)}`"
    )
  return manifest


def manifest_fingerprint(folder: pathlib.Path, stage: str) -> str:
  """Fingerprint of an earlier stage's output, for a later stage's `inputs`.

  It covers config, inputs, counts and files, but not dates, devices or speed.

  Raises:
    InputError: the stage has not run in this workdir.
  """
  path = folder / MANIFEST
  manifest = read_manifest(folder, stage)
  if _CHECKSUM not in read_json(path):  # as older versions computed it
    return fingerprint({k: v for k, v in manifest.items() if k != "created"})
  manifest = {k: v for k, v in manifest.items() if k not in _OF_THE_RUN}
  manifest["counts"] = {
    key: count
    for key, count in manifest["counts"].items()
    if not key.endswith("_in_this_run")
  }
  return fingerprint(manifest)


def damaged_files(
  folder: pathlib.Path, files: Mapping[str, str]
) -> dict[str, str]:
  """Problems of files, by name; {} = all files are undamaged.

  Args:
    folder: folder of the files.
    files: expected sha256 by name relative to the folder.
  """
  wrong = {}
  for name, expected in files.items():
    path = folder / name
    if not path.is_file():
      wrong[name] = "is missing"
      continue
    found = fingerprint_file(path)
    if found != expected:
      wrong[name] = (
        "is not the file that the manifest describes (its sha256 is"
        f" {short(found)}, and {short(expected)} is recorded): it is damaged or"
        " was replaced"
      )
  return wrong


def check_files(
  folder: pathlib.Path,
  manifest: Mapping[str, Any],
  names: Iterable[str] | None = None,
) -> None:
  """Compares files of a manifest with their recorded sha256.

  Args:
    folder: folder of the files.
    manifest: manifest that lists the files.
    names: names of the files to check; None = all.

  Raises:
    InputError: a file is missing, damaged, or not listed.
  """
  files = manifest["files"]
  stage = manifest.get("stage", "")
  for name in files if names is None else names:
    if name not in files:
      raise errors.InputError(
        f"{folder / MANIFEST} does not list {name}: it is damaged, or of"
        f" another version; run `{command(stage)}`"
      )
    if wrong := damaged_files(folder, {name: files[name]}):
      raise errors.InputError(
        f"{folder / name} {wrong[name]}; run `{command(stage)}`"
      )


def changes(
  old: Mapping[str, Any], new: Mapping[str, Any], path: str = ""
) -> list[str]:
  """Keys whose values differ, with old and new: `k1 (was 0.9, is 1.2)`."""
  found = []
  for key in sorted({*old, *new}):
    was, now = old.get(key), new.get(key)
    name = f"{path}.{key}" if path else key
    if isinstance(was, Mapping) and isinstance(now, Mapping):
      found += changes(was, now, name)
    elif was != now:
      found.append(f"{name} (was {short(was)}, is {short(now)})")
  return found


@dataclasses.dataclass(frozen=True)
class Stage:
  """A stage's output folder: what the output depends on, and its manifest.

  Attributes:
    name: name of the stage, as on the command line.
    folder: folder that the stage writes.
    config: config sections that the output depends on, as plain data.
    inputs: fingerprints of the files and manifests that the stage reads.
    manifest_name: file name of the manifest; another than `manifest.json` if
      several outputs share the folder.
  """

  name: str
  folder: pathlib.Path
  config: Mapping[str, Any]
  inputs: Mapping[str, str]
  manifest_name: str = MANIFEST

  @property
  def manifest(self) -> pathlib.Path:
    """Path of the manifest of this stage."""
    return self.folder / self.manifest_name

  @property
  def config_hash(self) -> str:
    """Fingerprint of the config sections that this stage depends on."""
    return fingerprint(self.config)

  def is_current(self, overwrite: bool = False) -> bool:
    """True if the output is complete, undamaged and unchanged; logs why not."""
    if overwrite or not self.manifest.exists():
      return False
    try:
      old = check_manifest(self.manifest, read_record(self.manifest), self.name)
    except errors.InputError as error:
      logging.warning("%s: running again: %s", self.name, error)
      return False
    if old.get(_UNFINISHED):
      return False
    if changed := self.changed(old):
      logging.info(
        "%s: running again, because of %s", self.name, ", ".join(changed)
      )
      return False
    wrong = damaged_files(self.folder, old["files"])
    if wrong:
      logging.warning(
        "%s: running again, because %s",
        self.name,
        "; ".join(
          f"{self.folder / name} {what}" for name, what in wrong.items()
        ),
      )
      return False
    logging.info("%s: done and unchanged, skipped", self.name)
    return True

  def changed(self, old: Mapping[str, Any]) -> list[str]:
    """Inputs and settings that differ from an earlier manifest."""
    changed = changes(old.get("inputs", {}), self.inputs)
    if old.get("config_hash") != self.config_hash:
      # Through JSON, like the recorded config: tuples become lists.
      ours = json.loads(json.dumps(self.config, default=_plain))
      changed += changes(old.get("config", {}), ours) or ["config"]
    return changed

  def begin(self, outputs: Iterable[pathlib.Path]) -> None:
    """Marks files in a shared folder as ours and unfinished, before the work.

    Args:
      outputs: paths of the files that the stage will write.

    Raises:
      InputError: a file exists without a manifest of ours beside it.
    """
    if not self.manifest.exists():
      for path in outputs:
        if os.path.lexists(path):
          raise errors.InputError(
            f"{path} exists without {self.manifest.name} beside it: it is not"
            " of dpr-jax, or of a killed run of an older version, and is not"
            " replaced: move it away"
          )
    self._write(self.folder, {}, {}, **{_UNFINISHED: True})

  def finish(
    self,
    counts: Mapping[str, int],
    *,
    folder: pathlib.Path | None = None,
    files: Mapping[str, str] | None = None,
    **extra: Any,
  ) -> None:
    """Writes the manifest, which marks the stage as done.

    Args:
      counts: numbers of items read, kept and dropped.
      folder: folder to write to, if it still has its temporary name; None =
        `self.folder`.
      files: sha256 by name relative to the folder.
      **extra: further keys of the manifest.
    """
    self._write(folder or self.folder, counts, files or {}, **extra)

  def _write(
    self,
    folder: pathlib.Path,
    counts: Mapping[str, int],
    files: Mapping[str, str],
    **extra: Any,
  ) -> None:
    write_record(
      folder / self.manifest_name,
      {
        "stage": self.name,
        "config_hash": self.config_hash,
        "config": self.config,
        "inputs": self.inputs,
        "counts": counts,
        "files": files,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **extra,
      },
    )
