"""The layout of a workdir, and its lock.

One experiment is one config and one workdir.  Every stage writes its own folder
with a manifest (`manifests.py`); files and folders are written atomically
(`atomic_files.py`); only one command at a time can write to a workdir.
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterator

import filelock

from dpr_jax.core import atomic_files, errors
from dpr_jax.core.atomic_files import (
  MANIFEST,
  check_name,
  check_ours,
  refuse_inside,
  remove_folder,
  replace_file,
  replace_folder,
)
from dpr_jax.core.disk_errors import writing
from dpr_jax.core.manifests import (
  FALSE_NEGATIVES,
  Stage,
  changes,
  check_files,
  fingerprint,
  fingerprint_file,
  manifest_fingerprint,
  read_json,
  read_manifest,
  read_record,
  short,
  write_json,
  write_record,
)

__all__ = [
  "FALSE_NEGATIVES",
  "MANIFEST",
  "Stage",
  "Workdir",
  "changes",
  "check_files",
  "check_name",
  "check_ours",
  "FOLDERS",
  "dataset_inputs",
  "fingerprint",
  "fingerprint_file",
  "in_use",
  "locked",
  "manifest_fingerprint",
  "read_json",
  "read_manifest",
  "read_record",
  "refuse_inside",
  "remove_folder",
  "replace_file",
  "replace_folder",
  "short",
  "user_path",
  "write_json",
  "write_record",
  "writing",
]

_LOCK = ".lock"
# Folders that stages write; all others in a workdir are ignored.
FOLDERS = (
  *("data", "negatives", "bm25", "tokens", "training", "reader"),
  *("embeddings", "index", "fusion", "results", "answers", "evaluation"),
  "report",
)


def user_path(path: str | os.PathLike) -> pathlib.Path:
  """A path given by a user, with `~` and `~name` expanded.

  Raises:
    InputError: there is no such home folder.
  """
  expanded = os.path.expanduser(path)
  if expanded.startswith("~"):
    raise errors.InputError(
      f"{path}: the home folder {expanded.split('/')[0]!r} is not known: write"
      " the whole path (./~ for a folder of that name)"
    )
  return pathlib.Path(expanded)


@dataclasses.dataclass(frozen=True)
class Workdir:
  """Paths of all files and folders in a workdir."""

  root: pathlib.Path

  def __init__(self, root: str | os.PathLike):
    object.__setattr__(self, "root", user_path(root).absolute())

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
  def question_tokens(self) -> pathlib.Path:
    """`tokens/questions`: the training questions, `data.question_tokens`."""
    return self.root / "tokens" / "questions"

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
    """`index/<factory>`, with "-start" for the towers before training."""
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
  """Locks a workdir for the block, and removes leftovers of killed processes.

  The operating system releases the lock when the process ends in any way.

  Raises:
    InputError: another process holds the lock, or the folder is not writable.
  """
  try:
    where.root.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(where.root / _LOCK, timeout=0)
    lock.acquire()
  except filelock.Timeout as error:
    raise errors.InputError(
      f"--workdir={where.root} is in use by {_holder(where)}: wait until it"
      " ends, or give another --workdir"
    ) from error
  except OSError as error:
    raise errors.DiskError(
      f"--workdir={where.root} cannot be written: {error.strerror or error}"
      f" ({where.root / _LOCK})"
    ) from error
  holder = where.root / f"{_LOCK}.json"
  try:
    with writing(where.root):
      for path in where.root.iterdir():
        atomic_files.clear_leftover(path)
    atomic_files.clear_leftovers(where.root / name for name in FOLDERS)
    write_json(holder, {"pid": os.getpid()})
    yield
  finally:
    with contextlib.suppress(OSError):
      holder.unlink(missing_ok=True)
    lock.release()


def in_use(where: Workdir) -> str:
  """The process that holds a workdir's lock; "" = none, or not known."""
  if not (where.root / _LOCK).exists():
    return ""
  lock = filelock.FileLock(where.root / _LOCK, timeout=0)
  try:
    lock.acquire()
  except filelock.Timeout:
    return _holder(where)
  except OSError:  # nobody can write to a read-only folder
    return ""
  lock.release()
  return ""


def _holder(where: Workdir) -> str:
  try:
    return f"process {read_json(where.root / f'{_LOCK}.json')['pid']}"
  except (errors.InputError, KeyError, TypeError):
    return "another process"


def dataset_inputs(workdir: Workdir, *names: str) -> dict[str, str]:
  """Fingerprints of the named `data/{passages,train,dev}`, for `inputs`.

  Each covers one dataset: other dev questions do not change the fingerprint of
  the corpus.

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
