"""Opens what `data.passages` names, in any of the formats of corpora.

Input: a path (a file, or a folder), or `ir_datasets:NAME`.  Output: a
`PassageSource`: the name of its format, its files, and a stream of passages.
"""

import collections
import dataclasses
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from dpr_jax.core import errors
from dpr_jax.data import (
  ir_datasets_names,
  json_records,
  judged_questions,
  question_formats,
  question_sources,
  records,
  row_files,
  source_folders,
  tsv_corpus,
)

FROM_TRAIN = "from-train"  # as `data.passages`, see `own_passages`
_WANTED = "a corpus is a JSON list of objects, or one JSON object per line"
_HEADING = "Section::::"  # of KILT's knowledge source
_FORMATS = (
  "id, text, title (a table of DPR); _id, title, text (BEIR); id, contents"
  " (Pyserini); wikipedia_id, wikipedia_title, text (KILT's knowledge source)"
)


@dataclasses.dataclass
class Reading:
  """How a corpus is read, and what is counted meanwhile.

  Attributes:
    quoting: of a table with tabs: "csv", "none", or "auto" = chosen by
      `tsv_corpus.choose`.
    title_line: the first line of `contents` is the title.
    swallowing: ids of passages that may have swallowed the next rows, see
      `tsv_corpus.read`.
    counts: passages and paragraphs that are left out or changed, by reason.
  """

  quoting: str = "auto"
  title_line: bool = False
  swallowing: list[str] = dataclasses.field(default_factory=list)
  counts: collections.Counter[str] = dataclasses.field(
    default_factory=collections.Counter
  )


@dataclasses.dataclass(frozen=True)
class PassageSource:
  """A corpus in a known format.

  Attributes:
    where: path or name, for messages.
    format: name of the format, as "BEIR JSONL".
    files: files that are read; () = none of ours.
    read: yields the passages in order; may be called several times.
    table: the only file, if it is a table whose quoting is to be chosen.
  """

  where: str
  format: str
  files: tuple[pathlib.Path, ...]
  read: Callable[[Reading], Iterator[records.Passage]]
  table: pathlib.Path | None = None

  def fingerprint(self) -> str:
    """Hash of the contents; of a library's dataset, of its name only."""
    return question_sources.fingerprint(self.where, self.files)


def open_source(value: str | os.PathLike) -> PassageSource:
  """Recognizes the format of a corpus.

  Args:
    value: a path, or `ir_datasets:NAME`.

  Raises:
    InputError: a file is missing, or is in none of the formats.
  """
  where = str(value)
  if ir_datasets_names.is_name(where):
    return PassageSource(
      where,
      "ir_datasets",
      (),
      lambda _: ir_datasets_names.read_passages(where),
    )
  path = pathlib.Path(os.path.expanduser(where))
  if not path.is_dir():
    return _of_file(path)
  parts = source_folders.opened(path, "passages", _of_file)
  return PassageSource(
    where,
    parts[0].format,
    tuple(file for part in parts for file in part.files),
    lambda how: itertools.chain.from_iterable(p.read(how) for p in parts),
    parts[0].table if len(parts) == 1 else None,
  )


def _of_file(path: pathlib.Path) -> PassageSource:
  kind = row_files.container(path)
  if kind == "TSV":
    names = row_files.first_fields(path)
    # Ids of the collection have digits; a word without is one of a header.
    ids = len(names) == 2 and any(c.isdigit() for c in names[0])
    if ids and not set(names) & _NAMES:
      return PassageSource(
        str(path),
        "MS MARCO collection",
        (path,),
        lambda _: judged_questions.read_collection(path),
      )
    return PassageSource(
      str(path), "DPR TSV", (path,), lambda how: _table(path, how), path
    )
  where, first, _ = next(row_files.read(path, _WANTED), (str(path), {}, False))
  name, convert = _format(first, where)
  return PassageSource(
    str(path),
    f"{name} {kind}",
    (path,),
    lambda how: itertools.chain.from_iterable(
      convert(value, where, marked, how)
      for where, value, marked in row_files.read(path, _WANTED)
    ),
  )


_NAMES = {*json_records.IDS, *json_records.TEXTS, "title"}
_Convert = Callable[[Any, str, bool, Reading], Sequence[records.Passage]]


def _format(row: Any, where: str) -> tuple[str, _Convert]:
  """Name and converter of the format of a corpus's first row."""
  if not isinstance(row, Mapping) or not row:
    return "BEIR", _passage  # which reports it
  if "wikipedia_id" in row and isinstance(row.get("text"), list | Mapping):
    return "KILT knowledge source", _paragraphs
  if not any(name in row for name in json_records.TEXTS):
    training = question_formats.of(row)
    if training is not None:
      raise errors.InputError(
        f"{where}: these are training questions ({training.name}), not"
        f" passages: config.data.passages={FROM_TRAIN} makes the corpus of the"
        " passages of data.train and data.dev"
      )
    with_hint = json_records.no_text(row, where)
    raise errors.InputError(f"{with_hint}; formats of corpora are {_FORMATS}")
  if "contents" in row and "text" not in row:
    return "Pyserini", _passage
  return "BEIR" if "_id" in row else "id, title, text", _passage


def _passage(
  value: Any, where: str, marked: bool, how: Reading
) -> list[records.Passage]:
  return [json_records.passage(value, where, marked, how.title_line)]


def _table(path: pathlib.Path, how: Reading) -> Iterator[records.Passage]:
  quoting = how.quoting
  if quoting == "auto":
    quoting = tsv_corpus.choose(path)
  yield from tsv_corpus.read(path, quoting, how.swallowing)


def _paragraphs(
  value: Any, where: str, marked: bool, how: Reading
) -> Iterator[records.Passage]:
  """Passages of an article of KILT: its paragraphs, with their numbers.

  The first one only repeats the title; it, headings and empty paragraphs are
  counted in `how.counts`.
  """
  if not isinstance(value, Mapping):
    raise errors.InputError(
      f"{where}: {json_records.short(value)} is not a JSON object"
    )
  article = json_records.string(
    value.get("wikipedia_id"), where, "wikipedia_id", marked
  )
  title = json_records.string(
    value.get("wikipedia_title", ""), where, "wikipedia_title", marked
  )
  texts = value.get("text")
  if isinstance(texts, Mapping):  # as `datasets` has it
    texts = texts.get("paragraph")
  for number, text in enumerate(
    json_records.strings(texts, where, "text", marked)
  ):
    text = text.strip()
    if not text:
      how.counts["empty_paragraphs"] += 1
    elif text == title.strip():
      how.counts["titles"] += 1
    elif text.startswith(_HEADING):
      how.counts["headings"] += 1
    else:
      identifier = question_formats.kilt_id(article, number)
      yield records.Passage(identifier, title, text)
