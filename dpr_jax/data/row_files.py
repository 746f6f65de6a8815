"""Reads the rows of a data file as mappings, whatever the file is.

Input: the path of a file.  Output: its rows one at a time, each with its
position for errors.  A file is recognized by its first bytes, not by its name:
JSON (a list), JSONL, a table with a header (CSV with commas, TSV with tabs),
Parquet, or Arrow (a stream, as `datasets.save_to_disk` writes it, or a file).
`question_formats` and `json_records` convert the rows.
"""

import ast
import contextlib
import importlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

from dpr_jax.core import errors
from dpr_jax.data import file_streams, json_objects, json_records, tsv_corpus

Rows = Iterator[tuple[str, Any, bool]]  # as of `json_objects.read`

# Fields that hold a list: a cell of a table has it as JSON, or as Python does.
LISTS = frozenset(
  ("pos", "neg", "positives", "negatives", "positive_passages", "output")
  + ("negative_passages", "positive_document_ids", "negative_document_ids")
  + (*json_records.ANSWERS, *json_records.CTX_LISTS)
)
# Fields that may also hold a list, if a cell begins with a bracket.
_MAYBE_LISTS = frozenset(("positive", "negative"))

TABLES = ("CSV", "TSV")
_ARROW_FILE, _ARROW_STREAM = b"ARROW1", b"\xff\xff\xff\xff"
_BLOCK = 256  # rows of Parquet in memory at once
_BUFFER = 1 << 20  # bytes of a column that are read at once


def container(path: str | os.PathLike) -> str:
  """The kind of a file: JSON, JSONL, CSV, TSV, Parquet or Arrow."""
  with file_streams.open_bytes(path) as file, file_streams.stream_errors(path):
    start = file.read(6)
    if start[:4] == b"PAR1":
      return "Parquet"
    if start == _ARROW_FILE or start[:4] == _ARROW_STREAM:
      return "Arrow"
    file.seek(0)
    first = file_streams.first_byte(file)
    if first in (b"{", b"["):
      return "JSONL" if first == b"{" else "JSON"
    line = file.readline(tsv_corpus.LONGEST_FIELD)
  return "CSV" if b"," in line and b"\t" not in line else "TSV"


def read(path: str | os.PathLike, wanted: str) -> Rows:
  """Yields the rows of a file.

  Args:
    path: path of the file; JSON, JSONL and tables may be gzipped.
    wanted: description of the expected file, for errors.

  Yields:
    (path and row, the row, whether it may contain the mark of a lone
    surrogate, see `file_streams.LoneSurrogates`).

  Raises:
    InputError: the file is malformed; names the row.
  """
  kind = container(path)
  if kind in ("JSON", "JSONL"):
    return json_objects.read(path, wanted)
  if kind in TABLES:
    return _table(path, "," if kind == "CSV" else "\t")
  return _columns(path, kind)


def first_fields(path: str | os.PathLike) -> list[str]:
  """Fields of the first line of a table; [] = it is empty."""
  _, line = next(file_streams.text_lines(path), (1, ""))
  return tsv_corpus.fields_of(line, "," if container(path) == "CSV" else "\t")


def _table(path: str | os.PathLike, delimiter: str) -> Rows:
  with (
    file_streams.open_bytes(path) as file,
    file_streams.stream_errors(path) as position,
    file_streams.open_text(file) as lines,
  ):
    rows = tsv_corpus.csv_rows(path, lines, position, delimiter)
    _, names = next(rows, (1, []))
    if twice := [name for name in set(names) if names.count(name) > 1]:
      raise errors.InputError(
        f"{path}:1: the header has the column {twice[0]!r} more than once:"
        " rename or remove one"
      )
    for line, fields in rows:
      where = f"{path}:{line}"
      if len(fields) != len(names):
        raise errors.InputError(
          f"{where}: {len(fields)} fields, the header has {len(names)}:"
          f" {json_records.short(fields)}"
        )
      yield (
        where,
        {
          name: _cell(name, text, where)
          for name, text in zip(names, fields, strict=True)
        },
        False,
      )


def _cell(name: str, text: str, where: str) -> Any:
  """A cell's value: a list if it is written as one; None = an empty list."""
  if not text:
    may_lack = name in LISTS | _MAYBE_LISTS or name.startswith("negative")
    return None if may_lack else ""
  bracket = text.lstrip()[:1] == "["
  if not bracket or name not in LISTS | _MAYBE_LISTS:
    return text
  with contextlib.suppress(errors.InputError):
    return file_streams.parse_json(text, where)
  try:
    return ast.literal_eval(text.strip())
  except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
    if name in _MAYBE_LISTS:
      return text  # a text that begins with a bracket
    raise errors.InputError(
      f"{where}, {name}: {json_records.short(text)} is not a list like"
      ' ["a", "b"]'
    ) from error


def _columns(path: str | os.PathLike, kind: str) -> Rows:
  """Rows of Parquet or Arrow; whole numbers become texts where ids are."""
  arrow = pyarrow(path)
  row = 0
  try:
    for batch in _batches(path, kind):
      # A damaged batch would otherwise end the process, or read beyond it.
      if batch.num_rows < 0:
        raise arrow.ArrowInvalid(f"a batch of {batch.num_rows} rows")
      batch.validate(full=True)
      for start in range(0, batch.num_rows, _BLOCK):
        for value in batch.slice(start, _BLOCK).to_pylist():
          row += 1
          yield f"{path}: row {row}", _as_in_json(value), False
  except (
    arrow.ArrowException,
    OSError,
    UnicodeDecodeError,
    MemoryError,
  ) as error:
    raise errors.InputError(
      f"{path}: row {row + 1}, or shortly after it, cannot be read as {kind}:"
      f" {' '.join(str(error).split())[:200]}"
    ) from error


def _batches(path: str | os.PathLike, kind: str) -> Iterator[Any]:
  if kind == "Parquet":
    # Buffered by page; otherwise whole columns of a row group are read.
    with pyarrow(path).parquet.ParquetFile(
      path, buffer_size=_BUFFER, pre_buffer=False
    ) as file:
      yield from file.iter_batches(batch_size=_BLOCK)
    return
  ipc = importlib.import_module("pyarrow.ipc")
  # A map, so that a damaged size is refused instead of allocated.
  with pyarrow(path).memory_map(os.fspath(path)) as raw:
    is_file = raw.read(6) == _ARROW_FILE
    raw.seek(0)
    if not is_file:
      yield from ipc.open_stream(raw)
      return
    reader = ipc.open_file(raw)
    for number in range(reader.num_record_batches):
      yield reader.get_batch(number)


def pyarrow(path: str | os.PathLike) -> Any:
  """The library pyarrow, imported only for files that need it.

  Args:
    path: the file, for the message.

  Raises:
    InputError: it is not installed.
  """
  try:
    importlib.import_module("pyarrow.parquet")
    return importlib.import_module("pyarrow")
  except ImportError as error:
    raise errors.InputError(
      f"{path}: Parquet and Arrow files need pyarrow: pip install"
      " 'dpr-jax[parquet]'"
    ) from error


def _as_in_json(value: Mapping[str, Any]) -> dict[str, Any]:
  """A row as its JSON would be.

  Ids that are whole numbers become texts.  `datasets` may store a list of
  objects as an object of lists: it becomes a list of objects.
  """
  row = dict(value)
  for name, entry in row.items():
    if name in json_records.ALL_IDS and type(entry) is int:
      row[name] = str(entry)
    elif name in LISTS and isinstance(entry, dict):
      columns = list(entry.values())
      lists = all(isinstance(column, list) for column in columns)
      if lists and len({len(column) for column in columns}) == 1:
        row[name] = [
          dict(zip(entry, item, strict=True))
          for item in zip(*columns, strict=True)
        ]
  return row
