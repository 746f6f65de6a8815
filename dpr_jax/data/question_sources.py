"""Opens what `data.train` and `data.dev` name, in any of the formats.

Input: a path (a file, or a folder), or `ir_datasets:NAME`.  Output: a
`QuestionSource`: the name of its format, its files, and a stream of questions.
"""

import collections
import dataclasses
import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator

from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import (
  ir_datasets_names,
  json_objects,
  json_records,
  judged_questions,
  qa_csv,
  question_formats,
  records,
  row_files,
  source_folders,
)

_WANTED = (
  "a question file is a JSON array of objects, one JSON object per line, or"
  " a *.csv with a question, a tab and a list of answers per line"
)


@dataclasses.dataclass
class Notes:
  """What a reader counts beside the rows that it yields.

  Attributes:
    unread: rows with a field that is not read, by the field's name.
    dropped: rows or parts of rows that are left out, by reason.
  """

  unread: json_records.Unread = dataclasses.field(
    default_factory=json_records.Unread
  )
  dropped: collections.Counter[str] = dataclasses.field(
    default_factory=collections.Counter
  )


@dataclasses.dataclass(frozen=True)
class QuestionSource:
  """Questions in a known format.

  Attributes:
    where: path or name, for messages.
    format: name of the format, as "Tevatron JSONL".
    files: files that are read; () = none of ours.
    read: yields the questions in order; may be called several times.
    by_id: passages are ids of the corpus, without texts.
  """

  where: str
  format: str
  files: tuple[pathlib.Path, ...]
  read: Callable[[Notes], Iterator[records.Question]]
  by_id: bool = False

  def fingerprint(self) -> str:
    """Hash of the contents; of a library's dataset, of its name only."""
    return fingerprint(self.where, self.files)


def fingerprint(where: str, files: tuple[pathlib.Path, ...]) -> str:
  """sha256 of a file, or a hash of those of several files."""
  hashes = [workdir_lib.fingerprint_file(path) for path in files]
  return (
    hashes[0] if len(hashes) == 1 else workdir_lib.fingerprint(hashes or where)
  )


def open_source(value: str | os.PathLike, split: str = "dev") -> QuestionSource:
  """Recognizes the format of questions.

  Args:
    value: a path, or `ir_datasets:NAME`.
    split: "train" or "dev": the split to read of a folder that has several.

  Raises:
    InputError: a file is missing, or is in none of the formats.
  """
  where = str(value)
  if ir_datasets_names.is_name(where):
    return QuestionSource(
      where,
      "ir_datasets",
      (),
      lambda notes: ir_datasets_names.read_questions(where, notes.dropped),
      by_id=True,
    )
  path = pathlib.Path(os.path.expanduser(where))
  if not path.is_dir():
    return _of_file(path)
  for kind, find in (
    ("BEIR", judged_questions.beir),
    ("MS MARCO", judged_questions.ms_marco),
  ):
    if (judged := find(path, split)) is not None:
      return QuestionSource(
        where,
        f"{kind} folder, {judged.judgements.relative_to(path)}",
        (judged.queries, judged.judgements),
        lambda notes: judged.read(notes.dropped),
        by_id=True,
      )
  parts = source_folders.opened(path, split, _of_file)
  return QuestionSource(
    where,
    parts[0].format,
    tuple(file for part in parts for file in part.files),
    lambda notes: itertools.chain.from_iterable(p.read(notes) for p in parts),
    parts[0].by_id,
  )


def _of_file(path: pathlib.Path) -> QuestionSource:
  make = functools.partial(QuestionSource, str(path))
  if _is_table(path):
    names = row_files.first_fields(path)
    if question_formats.of(dict.fromkeys(names)) is None:
      if judged_questions.is_triples(path):  # without a header
        return _triples(path)
      if names and (len(names) != 2 or row_files.container(path) == "CSV"):
        first = dict.fromkeys(names)
        raise question_formats.unknown(first, f"{path}:1")
      return make(
        "questions with answers", (path,), lambda _: qa_csv.read(path)
      )
    first = dict.fromkeys(names)
  else:
    # A table with another name than *.csv or *.tsv is refused.
    tables = row_files.container(path) in row_files.TABLES
    rows = (json_objects if tables else row_files).read(path, _WANTED)
    where, first, _ = next(rows, ("", {}, False))
    if isinstance(first, dict) and first:
      if question_formats.of(first) is None:
        raise question_formats.unknown(first, where)
    else:
      first = {"question": ""}  # the reader reports the row
  kind = question_formats.of(first)
  return make(
    f"{kind.name} {row_files.container(path)}",
    (path,),
    lambda notes: _rows(path, kind, notes),
    kind.by_id,
  )


def _rows(
  path: pathlib.Path, kind: question_formats.Format, notes: Notes
) -> Iterator[records.Question]:
  for where, value, marked in row_files.read(path, _WANTED):
    yield kind.convert(value, where, marked, notes.unread)


def _triples(path: pathlib.Path) -> QuestionSource:
  if not judged_questions.has_ids(path):
    return QuestionSource(
      str(path),
      "MS MARCO triples of texts",
      (path,),
      lambda _: judged_questions.read_text_triples(path),
    )
  return QuestionSource(
    str(path),
    "MS MARCO triples of ids",
    (path, judged_questions.queries_of(path)),
    lambda notes: judged_questions.read_id_triples(path, notes.dropped),
    by_id=True,
  )


def _is_table(path: pathlib.Path) -> bool:
  name = path.name.lower().removesuffix(".gz")
  return name.endswith((".csv", ".tsv"))
