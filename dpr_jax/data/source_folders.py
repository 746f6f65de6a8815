"""Chooses the files of a folder that hold a split or a corpus.

Input: the folder of `datasets.save_to_disk` (of a Dataset, or a DatasetDict
with splits), or a folder of Parquet, JSON, JSONL, CSV or TSV files, as a
dataset's repository has them (`data/train-00000-of-00002.parquet`).  Output:
the files to read, in order.
"""

import json
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from dpr_jax.core import errors
from dpr_jax.data import judged_questions

Source = TypeVar("Source")  # a `PassageSource` or a `QuestionSource`

_NAMES = {
  **judged_questions.SPLITS,
  "passages": ("passages", "corpus", "collection", "docs"),
}
_ENDS = (".parquet", ".arrow", ".jsonl", ".json", ".ndjson", ".csv", ".tsv")
_INFOS = ("dataset_info.json", "state.json", "dataset_dict.json")


def files(folder: pathlib.Path, role: str) -> tuple[pathlib.Path, ...]:
  """The files of a split ("train" or "dev"), or of the "passages".

  Raises:
    InputError: the folder has none, or several that could be meant.
  """
  splits = folder / "dataset_dict.json"
  if splits.is_file():
    names = _listed(splits, "splits")
    (inner,) = _inside(folder, [_chosen(folder, names, role)], splits)
    return files(inner, role)
  state = folder / "state.json"
  if state.is_file():
    shards = [
      entry.get("filename") if isinstance(entry, dict) else entry
      for entry in _listed(state, "_data_files")
    ]
    return _inside(folder, shards, state)
  there = sorted(
    path
    for inner in (folder, folder / "data")
    if inner.is_dir()
    for path in inner.iterdir()
    if path.is_file()
    and path.name.removesuffix(".gz").endswith(_ENDS)
    and path.name not in _INFOS
  )
  named: dict[str, list[pathlib.Path]] = {}
  for path in there:
    named.setdefault(_split_of(path), []).append(path)
  if not there:
    raise errors.InputError(
      f"{folder}: config.data.{role} is a folder without {', '.join(_ENDS)}"
      " files, and no folder of BEIR, MS MARCO or `datasets.save_to_disk`"
    )
  return tuple(named[_chosen(folder, list(named), role)])


def opened(
  folder: pathlib.Path, role: str, open_file: Callable[[pathlib.Path], Source]
) -> list[Source]:
  """The opened `files` of a folder, which must have one format.

  Args:
    folder: the folder.
    role: "train", "dev" or "passages".
    open_file: gives a file's source, which has a `format` and `files`.

  Raises:
    InputError: also if the formats differ; the message lists them.
  """
  parts = [open_file(file) for file in files(folder, role)]
  if len({part.format for part in parts}) > 1:
    listed = ", ".join(f"{p.files[0].name}: {p.format}" for p in parts)
    raise errors.InputError(
      f"{folder}: its files have several formats: {listed}"
    )
  return parts


def _split_of(path: pathlib.Path) -> str:
  """`train` of train.jsonl.gz and of train-00000-of-00002.parquet.

  Files that are only numbered are one split, with the name "".
  """
  name = path.name.removesuffix(".gz").rpartition(".")[0]
  name = re.sub(r"[-_.]?\d+(-of-\d+)?$", "", name)
  return name if any(name in names for names in _NAMES.values()) else ""


def _chosen(folder: pathlib.Path, names: Sequence[str], role: str) -> str:
  """The split of a role: by its name, or the only one."""
  for name in _NAMES[role]:
    if name in names:
      return name
  if len(names) == 1 and (role == "passages" or names[0] == ""):
    return names[0]
  shown = ", ".join(str(name) or "(unnamed)" for name in names)
  raise errors.InputError(
    f"{folder}: no split for config.data.{role}, which is one of"
    f" {', '.join(_NAMES[role])}; the folder has {shown}: give the file, or the"
    " folder of a split"
  )


def _listed(path: pathlib.Path, field: str) -> list:
  try:
    value = json.loads(path.read_text(encoding="utf-8"))[field]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise errors.InputError(
      f"{path}: is not as `datasets.save_to_disk` writes it: {error!r}"
    ) from error
  if not isinstance(value, list) or not value:
    raise errors.InputError(f"{path}: {field} is {value!r}: must be a list")
  return value


def _inside(
  folder: pathlib.Path, names: Sequence[Any], state: pathlib.Path
) -> tuple[pathlib.Path, ...]:
  """Paths of the shards, which must be files of the folder itself."""
  for name in names:
    if (
      not isinstance(name, str)
      or name != pathlib.PurePath(name).name
      or name in ("", "..")
    ):
      raise errors.InputError(f"{state}: {name!r} is not the name of a file")
  return tuple(folder / name for name in names)
