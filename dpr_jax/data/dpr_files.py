"""Reads corpora and question files in any of the formats.

Input: the path of a corpus or of questions, or `ir_datasets:NAME`.  Output: a
stream of `records.Passage` or `records.Question`, one row at a time, so that
memory does not grow with the file.  `passage_sources` and `question_sources`
recognize the formats; docs/reference/formats.md lists them.

A row that violates its format raises `errors.InputError` with file, line or
row, field and value; no row is skipped or repaired silently.
"""

import os
from collections.abc import Iterator

from absl import logging

from dpr_jax.data import (
  json_records,
  passage_sources,
  question_sources,
  records,
)


def read_passages(
  path: str | os.PathLike,
  quoting: str = "auto",
  swallowing: list[str] | None = None,
) -> Iterator[records.Passage]:
  """Yields the passages of a corpus in file order.

  Repeated ids are detected by the writer, not here.

  Args:
    path: path of the corpus.
    quoting: quoting of a table: "csv", "none", or "auto" = chosen by
      `tsv_corpus.choose`.
    swallowing: as in `tsv_corpus.read`.

  Raises:
    InputError: naming the line where a row starts, and what is wrong there.
  """
  how = passage_sources.Reading(quoting)
  if swallowing is not None:
    how.swallowing = swallowing
  yield from passage_sources.open_source(path).read(how)


def read_questions(
  path: str | os.PathLike, unread: json_records.Unread | None = None
) -> Iterator[records.Question]:
  """Yields the questions of a file in file order.

  Rows without positives are yielded too.

  Args:
    path: path of the questions.
    unread: counter to update with the names of fields that are not read; None =
      do not count.

  Raises:
    InputError: naming the row (and the line, where the format has lines), the
      field and the value.
  """
  notes = question_sources.Notes()
  yield from question_sources.open_source(path).read(notes)
  if unread is not None:
    unread.update(notes.unread)
  for reason, count in notes.dropped.items():
    if count:
      logging.info("%s: %d %s", path, count, reason.replace("_", " "))
