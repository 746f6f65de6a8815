"""Gives random access to the passages and questions that `prepare` has written.

Input: a folder that `tfds_builders.py` wrote.  Output: a `PassageTable` or
`QuestionTable`, from which every later stage reads rows, by row number, in
batches, or by passage id.

A truncated array_record may read as a file with 0 records, so a table counts
its records when it opens; a flipped bit is detected when its record is read.
"""

import abc
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

from dpr_jax.core import errors
from dpr_jax.data import records, tfds_builders

Record = TypeVar("Record", records.Passage, records.Question)


class _Table(abc.ABC, Generic[Record]):
  """Random access to the rows of a written dataset.

  Tables may be used from several threads; a table opens its files again when it
  is unpickled.
  """

  def __init__(self, folder: str | os.PathLike):
    self.folder = pathlib.Path(folder)
    self._source = _open_source(self.folder, self._builder())

  @classmethod
  def open(cls, folder: str | os.PathLike):
    """Opens what `write_passages` or `write_questions` wrote into `folder`.

    Raises:
      InputError: the dataset is missing or incomplete.
    """
    return cls(folder)

  @staticmethod
  @abc.abstractmethod
  def _builder() -> type[tfds_builders.RowsBuilder]:
    """The builder whose dataset this reads."""

  @staticmethod
  @abc.abstractmethod
  def _record(row: Mapping[str, Any]) -> Record:
    """Converts a row of TFDS to our record."""

  def __reduce__(self) -> tuple[Callable, tuple]:
    return type(self), (self.folder,)

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, row: int) -> Record:
    return self.take([row])[0]

  def take(self, rows: Sequence[int] | np.ndarray) -> list[Record]:
    """Returns the records of `rows`, in that order; rows may repeat.

    Much faster than one by one.

    Raises:
      IndexError: a row is negative (for example of an unknown id) or too large.
      InputError: the file is damaged there (array_record has checksums).
    """
    keys = self._checked(rows).tolist()
    try:
      return self._read(keys)
    except RuntimeError as error:
      raise _damaged(self._files_of(keys), str(error)) from error

  def _read(self, keys: list[int]) -> list[Record]:
    return [self._record(row) for row in self._source.__getitems__(keys)]

  def _files_of(self, rows: Sequence[int]) -> str:
    """The file, or the files, of some rows, for messages."""
    builder = tfds.builder_from_directory(self.folder)
    split = builder.info.splits[self._builder().SPLIT]
    ends = np.cumsum(split.shard_lengths)
    shards = np.unique(np.searchsorted(ends, rows, side="right"))
    return " or ".join(str(split.filepaths[shard]) for shard in shards)

  def blocks(self, size: int) -> Iterator[tuple[int, list[Record]]]:
    """Yields (first row, up to `size` records) over the whole table."""
    for first in range(0, len(self), size):
      yield first, self.take(range(first, min(first + size, len(self))))

  def _checked(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    rows = np.asarray(rows)
    if not rows.size:
      return np.zeros(0, np.int64)
    if not np.issubdtype(rows.dtype, np.integer):
      raise IndexError(f"rows are integers, not {rows.dtype}")
    wrong = (rows < 0) | (rows >= len(self))
    if wrong.any():
      raise IndexError(
        f"row {rows[wrong][0]} of {self.folder}: it has rows 0 to"
        f" {len(self) - 1}"
      )
    return rows.astype(np.int64)


class PassageTable(_Table[records.Passage]):
  """The corpus: passages by row, rows by id."""

  def __init__(self, folder: str | os.PathLike):
    super().__init__(folder)
    self._ids = self._load(tfds_builders.IDS)
    self._order = self._load(tfds_builders.ID_ORDER)

  @staticmethod
  def _builder() -> type[tfds_builders.RowsBuilder]:
    return tfds_builders.DprPassages

  @staticmethod
  def _record(row: Mapping[str, Any]) -> records.Passage:
    return _passage(row["id"], row["title"], row["text"])

  def _read(self, keys: list[int]) -> list[records.Passage]:
    # TFDS's decoder of any features takes as long again as all of this.
    found = []
    for data in self._source.data_source.__getitems__(keys) if keys else ():
      row = tf_example_pb2.Example.FromString(data).features.feature
      found.append(
        _passage(
          *(row[name].bytes_list.value[0] for name in ("id", "title", "text"))
        )
      )
    return found

  def _load(self, name: str) -> np.ndarray:
    path = self.folder / name
    try:
      array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
      raise _damaged(path, str(error)) from error
    if array.shape != (len(self),):
      raise _damaged(path, f"shape {array.shape} for {len(self)} passages")
    return array

  def ids(self, rows: Sequence[int] | np.ndarray) -> list[str]:
    """Returns the ids of `rows`; `IndexError` as in `take`."""
    return [i.decode("utf-8") for i in self._ids[self._checked(rows)].tolist()]

  def rows_of(self, ids: Sequence[str]) -> np.ndarray:
    """Returns the int64 row of every id; -1 for an unknown id."""
    # NumPy ignores NULs at the end; no stored id has one, and none is empty.
    wanted = np.array(
      [b"" if "\0" in i else i.encode("utf-8") for i in ids], dtype="S"
    )
    if not wanted.size:
      return np.zeros(0, np.int64)
    return find_ids(self._ids, self._order, wanted)


class QuestionTable(_Table[records.Question]):
  """A question set, by row."""

  @staticmethod
  def _builder() -> type[tfds_builders.RowsBuilder]:
    return tfds_builders.DprQuestions

  @staticmethod
  def _record(row: Mapping[str, Any]) -> records.Question:
    lists = (
      tuple(map(_passage, columns["id"], columns["title"], columns["text"]))
      for columns in (row[name] for name in tfds_builders.PASSAGE_LISTS)
    )
    answers = tuple(answer.decode("utf-8") for answer in row["answers"])
    return records.Question(row["question"].decode("utf-8"), answers, *lists)


def find_ids(
  ids: np.ndarray, order: np.ndarray, wanted: np.ndarray
) -> np.ndarray:
  """The int64 row of every wanted id among `ids`; -1 for an unknown one.

  Args:
    ids: ids in row order, as `tfds_builders.IDS`.
    order: rows in the order of their ids, as `tfds_builders.ID_ORDER`.
    wanted: ids in UTF-8, of any width.
  """
  # Cast to the width of the stored ids: otherwise NumPy would copy all of them
  # to the width of the wanted ones.
  keys = wanted.astype(ids.dtype)
  places = np.searchsorted(ids, keys, sorter=order)
  rows = np.asarray(order[np.minimum(places, len(ids) - 1)])
  return np.where(ids[rows] == wanted, rows, -1).astype(np.int64)


def _passage(identifier: bytes, title: bytes, text: bytes) -> records.Passage:
  return records.Passage(
    identifier.decode("utf-8"), title.decode("utf-8"), text.decode("utf-8")
  )


def _open_source(
  folder: pathlib.Path, builder_class: type[tfds_builders.RowsBuilder]
) -> Sequence[Mapping[str, Any]]:
  """Opens a dataset after checking that it has all its records."""
  path = folder / "dataset_info.json"
  if not path.exists():
    raise errors.InputError(
      f"{path} is missing: run `dpr-jax prepare` with this --workdir first"
    )
  try:
    name = json.loads(path.read_text(encoding="utf-8")).get("name")
  except ValueError as error:
    raise _damaged(path, str(error)) from error
  if name != builder_class.name:
    raise errors.InputError(
      f"{path} describes the dataset {name!r}, not {builder_class.name!r}: run"
      " `dpr-jax prepare --overwrite`"
    )
  if not (folder / "features.json").exists():
    raise _damaged(folder / "features.json", "it is missing")
  split_name = builder_class.SPLIT
  builder = tfds.builder_from_directory(folder)
  split = builder.info.splits[split_name]
  for file, expected in zip(split.filepaths, split.shard_lengths, strict=True):
    found = _count_records(pathlib.Path(file))
    if found != expected:
      raise _damaged(file, f"it holds {found} records, {expected} were written")
  return builder.as_data_source(split=split_name)


def _count_records(path: pathlib.Path) -> int:
  """Records of one shard; a truncated one may claim to have none."""
  if not path.exists():
    return 0
  try:
    reader = array_record_module.ArrayRecordReader(
      os.fspath(path), "readahead_buffer_size:0"
    )
    count = reader.num_records()
    reader.close()  # raises for some truncated files
  except (RuntimeError, ValueError) as error:
    raise _damaged(path, str(error) or "it is truncated") from error
  return count


def _damaged(path: str | os.PathLike, what: str) -> errors.InputError:
  return errors.InputError(
    f"{path} is damaged: {what}; run `dpr-jax prepare --overwrite`"
  )
