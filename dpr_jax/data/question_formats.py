"""Recognizes the format of training questions, and converts their rows.

Input: one row of a file, a mapping.  Output: a `records.Question`.  `FORMATS`
lists the formats; the first one whose fields a row has is the format of the
whole file.  A format is independent of the container: every one may come as
JSON, JSONL, CSV, TSV, Parquet or Arrow (`row_files`).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from dpr_jax.core import errors
from dpr_jax.data import json_records, records

Unread = json_records.Unread | None
Convert = Callable[[Any, str, bool, Unread], records.Question]

_ANCHORS = ("anchor", "query", "question")
_MOST_PARAGRAPHS = 1000  # of one provenance
_NUMBERED = ("negative_", "negative")  # negative_1 and negative1


@dataclasses.dataclass(frozen=True)
class Format:
  """A format of questions.

  Attributes:
    name: name in messages.
    fields: its fields, for messages.
    matches: whether a row with these fields is of the format.
    convert: from (row, position, marked, counter of unread fields), see
      `json_records.question`.
    by_id: its passages are ids of the corpus: their texts are empty.
  """

  name: str
  fields: str
  matches: Callable[[Mapping[str, Any]], bool]
  convert: Convert
  by_id: bool = False


def of(row: Mapping[str, Any]) -> Format | None:
  """The format of a file, from its first row (or its header); None = none."""
  return next((one for one in FORMATS if one.matches(row)), None)


def unknown(row: Mapping[str, Any], where: str) -> errors.InputError:
  """The error for a row of no format: its fields, and all formats."""
  said = json_records.no_question(row, where)
  listed = "; ".join(f"{one.name}: {one.fields}" for one in FORMATS)
  return errors.InputError(f"{said}; formats of questions are {listed}")


def _beir_query(value, where, marked, unread) -> records.Question:
  del unread
  value = _mapping(value, where, "text", "question")
  return json_records.query(value, where, marked)[1]


def _tevatron(value, where, marked, unread) -> records.Question:
  value = _mapping(value, where, "query")
  lists = ("positive_passages", "negative_passages")
  _count(unread, value, ("query_id", "query", *json_records.ANSWERS, *lists))
  positives, negatives = (
    tuple(
      json_records.context(entry, where, f"{name}[{i}]", marked, unread)
      for i, entry in enumerate(
        json_records.listed(value.get(name), where, name)
      )
    )
    for name in lists
  )
  return records.Question(
    _text(value, ("query",), where, marked),
    json_records.answers(value, where, marked),
    positives,
    negatives,
  )


def _tevatron_ids(value, where, marked, unread) -> records.Question:
  value = _mapping(value, where, "positive_document_ids")
  lists = ("positive_document_ids", "negative_document_ids")
  names = ("query_text", "query")
  _count(unread, value, ("query_id", *names, *json_records.ANSWERS, *lists))
  positives, negatives = (
    tuple(
      records.Passage(identifier, "", "")
      for identifier in _ids(value.get(name), where, name, marked)
    )
    for name in lists
  )
  return records.Question(
    _text(value, names, where, marked),
    json_records.answers(value, where, marked),
    positives,
    negatives,
  )


def _flag_embedding(value, where, marked, unread) -> records.Question:
  value = _mapping(value, where, "pos")
  _count(unread, value, ("query", "pos", "neg", *json_records.ANSWERS))
  return records.Question(
    _text(value, ("query",), where, marked),
    json_records.answers(value, where, marked),
    _texts(value.get("pos"), where, "pos", marked),
    _texts(value.get("neg"), where, "neg", marked),
  )


def _sentence_transformers(value, where, marked, unread) -> records.Question:
  value = _mapping(value, where, "positive", "positives")
  negatives = [name for name in value if _is_negative(name)]
  positives = ("positive", "positives")
  known = (*_ANCHORS, *positives, *negatives, *json_records.ANSWERS)
  _count(unread, value, known)
  return records.Question(
    _text(value, _ANCHORS, where, marked),
    json_records.answers(value, where, marked),
    *(
      tuple(
        passage
        for name in names
        for passage in _texts(value.get(name), where, name, marked)
      )
      for names in (positives, negatives)
    ),
  )


def _is_negative(name: str) -> bool:
  """True for negative, negatives, negative_1, negative_2, ..."""
  if name in ("negative", "negatives"):
    return True
  prefix = next((p for p in _NUMBERED if name.startswith(p)), None)
  number = name[len(prefix) :] if prefix else ""
  return number.isascii() and number.isdigit()


def _kilt(value, where, marked, unread) -> records.Question:
  value = _mapping(value, where, "output")
  _count(unread, value, ("id", "input", "output"))
  answers: dict[str, None] = {}
  positives: dict[str, records.Passage] = {}
  outputs = json_records.listed(value.get("output"), where, "output")
  for number, output in enumerate(outputs):
    field = f"output[{number}]"
    output = _object(output, where, field)
    if (answer := output.get("answer")) is not None:
      name = f"{field}.answer"
      answers[json_records.string(answer, where, name, marked)] = None
    sources = json_records.listed(
      output.get("provenance"), where, f"{field}.provenance"
    )
    for place, source in enumerate(sources):
      name = f"{field}.provenance[{place}]"
      for passage in _provenance(source, where, name, marked):
        positives.setdefault(passage.id, passage)
  return records.Question(
    _text(value, ("input",), where, marked),
    tuple(answer for answer in answers if answer),
    tuple(positives.values()),
  )


def kilt_id(article: str, paragraph: int) -> str:
  """Id of a paragraph of KILT's knowledge source, as in its corpus here."""
  return f"{article}-{paragraph}"


def _provenance(
  value: Any, where: str, field: str, marked: bool
) -> list[records.Passage]:
  """The paragraphs of a provenance; without numbers, the whole article."""
  value = _object(value, where, field)
  article = value.get("wikipedia_id")
  if isinstance(article, int) and not isinstance(article, bool):
    article = str(article)
  article = json_records.string(article, where, f"{field}.wikipedia_id", marked)
  if (first := value.get("start_paragraph_id")) is None:
    return [records.Passage(article, "", "")]
  last = value.get("end_paragraph_id")
  last = first if last is None else last
  for name, number in (("start", first), ("end", last)):
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
      raise errors.InputError(
        f"{where}, {field}.{name}_paragraph_id: {json_records.short(number)}"
        " is not the number of a paragraph, 0 or more"
      )
  if not first <= last < first + _MOST_PARAGRAPHS:
    raise errors.InputError(
      f"{where}, {field}: paragraphs {first} to {last}: the last must not be"
      f" before the first, nor {_MOST_PARAGRAPHS} after it"
    )
  return [
    records.Passage(kilt_id(article, number), "", "")
    for number in range(first, last + 1)
  ]


def _object(value: Any, where: str, field: str) -> Mapping[str, Any]:
  if not isinstance(value, Mapping):
    raise errors.InputError(
      f"{where}, {field}: {json_records.short(value)} is not an object"
    )
  return value


def _mapping(value: Any, where: str, *fields: str) -> Mapping[str, Any]:
  """A row; `InputError` where it is no object, or has none of these fields."""
  if not isinstance(value, dict):
    raise errors.InputError(
      f"{where}: {json_records.short(value)} is not an object with {fields[0]}"
    )
  if not any(name in value for name in fields):
    raise errors.InputError(
      f"{where}: no field {' or '.join(fields)}, only"
      f" {json_records.short(sorted(value))}: all rows of a file have the"
      " format of its first row"
    )
  return value


def _text(
  value: Mapping[str, Any], names: tuple[str, ...], where: str, marked: bool
) -> str:
  """The text of a question, in the first of these fields that is there."""
  _mapping(value, where, *names)
  there = [name for name in names if name in value]
  name = next((name for name in there if value[name] is not None), there[0])
  return json_records.straighten(
    json_records.string(value[name], where, name, marked)
  )


def _texts(
  value: Any, where: str, field: str, marked: bool
) -> tuple[records.Passage, ...]:
  """Passages without title and id, from a text or a list of texts."""
  if isinstance(value, str):
    return (
      records.Passage("", "", json_records.string(value, where, field, marked)),
    )
  return tuple(
    records.Passage("", "", text)
    for text in json_records.strings(value, where, field, marked)
  )


def _ids(value: Any, where: str, field: str, marked: bool) -> tuple[str, ...]:
  entries = json_records.listed(value, where, field)
  return json_records.strings(
    [str(entry) if type(entry) is int else entry for entry in entries],
    where,
    field,
    marked,
  )


def _count(unread: Unread, value: Mapping[str, Any], read: Any) -> None:
  """Counts the fields of a row that are not read."""
  if unread is not None:
    unread.update(value.keys() - set(read))


FORMATS = (
  Format(
    "Tevatron",
    "query, positive_passages, negative_passages",
    lambda row: (
      "query" in row
      and ("positive_passages" in row or "negative_passages" in row)
    ),
    _tevatron,
  ),
  Format(
    "Tevatron with ids",
    "query_text, positive_document_ids, negative_document_ids",
    lambda row: "positive_document_ids" in row,
    _tevatron_ids,
    by_id=True,
  ),
  Format(
    "FlagEmbedding",
    "query, pos, neg",
    lambda row: "query" in row and "pos" in row,
    _flag_embedding,
  ),
  Format(
    "sentence-transformers",
    "anchor (or query, question), positive, negative (or negative_1, ...)",
    lambda row: (
      ("positive" in row or "positives" in row)
      and any(name in row for name in _ANCHORS)
    ),
    _sentence_transformers,
  ),
  Format(
    "KILT",
    "input, output",
    lambda row: "input" in row and "output" in row,
    _kilt,
    by_id=True,
  ),
  Format(
    "BEIR queries",
    "_id, text",
    json_records.is_query,
    _beir_query,
  ),
  Format(
    "DPR",
    "question, answers, positive_ctxs, hard_negative_ctxs, negative_ctxs",
    lambda row: "question" in row,
    json_records.question,
  ),
)
