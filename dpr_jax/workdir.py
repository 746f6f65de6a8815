"""What lies where in a workdir, and how it gets there safely.

One experiment is one config and one workdir.  Every stage writes its own
folder with a `manifest.json` that records the config sections it depends on,
fingerprints of its inputs, counts, and the sha256 of every file.  A stage whose
manifest matches is skipped; a file appears under its final name only when it
is whole (temporary name, fsync, rename, fsync of the folder).
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from typing import Any

import filelock
from absl import logging

from dpr_jax import errors

MANIFEST = "manifest.json"
_LOCK = ".lock"


def fingerprint(value: Any) -> str:
  """sha256 of a JSON-able value, independent of key order."""
  text = json.dumps(value, sort_keys=True, default=_plain)
  return hashlib.sha256(text.encode()).hexdigest()


def fingerprint_file(path: str | os.PathLike) -> str:
  """sha256 of a file's bytes; `InputError` where there is no such file."""
  try:
    with open(path, "rb") as file:
      return hashlib.file_digest(file, "sha256").hexdigest()
  except OSError as error:
    raise errors.InputError(f"cannot read {path}: {error.strerror}") from error


def _plain(value: Any) -> Any:
  if isinstance(value, tuple | set):
    return list(value)
  raise TypeError(f"{type(value).__name__} does not belong in a manifest")


# What `replace_file` and `replace_folder` call what is not finished.
_LEFTOVER = re.compile(r"(?P<name>.+?)\.(?P<kind>tmp|old)-\d+(\..+)?$")


def _fsync_folder(folder: pathlib.Path) -> None:
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


@contextlib.contextmanager
def replace_file(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields a temporary path that becomes `path` if the block succeeds.

  The temporary name keeps the suffix (`x.tmp-123.json.gz`), so that writers
  which look at it still do the right thing.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  stem, dot, suffix = path.name.partition(".")
  temporary = path.with_name(f"{stem}.tmp-{os.getpid()}{dot}{suffix}")
  try:
    yield temporary
    with open(temporary, "rb+") as file:
      os.fsync(file.fileno())
    os.replace(temporary, path)
    _fsync_folder(path.parent)
  finally:
    temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replace_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields a temporary folder that replaces `path` if the block succeeds."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
  shutil.rmtree(temporary, ignore_errors=True)
  temporary.mkdir()
  try:
    yield temporary
    old = path.with_name(f"{path.name}.old-{os.getpid()}")
    if path.exists():
      os.replace(path, old)
    os.replace(temporary, path)
    _fsync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Writes JSON under a temporary name and renames it."""
  with replace_file(path) as temporary:
    temporary.write_text(
      json.dumps(value, indent=2, ensure_ascii=False, default=_plain) + "\n",
      encoding="utf-8",
    )


def read_json(path: str | os.PathLike) -> Any:
  """Reads a JSON file; `InputError` with the line where it is malformed."""
  try:
    return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
  except OSError as error:
    raise errors.InputError(f"cannot read {path}: {error.strerror}") from error
  except ValueError as error:
    raise errors.InputError(f"{path} is not JSON: {error}") from error


@dataclasses.dataclass(frozen=True)
class Workdir:
  """Names of everything in a workdir."""

  root: pathlib.Path

  def __init__(self, root: str | os.PathLike):
    object.__setattr__(self, "root", pathlib.Path(root).absolute())

  @property
  def data(self) -> pathlib.Path:
    """`data/{passages,train,dev}`: TFDS array_record datasets."""
    return self.root / "data"

  @property
  def negatives(self) -> pathlib.Path:
    """`negatives/bm25.jsonl.gz` for train, `bm25-dev.jsonl.gz` for dev."""
    return self.root / "negatives"

  @property
  def bm25(self) -> pathlib.Path:
    """`bm25/`: the saved BM25 index over the corpus."""
    return self.root / "bm25"

  @property
  def tokens(self) -> pathlib.Path:
    """`tokens/passages`: the corpus as token ids, see `data.token_store`."""
    return self.root / "tokens" / "passages"

  @property
  def training(self) -> pathlib.Path:
    """`training/metrics.jsonl` and `training/checkpoints/<step>`."""
    return self.root / "training"

  @property
  def reader(self) -> pathlib.Path:
    """`reader/metrics.jsonl` and `reader/checkpoints/<step>`."""
    return self.root / "reader"

  def embeddings(self, model: str = "dense") -> pathlib.Path:
    """`embeddings/passages` of the trained towers, or of another model."""
    name = "passages" + model.removeprefix("dense")
    return self.root / "embeddings" / name

  def index(self, factory: str, model: str = "dense") -> pathlib.Path:
    """`index/<factory>`; a comma cannot be confused with a folder."""
    return self.root / "index" / (factory + model.removeprefix("dense"))

  def results(self, questions: str, method: str) -> pathlib.Path:
    """`results/<questions>.<method>.json`."""
    return self.root / "results" / f"{questions}.{method}.json"

  def answers(self, questions: str, method: str = "") -> pathlib.Path:
    """`answers/<questions>[.<method>].json`."""
    dot = "." if method else ""
    return self.root / "answers" / f"{questions}{dot}{method}.json"

  def evaluation(self, questions: str) -> pathlib.Path:
    """`evaluation/<questions>.json`."""
    return self.root / "evaluation" / f"{questions}.json"


@contextlib.contextmanager
def locked(where: Workdir) -> Iterator[None]:
  """Holds a workdir: no second process writes in it meanwhile.

  The lock ends with the process, however that ends.

  Raises:
    InputError: another process holds it, or the folder cannot be written.
  """
  try:
    where.root.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(where.root / _LOCK, timeout=0)
    lock.acquire()
  except filelock.Timeout as error:
    raise errors.InputError(
      f"--workdir={where.root} is in use by {_holder(where)}: wait for its end,"
      " or give another --workdir"
    ) from error
  except OSError as error:
    raise errors.InputError(
      f"--workdir={where.root} cannot be written: {error.strerror}"
    ) from error
  holder = where.root / f"{_LOCK}.json"
  try:
    _clear_leftovers(where.root)
    write_json(holder, {"pid": os.getpid()})
    yield
  finally:
    holder.unlink(missing_ok=True)
    lock.release()


def _clear_leftovers(root: pathlib.Path) -> None:
  """Removes what killed processes left under temporary names.

  A folder that one of them had put aside, and not yet replaced, goes back.
  """
  for folder, folders, files in os.walk(root):
    for name in (*folders, *files):
      found = _LEFTOVER.match(name)
      if not found:
        continue
      path = pathlib.Path(folder, name)
      whole = path.with_name(found["name"])
      if found["kind"] == "old" and not whole.exists():
        os.replace(path, whole)
      elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
      else:
        path.unlink(missing_ok=True)
    folders[:] = [name for name in folders if not _LEFTOVER.match(name)]


def _holder(where: Workdir) -> str:
  try:
    return f"process {read_json(where.root / f'{_LOCK}.json')['pid']}"
  except (errors.InputError, KeyError, TypeError):
    return "another process"


@dataclasses.dataclass(frozen=True)
class Stage:
  """One stage's claim on a folder: what it depends on, and its manifest.

  Attributes:
    name: the stage, as on the command line.
    folder: where it writes.
    config: the config sections that its output depends on, as plain data.
    inputs: fingerprints of the files and manifests it reads.
    manifest: the manifest's path, `folder/manifest.json` unless several
      outputs share the folder.
  """

  name: str
  folder: pathlib.Path
  config: Mapping[str, Any]
  inputs: Mapping[str, str]
  manifest_name: str = MANIFEST

  @property
  def manifest(self) -> pathlib.Path:
    """Where the manifest of this stage stands."""
    return self.folder / self.manifest_name

  @property
  def config_hash(self) -> str:
    """Fingerprint of the config sections that this stage depends on."""
    return fingerprint(self.config)

  def is_current(self, overwrite: bool = False) -> bool:
    """True, and says so, where the stage is done and nothing has changed."""
    if overwrite or not self.manifest.exists():
      return False
    old = read_json(self.manifest)
    changed = [
      key
      for key in sorted({*self.inputs, *old.get("inputs", {})})
      if self.inputs.get(key) != old.get("inputs", {}).get(key)
    ]
    if old.get("config_hash") != self.config_hash:
      changed.append("config")
    if changed:
      logging.info("%s: again, changed: %s", self.name, ", ".join(changed))
      return False
    logging.info("%s: done and unchanged, skipped", self.name)
    return True

  def finish(
    self,
    counts: Mapping[str, int],
    *,
    folder: pathlib.Path | None = None,
    files: Mapping[str, str] | None = None,
    **extra: Any,
  ) -> None:
    """Writes the manifest: the stage is done.

    Args:
      counts: what was read, kept and dropped.
      folder: where to write it, if the folder is still under its temporary
        name.
      files: sha256 by name relative to the folder.
      **extra: further keys.
    """
    write_json(
      (folder or self.folder) / self.manifest_name,
      {
        "stage": self.name,
        "config_hash": self.config_hash,
        "config": self.config,
        "inputs": self.inputs,
        "counts": counts,
        "files": files or {},
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **extra,
      },
    )


def manifest_fingerprint(folder: pathlib.Path, stage: str) -> str:
  """Fingerprint of an earlier stage's output, for a later stage's `inputs`.

  It covers what the stage did (config, inputs, counts, files), not when.

  Raises:
    InputError: that stage has not run in this workdir.
  """
  manifest = dict(read_manifest(folder, stage))
  manifest.pop("created", None)
  return fingerprint(manifest)


def dataset_inputs(workdir: Workdir, *names: str) -> dict[str, str]:
  """Fingerprints of some of `data/{passages,train,dev}`, for `inputs`.

  Each stands for that dataset alone: other dev questions do not make the
  corpus another one.

  Raises:
    InputError: the data was not prepared.
  """
  files = read_manifest(workdir.data, "prepare")["files"]
  return {
    name: fingerprint(
      {
        path: sha256
        for path, sha256 in files.items()
        if path.startswith(f"{name}/")
      }
    )
    for name in names
  }


def read_manifest(folder: pathlib.Path, stage: str) -> dict[str, Any]:
  """The manifest that `stage` left in `folder`.

  Raises:
    InputError: that stage has not run in this workdir.
  """
  path = folder / MANIFEST
  if not path.exists():
    raise errors.InputError(
      f"{path} is missing: run `dpr-jax {stage}` with this --workdir first"
    )
  return read_json(path)


def check_files(folder: pathlib.Path, manifest: Mapping[str, Any]) -> None:
  """Compares every file of a manifest with its recorded sha256.

  Raises:
    InputError: a file is missing or its bytes are not those written.
  """
  for name, expected in manifest["files"].items():
    if fingerprint_file(folder / name) != expected:
      raise errors.InputError(
        f"{folder / name} is not the file that the manifest describes"
        f" (its sha256 is not {expected}): the file is damaged or was"
        f" replaced; run `dpr-jax {manifest['stage']} --overwrite`"
      )
