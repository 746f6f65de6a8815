"""Reads SQuAD's JSON: questions with their paragraph and answer offsets.

Input: `train-v1.1.json`, `dev-v2.0.json`, or the rows that the library
`datasets` writes of them (one per line or in a list, answers as two lists),
each also gzipped.  Output: `SquadQuestion`s, each with its paragraph, and its
answers with their character offsets.  Errors in the file are
`errors.InputError` with article, paragraph and question.
"""

import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import ijson

from dpr_jax.core import errors
from dpr_jax.data import file_streams, json_objects, records

_ROW = ("context", "question")  # keys of a row of `datasets`
_MOST_EVENTS = 10_000  # parser events to read of the first row


@dataclasses.dataclass(frozen=True, slots=True)
class SquadQuestion:
  """A question about one paragraph.

  Attributes:
    id: SQuAD's id.
    question: text of the question.
    answers: accepted answers, with repetitions; () = none, or unknown.
    starts: index of each answer's first character in the paragraph.
    paragraph: the paragraph; its id is `<article>.<paragraph>`.
    impossible: the paragraph has no answer (v2.0): "no answer" is correct.
  """

  id: str
  question: str
  answers: tuple[str, ...]
  starts: tuple[int, ...]
  paragraph: records.Passage
  impossible: bool = False


def is_squad(path: str | os.PathLike) -> bool:
  """True if a file has SQuAD's first key, or rows of `datasets`."""
  with file_streams.open_bytes(path) as file, file_streams.stream_errors(path):
    first = file_streams.first_byte(file)
    if first not in (b"{", b"["):
      return False
    keys: set[str] = set()
    depth, row = 0, 1 if first == b"{" else 2
    # Not `parse`, whose paths grow with the square of the depth.
    events = ijson.basic_parse(file, use_float=True)
    try:
      for event, value in itertools.islice(events, _MOST_EVENTS):
        depth += event in ("start_map", "start_array")
        if event == "map_key" and depth == row:
          if row == 1 and not keys and value in ("data", "version"):
            return True
          keys.add(value)
          if keys.issuperset(_ROW):
            return True
        depth -= event in ("end_map", "end_array")
        if depth < row and event == "end_map":
          return False
    except (ijson.JSONError, ValueError, OverflowError):
      return False
  return False


def read_squad(path: str | os.PathLike) -> Iterator[SquadQuestion]:
  """Yields the questions of a file in its order.

  A question is impossible if it has that flag, or, in a file with answers but
  without the flag (`datasets`), if its list of answers is empty.  The answers
  of a question without that list (test sets) are unknown.

  Raises:
    InputError: the file is not in SQuAD's format, or an answer is not at its
      offset.
  """
  rows = list(_rows(path))
  flagged = any(row.get("is_impossible") for row, _, _ in rows)
  answered = any(_pairs(row, where) for row, _, where in rows)
  for row, passage, where in rows:
    impossible = bool(row.get("is_impossible"))
    if answered and not flagged and row.get("answers") is not None:
      impossible = not _pairs(row, where)
    yield _question(row, passage, impossible, where)


def _rows(
  path: str | os.PathLike,
) -> Iterator[tuple[dict[str, Any], records.Passage, str]]:
  """Yields (question as in the file, its paragraph, position for errors)."""
  with file_streams.open_bytes(path) as file, file_streams.stream_errors(path):
    nested = file_streams.first_byte(file) == b"{" and _has_data(path)
    content = file_streams.parse_json(file.read(), str(path)) if nested else {}
  if not nested:
    values = json_objects.read(path, "is not in SQuAD's format")
    row = None
    for row in _flat_rows((value, where) for where, value, _ in values):
      yield row
    if row is not None:
      return
  articles = content.get("data") if isinstance(content, dict) else None
  if not isinstance(articles, list):
    raise errors.InputError(
      f'{path} is not in SQuAD\'s format: {{"data": [{{"title", "paragraphs":'
      ' [{"context", "qas"}]}]}'
    )
  if articles and isinstance(articles[0], dict) and "context" in articles[0]:
    yield from _flat_rows(
      (row, f"{path}: row {number}") for number, row in enumerate(articles, 1)
    )
    return
  for number, article in enumerate(articles):
    where = f"{path}: article {number}"
    try:
      title = _title(article, where)
      for place, paragraph in enumerate(article["paragraphs"]):
        where = f"{path}: article {number} ({title!r}), paragraph {place}"
        context = file_streams.string(paragraph["context"], where, "context")
        passage = records.Passage(f"{number}.{place}", title, context)
        for row in paragraph["qas"]:
          where = f"{path}: question {str(row.get('id'))[:80]!r} ({title!r})"
          yield row, passage, where
    except (KeyError, TypeError, AttributeError) as error:
      raise _malformed(where, error) from error


def _has_data(path: str | os.PathLike) -> bool:
  """True if one object contains all rows; False if each line is a row."""
  first = json_objects.first(path)
  return not isinstance(first, dict) or not first.keys() >= set(_ROW)


def _flat_rows(
  values: Iterable[tuple[Any, str]],
) -> Iterator[tuple[dict[str, Any], records.Passage, str]]:
  """As `_rows`, for rows with a title and a context each."""
  articles: dict[str, dict[str, records.Passage]] = {}
  for row, where in values:
    try:
      title = _title(row, where)
      context = file_streams.string(row["context"], where, "context")
      paragraphs = articles.setdefault(title, {})
      if context not in paragraphs:
        name = f"{list(articles).index(title)}.{len(paragraphs)}"
        paragraphs[context] = records.Passage(name, title, context)
      yield row, paragraphs[context], where
    except (KeyError, TypeError, AttributeError) as error:
      raise _malformed(where, error) from error


def _title(value: Mapping[str, Any], where: str) -> str:
  title = file_streams.string(value.get("title") or "", where, "title")
  return title.replace("_", " ")


def _malformed(where: str, error: Exception) -> errors.InputError:
  return errors.InputError(f"{where} is not in SQuAD's format: {error!r}")


def _pairs(row: Mapping[str, Any], where: str) -> list[tuple[Any, Any]]:
  """(text, start) of a question's answers; [] = none."""
  answers = row.get("answers")
  try:
    if answers is None:
      return []
    if isinstance(answers, dict):  # as `datasets` has them
      texts, starts = answers["text"], answers["answer_start"]
      if isinstance(texts, str):
        texts, starts = [texts], [starts]
      if len(texts) != len(starts):
        raise TypeError(f"{len(texts)} texts, {len(starts)} answer_start")
      return list(zip(texts, starts, strict=True))
    return [(each["text"], each["answer_start"]) for each in answers]
  except (KeyError, TypeError, AttributeError) as error:
    raise _malformed(where, error) from error


def _question(
  row: dict[str, Any], passage: records.Passage, impossible: bool, where: str
) -> SquadQuestion:
  pairs = [] if impossible else _pairs(row, where)
  try:
    for text, start in pairs:
      file_streams.string(text, where, "text")
      if start < 0 or passage.text[start : start + len(text)] != text:
        raise errors.InputError(
          f"{where}: the paragraph holds"
          f" {passage.text[start : start + len(text)][:80]!r} at character"
          f" {start}, not the answer {text[:80]!r}: offsets count characters,"
          " not bytes"
        )
    return SquadQuestion(
      file_streams.string(str(row["id"]), where, "id"),
      file_streams.string(row["question"], where, "question"),
      tuple(text for text, _ in pairs),
      tuple(start for _, start in pairs),
      passage,
      impossible,
    )
  except (KeyError, TypeError, AttributeError) as error:
    raise _malformed(where, error) from error
