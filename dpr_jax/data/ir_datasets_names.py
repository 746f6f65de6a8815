"""Reads corpora and judged questions through the library `ir_datasets`.

Input: `ir_datasets:NAME`, as in `ir_datasets:beir/scifact/train`.  Output:
passages, or questions with the ids of their judged passages.  The library
downloads what it needs, into a folder of its own.
"""

import collections
import importlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from dpr_jax.core import errors
from dpr_jax.data import json_records, judged_questions, records

PREFIX = "ir_datasets:"
_TITLES = ("title",)
_TEXTS = ("text", "body", "abstract")


def is_name(value: str) -> bool:
  """Whether a setting names a dataset of the library."""
  return value.startswith(PREFIX)


def read_questions(
  value: str, dropped: collections.Counter[str]
) -> Iterator[records.Question]:
  """Yields the judged questions of a dataset, in its order.

  Args:
    value: `ir_datasets:NAME`.
    dropped: counts of rows left out, updated: queries without a judgement.

  Raises:
    InputError: the library or the dataset is missing, or has no queries or no
      judgements.
  """
  dataset = _load(value, "queries", "qrels")
  judgements: dict[str, dict[str, int]] = {}
  for one in _iterate(value, dataset.qrels_iter):
    grades = judgements.setdefault(one.query_id, {})
    grades[one.doc_id] = int(one.relevance)
  for query in _iterate(value, dataset.queries_iter):
    if query.query_id not in judgements:
      dropped["without_judgement"] += 1
      continue
    where = f"{value}: query {query.query_id!r}"
    text = json_records.string(_text(query), where, "text")
    question = records.Question(json_records.straighten(text))
    grades = judgements[query.query_id]
    yield judged_questions.with_judged(question, grades)


def read_passages(value: str) -> Iterator[records.Passage]:
  """Yields the documents of a dataset as passages; errors as above."""
  dataset = _load(value, "docs")
  for document in _iterate(value, dataset.docs_iter):
    where = f"{value}: document {document.doc_id!r}"
    yield records.Passage(
      json_records.string(document.doc_id, where, "doc_id"),
      json_records.string(_field(document, _TITLES) or "", where, "title"),
      json_records.string(_text(document), where, "text"),
    )


def _load(value: str, *parts: str) -> Any:
  name = value.removeprefix(PREFIX)
  try:
    library = importlib.import_module("ir_datasets")
  except ImportError as error:
    raise errors.InputError(
      f"{value}: ir_datasets is not installed: pip install"
      " 'dpr-jax[ir-datasets]'"
    ) from error
  try:
    dataset = library.load(name)
  except (KeyError, ValueError) as error:
    raise errors.InputError(
      f"{value}: ir_datasets has no dataset {name!r}"
    ) from error
  lacks = [part for part in parts if not getattr(dataset, f"has_{part}")()]
  if lacks:
    raise errors.InputError(
      f"{value}: the dataset has no {' and no '.join(lacks)}: name one that has"
    )
  return dataset


def _iterate(value: str, function: Callable[[], Iterable[Any]]) -> Iterator:
  """The rows of a dataset, whose download may fail in any way."""
  try:
    yield from function()
  except errors.InputError:
    raise
  except Exception as error:  # whatever the library or the network raises
    raise errors.InputError(
      f"{value}: cannot be read: {type(error).__name__}:"
      f" {' '.join(str(error).split())[:200]}"
    ) from error


def _text(row: Any) -> str:
  text = _field(row, _TEXTS)
  return row.default_text() if text is None else text


def _field(row: Any, names: Iterable[str]) -> Any:
  return next((getattr(row, n) for n in names if hasattr(row, n)), None)
