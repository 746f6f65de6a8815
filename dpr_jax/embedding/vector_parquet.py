"""Parquet files of passages with their vectors, for data tools and engines.

Columns `id`, `title`, `text` and `vector`, a list of fixed length of float32,
in row groups of a few thousand rows; the schema's metadata names the model and
its settings.  Reading needs `id` and `vector` only, by these or other common
names.  Needs pyarrow.
"""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from dpr_jax.core import errors
from dpr_jax.data import row_files
from dpr_jax.embedding import vector_shards

SUFFIX = ".parquet"
METADATA = b"dpr_jax"  # key of our JSON in a schema's metadata
_GROUP = 5_000  # rows per row group
_IDS = ("id", "_id", "docid", "passage_id")
_VECTORS = ("vector", "embedding", "embeddings", "emb")


def write(
  path: pathlib.Path,
  source: vector_shards.Vectors,
  rows: range,
  passages: Any,
) -> None:
  """Writes some passages with their vectors, a row group at a time.

  Args:
    path: the file.
    source: vectors of the corpus.
    rows: rows of the file.
    passages: PassageTable of the corpus.

  Raises:
    InputError: the vectors are of other passages, or pyarrow is missing.
  """
  pyarrow = row_files.pyarrow(path)
  manifest = source.manifest
  described = {
    "model": manifest["model"],
    "model_settings": manifest.get("model_settings"),
    "passages": manifest["inputs"].get("passages"),
    "count": len(source),
    "first_row": rows.start,
  }
  schema = pyarrow.schema(
    [
      pyarrow.field("id", pyarrow.string(), nullable=False),
      pyarrow.field("title", pyarrow.string(), nullable=False),
      pyarrow.field("text", pyarrow.string(), nullable=False),
      pyarrow.field(
        "vector", pyarrow.list_(pyarrow.float32(), source.dim), nullable=False
      ),
    ],
    metadata={METADATA: json.dumps(described)},
  )
  with pyarrow.parquet.ParquetWriter(path, schema) as writer:
    for first in range(rows.start, rows.stop, _GROUP):
      some = range(first, min(first + _GROUP, rows.stop))
      records = passages.take(some)
      ids = source.ids(some)
      if ids != [record.id for record in records]:
        raise errors.InputError(
          f"{source.folder} has vectors of other passages than the corpus: run"
          " `dpr-jax embed` again"
        )
      flat = pyarrow.array(source.take(some).reshape(-1))
      columns = [
        pyarrow.array(ids, pyarrow.string()),
        pyarrow.array([r.title for r in records], pyarrow.string()),
        pyarrow.array([r.text for r in records], pyarrow.string()),
        pyarrow.FixedSizeListArray.from_arrays(flat, source.dim),
      ]
      writer.write_table(pyarrow.Table.from_arrays(columns, schema=schema))


def read(path: pathlib.Path) -> Iterator[tuple[list[Any], np.ndarray]]:
  """Yields ids, as they are, and vectors [rows, dim] of every row group.

  Raises:
    InputError: the file is damaged, lacks a column, or has a row without a
      vector or vectors of several widths.
  """
  pyarrow = row_files.pyarrow(path)
  try:
    with pyarrow.parquet.ParquetFile(path) as file:
      names = set(file.schema_arrow.names)
      wanted = [_column(path, names, known) for known in (_IDS, _VECTORS)]
      for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns=wanted)
        ids, lists = (table.column(name) for name in wanted)
        if table.num_rows:
          yield ids.to_pylist(), _vectors(path, lists)
  except errors.InputError:
    raise
  except (pyarrow.ArrowException, ValueError) as error:
    raise errors.InputError(
      f"{path} is not a Parquet file of vectors, or is damaged:"
      f" {' '.join(str(error).split())[:200]}"
    ) from error


def _column(path: pathlib.Path, names: set[str], known: tuple[str, ...]) -> str:
  for name in known:
    if name in names:
      return name
  raise errors.InputError(
    f"{path} has no column {known[0]!r} (nor {', '.join(known[1:])}), only"
    f" {', '.join(sorted(names))[:200]}: rename its column"
  )


def _vectors(path: pathlib.Path, column: Any) -> np.ndarray:
  """A column of lists as [rows, dim]; any list type, any numbers."""
  if not hasattr(column.type, "value_type"):
    raise errors.InputError(
      f"{path}: its vectors are of type {column.type}: expected lists of floats"
    )
  parts = []
  for chunk in column.chunks:
    if not len(chunk):
      continue
    if chunk.null_count:
      raise errors.InputError(f"{path}: {chunk.null_count} rows have no vector")
    values = chunk.flatten()
    if values.null_count or len(values) % len(chunk):
      raise errors.InputError(
        f"{path}: its vectors have missing numbers or several widths"
      )
    width = len(values) // len(chunk)
    lengths = chunk.value_lengths().to_numpy(zero_copy_only=False)
    if (lengths != width).any():
      raise errors.InputError(
        f"{path}: its vectors have widths {lengths.min()} to {lengths.max()}"
      )
    numbers = values.to_numpy(zero_copy_only=False)
    parts.append(numbers.reshape(len(chunk), width))
  if len({part.shape[1] for part in parts}) > 1:
    raise errors.InputError(f"{path}: its vectors have several widths")
  return np.concatenate(parts)
