"""Writes passages and questions as TFDS datasets for random access.

Input: the streams of `dpr_files.py`.  `prepare.py` writes them to
`data/{passages,train,dev}` of a workdir as array_record, and `datasets.py`
reads them: row i of the stream is row i of the dataset.  Other programs can
read the folders with
`tfds.builder_from_directory(folder).as_data_source("passages")`.

The `GeneratorBasedBuilder` of TFDS keeps up to 1 GB of rows in memory and needs
TensorFlow for more, so `RowsBuilder` writes its shards itself, in one pass, for
a corpus of any size.
"""

import abc
import itertools
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import dataset_builder

from dpr_jax.core import errors, progress
from dpr_jax.data import records

IDS = "ids.npy"
ID_ORDER = "id_order.npy"

_IDS_PER_BLOCK = 1 << 16
PASSAGE_LISTS = ("positives", "hard_negatives", "negatives")


def _passage_features() -> dict[str, Any]:
  return {name: tfds.features.Text() for name in ("id", "title", "text")}


class _Info(tfds.core.DatasetInfo):
  """Disables the search in TFDS's bucket, which does not have our datasets.

  The search would leave an empty temporary folder for each dataset.
  """

  def initialize_from_bucket(self) -> None:
    pass


class RowsBuilder(dataset_builder.FileReaderBuilder):
  """A TFDS builder whose rows come from an iterable, in its order."""

  VERSION = tfds.core.Version("1.0.0")
  SPLIT: ClassVar[str]
  ROWS_PER_SHARD: ClassVar[int]

  # Path where TFDS searches for checksums of downloads.  There are none, and
  # the search needs importlib_resources, which TFDS does not install.
  code_path = None

  def __init__(self, rows: Iterable[Mapping[str, Any]] = (), **kwargs: Any):
    self._rows = rows
    super().__init__(file_format="array_record", **kwargs)

  @abc.abstractmethod
  def _features(self) -> Mapping[str, Any]:
    """The TFDS features of one row."""

  def _info(self) -> tfds.core.DatasetInfo:
    return _Info(
      builder=self,
      description=type(self).__doc__,
      features=tfds.features.FeaturesDict(self._features()),
      disable_shuffling=True,
    )

  def _download_and_prepare(self, dl_manager, download_config=None) -> None:
    """Writes shard after shard; their number is not known in advance."""
    del dl_manager, download_config
    template = self._get_filename_template(self.SPLIT).replace(
      template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"
    )
    writer = tfds.core.ExampleWriter(self.info.file_format)
    examples = _Counted(self._serialized())
    shard_lengths = []
    for first in examples.rest:
      shard = itertools.chain(
        [first], itertools.islice(examples.rest, self.ROWS_PER_SHARD - 1)
      )
      path = template.sharded_filepath(
        shard_index=len(shard_lengths), num_shards=None
      )
      writer.write(path, shard)
      shard_lengths.append(examples.count - sum(shard_lengths))
    split = tfds.core.SplitInfo(
      name=self.SPLIT,
      shard_lengths=shard_lengths,
      num_bytes=examples.size,
      filename_template=template,
    )
    self.info.set_splits(tfds.core.SplitDict([split]))

  def _serialized(self) -> Iterator[tuple[int, bytes]]:
    features = self.info.features
    serializer = tfds.core.ExampleSerializer(features.get_serialized_info())
    for key, row in enumerate(self._rows):
      example = features.encode_example(row)
      proto = serializer.get_tf_example(example)
      # Otherwise the order of the columns would differ between processes; the
      # same data must always give the same bytes.
      yield key, proto.SerializeToString(deterministic=True)

  def _log_download_bytes(self) -> None:
    """Keeps TFDS from printing a message about a download: there is none."""

  def _log_download_done(self) -> None:
    """See `_log_download_bytes`."""


class _Counted:
  """Counts the examples read from `rest`, and their bytes."""

  def __init__(self, examples: Iterable[tuple[int, bytes]]):
    self.count = 0
    self.size = 0
    self.rest = self._count(examples)

  def _count(
    self, examples: Iterable[tuple[int, bytes]]
  ) -> Iterator[tuple[int, bytes]]:
    for key, example in examples:
      self.count += 1
      self.size += len(example)
      yield key, example


class DprPassages(RowsBuilder):
  """A corpus of passages, in the order of its file."""

  SPLIT = "passages"
  ROWS_PER_SHARD = 250_000

  def _features(self) -> Mapping[str, Any]:
    return _passage_features()


class DprQuestions(RowsBuilder):
  """Questions with answers, positives and negatives, in file order."""

  SPLIT = "questions"
  ROWS_PER_SHARD = 2_000  # a question with 100 negatives takes 130 kB

  def _features(self) -> Mapping[str, Any]:
    return {
      "question": tfds.features.Text(),
      "answers": tfds.features.Sequence(tfds.features.Text()),
      **{
        name: tfds.features.Sequence(_passage_features())
        for name in PASSAGE_LISTS
      },
    }


def write_passages(
  passages: Iterable[records.Passage], folder: str | os.PathLike
) -> int:
  """Writes a corpus into `folder`, which is created if necessary.

  Next to the dataset it writes `ids.npy`, the ids in row order, and
  `id_order.npy`, the rows in the order of their ids; both are memory-mapped
  when read.

  Returns:
    The number of passages.

  Raises:
    InputError: two passages share an id, an id is empty or contains a NUL, or
      there is no passage.
  """
  ids = _IdCollector()
  count = _write(
    DprPassages,
    (_passage_row(passage) for passage in ids.collect(passages)),
    folder,
    "passages",
  )
  all_ids, order = ids.sorted()
  np.save(pathlib.Path(folder) / IDS, all_ids)
  np.save(pathlib.Path(folder) / ID_ORDER, order)
  return count


def write_questions(
  questions: Iterable[records.Question], folder: str | os.PathLike
) -> int:
  """Writes questions into `folder`, which is created if necessary.

  Returns:
    The number of questions.

  Raises:
    InputError: there is no question.
  """
  rows = (
    {
      "question": question.question,
      "answers": list(question.answers),
      **{
        name: [_passage_row(p) for p in getattr(question, name)]
        for name in PASSAGE_LISTS
      },
    }
    for question in questions
  )
  return _write(DprQuestions, rows, folder, "questions")


def _passage_row(passage: records.Passage) -> dict[str, str]:
  return {"id": passage.id, "title": passage.title, "text": passage.text}


def _write(
  builder_class: type[RowsBuilder],
  rows: Iterable[Mapping[str, Any]],
  folder: str | os.PathLike,
  label: str,
) -> int:
  """Lets TFDS prepare a dataset, then moves its files into `folder`."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  inner = folder / "tfds.tmp"
  builder = builder_class(_with_progress(rows, label), data_dir=inner)
  try:
    builder.download_and_prepare()
    count = builder.info.splits[builder.SPLIT].num_examples
    if not count:
      raise errors.InputError(f"there are no {label} to write to {folder}")
    for file in pathlib.Path(builder.data_dir).iterdir():
      os.replace(file, folder / file.name)
  finally:
    shutil.rmtree(inner, ignore_errors=True)
  return count


def _with_progress(rows: Iterable[Any], label: str) -> Iterator[Any]:
  """Yields the rows and shows their number as progress."""
  with progress.Progress(None, f"write {label}", "rows") as bar:
    for row in rows:
      yield row
      bar.update()


class _IdCollector:
  """Collects ids as fixed-width bytes: 8 per passage, instead of 60."""

  def __init__(self):
    self._blocks: list[np.ndarray] = []
    self._block: list[bytes] = []
    self._count = 0

  def collect(
    self, passages: Iterable[records.Passage]
  ) -> Iterator[records.Passage]:
    """Yields the passages, and collects their ids."""
    for passage in passages:
      self._count += 1
      if not passage.id or "\0" in passage.id:
        raise errors.InputError(
          f"passage {self._count}: the id {passage.id!r} is empty or holds a"
          " NUL character: give it another id"
        )
      self._block.append(passage.id.encode("utf-8"))
      if len(self._block) == _IDS_PER_BLOCK:
        self._flush()
      yield passage
    self._flush()

  def _flush(self) -> None:
    if self._block:
      self._blocks.append(np.array(self._block, dtype="S"))
      self._block = []

  def sorted(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns (ids in row order, rows in id order).

    Raises:
      InputError: two rows share an id.
    """
    ids = np.concatenate(self._blocks)
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    (same,) = np.nonzero(ordered[1:] == ordered[:-1])
    if same.size:
      place = same[np.argmin(order[same + 1])]
      raise errors.InputError(
        f"passages {order[place] + 1} and {order[place + 1] + 1} (counted from"
        f" 1, without the header) both have the id"
        f" {ids[order[place]].decode()!r}, one of {same.size} such pairs: ids"
        " must be unique"
      )
    return ids, order
