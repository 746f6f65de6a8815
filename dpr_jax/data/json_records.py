"""Converts JSON objects of users' files to passages and questions.

Input: one parsed object (a row of DPR's JSON, of BEIR's or Pyserini's JSONL, or
one context of a row).  Output: a `records.Passage` or a `records.Question`.
The alternative names of a field are listed here only; of several names in one
object the first with a value counts, so that an empty `passage_id` does not
hide a valid `psg_id`.

A value of the wrong type is an `errors.InputError` that names row, field and
value.  Fields that are not read are counted by name, so that messages can say
where a file may have its answers.
"""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from dpr_jax.core import errors
from dpr_jax.data import file_streams, json_objects, records

IDS = ("_id", "passage_id", "psg_id", "docid", "doc_id", "id")
TEXTS = ("text", "contents")
ANSWERS = ("answers", "answer")
CTX_LISTS = ("positive_ctxs", "hard_negative_ctxs", "negative_ctxs")

_QUERY_IDS = ("_id", "query_id", "qid", "id")
ALL_IDS = frozenset((*IDS, *_QUERY_IDS, "wikipedia_id"))
_READ = frozenset(("question", *ANSWERS, *CTX_LISTS))

# Number of rows with a field that is not read, by name.
Unread = collections.Counter


def question(
  value: Any, where: str, marked: bool = False, unread: Unread | None = None
) -> records.Question:
  """Converts an object of DPR's JSON, or of BEIR's queries, to a question.

  Args:
    value: object with `question`, or with BEIR's `_id` and `text`.
    where: file and row, for errors.
    marked: the object may contain the mark of a lone surrogate
      (`file_streams.LoneSurrogates`).
    unread: counter to update with fields that are not read; None = no count.

  Raises:
    InputError: names row, field and value.
  """
  if not isinstance(value, dict):
    raise errors.InputError(
      f"{where}: {short(value)} is not an object with a question"
    )
  if "question" not in value:
    if is_query(value):
      return query(value, where, marked)[1]
    raise no_question(value, where)
  if unread is not None:
    unread.update(value.keys() - _READ)
  positives, hard_negatives, negatives = (
    tuple(
      context(ctx, where, f"{name}[{i}]", marked, unread)
      for i, ctx in enumerate(listed(value.get(name), where, name))
    )
    for name in CTX_LISTS
  )
  return records.Question(
    straighten(string(value["question"], where, "question", marked)),
    answers(value, where, marked),
    positives,
    hard_negatives,
    negatives,
  )


def is_query(value: Mapping[str, Any]) -> bool:
  """Whether an object is one of BEIR's queries: an id and a text."""
  return (
    "text" in value
    and "question" not in value
    and any(name in value for name in _QUERY_IDS)
  )


def query(
  value: dict[str, Any], where: str, marked: bool = False
) -> tuple[str, records.Question]:
  """Id and question of an object with an id.

  The text is `text`, or `question` in DPR's format.
  """
  identifier = _identifier(value, _QUERY_IDS, where, marked)
  if "question" in value:
    return identifier, question(value, where, marked)
  text = straighten(string(value.get("text"), where, "text", marked))
  return identifier, records.Question(text, answers(value, where, marked))


def passage(
  value: Any, where: str, marked: bool = False, title_line: bool = False
) -> records.Passage:
  """Converts an object of a corpus to a passage.

  Its fields are BEIR's `_id`, `title` and `text`, or have one of the other
  names.  The title may be missing.

  Args:
    value: the object.
    where: file and row, for errors.
    marked: as in `question`.
    title_line: the first line of `contents` (Pyserini) is the title, perhaps in
      quotation marks; False = `contents` is used as the text unchanged.
  """
  if not isinstance(value, dict):
    raise errors.InputError(f"{where}: {short(value)} is not a JSON object")
  name = _first(value, TEXTS)
  if name is None:
    raise no_text(value, where)
  identifier = _identifier(value, IDS, where, marked)
  title = _title(value, where, "title", marked)
  text = string(value[name], where, name, marked)
  if title_line and name == "contents" and not title and "\n" in text:
    title, _, text = text.partition("\n")
    if len(title) > 1 and title[0] == title[-1] == '"':
      title = title[1:-1]
  return records.Passage(identifier, title, text)


def no_text(value: Mapping[str, Any], where: str) -> errors.InputError:
  """The error for an object of a corpus without a text, with the fix."""
  return errors.InputError(
    f"{where}: no field {' or '.join(TEXTS)}, only {short(sorted(value))}: a"
    " corpus has one object per passage, with _id, title and text;"
    f" {json_objects.around(value)}".rstrip("; ")
  )


def context(
  value: Any,
  where: str,
  field: str,
  marked: bool = False,
  unread: Unread | None = None,
) -> records.Passage:
  """Converts an object of a row's lists to a passage; "" = no id."""
  name = _first(value, TEXTS) if isinstance(value, dict) else None
  if name is None:
    raise errors.InputError(
      f"{where}, {field}: {short(value)} is not an object with a text"
    )
  if unread is not None and not context_id(value, where, field, marked):
    known = {*IDS, *TEXTS, "title", "score", "title_score"}
    unread.update(f"ctx {other}" for other in value.keys() - known)
  return records.Passage(
    context_id(value, where, field, marked),
    _title(value, where, f"{field}.title", marked),
    string(value[name], where, f"{field}.{name}", marked),
  )


def context_id(
  value: Mapping[str, Any], where: str, field: str, marked: bool = False
) -> str:
  """The first id with a value, without the prefix `wiki:`; "" = none.

  Whole numbers are accepted: `psg_id` is one in DPR's own files.
  """
  for name in IDS:
    identifier = value.get(name)
    if identifier is None:
      continue
    if isinstance(identifier, int) and not isinstance(identifier, bool):
      return str(identifier)
    text_id = clean_id(string(identifier, where, f"{field}.{name}", marked))
    if text_id.strip():
      return text_id
  return ""


def clean_id(identifier: str) -> str:
  """Removes the prefix of `wiki:17`, as released DPR files write passage 17."""
  return identifier.removeprefix("wiki:")


def straighten(text: str) -> str:
  """Replaces the curly apostrophe by the plain one, as DPR's code does."""
  return text.replace("\u2019", "'")


def string(value: Any, where: str, field: str, marked: bool = False) -> str:
  """`value`, if it is a string that UTF-8 can encode; else `InputError`."""
  if not isinstance(value, str):
    raise errors.InputError(
      f"{where}, {field}: {short(value)} is a {type(value).__name__}, not a"
      " string"
    )
  if marked and file_streams.LoneSurrogates.MARK in value:
    raise _not_unicode(where, field, value)
  return check_unicode(value, where, field)


def strings(
  value: Any, where: str, field: str, marked: bool = False
) -> tuple[str, ...]:
  """A list of strings as a tuple, () for None; errors as in `string`."""
  return tuple(
    string(item, where, f"{field}[{i}]", marked)
    for i, item in enumerate(listed(value, where, field))
  )


def check_unicode(value: str, where: str, field: str) -> str:
  """Returns `value`; `InputError` if UTF-8 cannot encode it."""
  if not file_streams.is_unicode(value):
    raise _not_unicode(where, field, value)
  return value


def short(value: Any, length: int = 80) -> str:
  """A value for an error message: on one line, and shortened."""
  if isinstance(value, str):
    value = value[: length + 1]
  text = repr(value) if file_streams.is_unicode(str(value)) else ascii(value)
  return text if len(text) <= length else text[: length - 3] + "..."


def _first(value: Mapping[str, Any], names: Sequence[str]) -> str | None:
  """The first name with a value; else the first one that is present."""
  there = [name for name in names if value.get(name) is not None]
  filled = [name for name in there if value[name] != ""]
  return next(iter([*filled, *there]), None)


def _identifier(
  value: Mapping[str, Any], names: Sequence[str], where: str, marked: bool
) -> str:
  """The id of a passage of a corpus or of a query, which must have one."""
  for name in names:
    identifier = value.get(name)
    if identifier is None or identifier == "":
      continue
    if not isinstance(identifier, str):
      raise errors.InputError(
        f"{where}: the field {name} is {short(identifier)}, not a string: ids"
        f' are texts, in quotation marks: "{name}": "{identifier}"'
      )
    text_id = string(identifier, where, name, marked)
    if name != "_id":  # BEIR's judgements refer to its ids unchanged
      text_id = clean_id(text_id)
    if text_id.strip():
      return text_id
  empty = [f"{name} is {value[name]!r}" for name in names if name in value]
  said = ", ".join(empty) or f"only {short(sorted(value))}"
  raise errors.InputError(
    f"{where}: no id: {said}; every row needs its own, in one of"
    f" {', '.join(names)}"
  )


def _title(
  value: Mapping[str, Any], where: str, field: str, marked: bool
) -> str:
  title = value.get("title")
  return "" if title is None else string(title, where, field, marked)


def answers(value: Mapping[str, Any], where: str, marked: bool) -> tuple:
  """The answers, from `answers` or NQ-open's `answer`: a list, or one text."""
  name = next((name for name in ANSWERS if value.get(name)), ANSWERS[0])
  texts = value.get(name)
  if name == "answer" and isinstance(texts, str):
    texts = [texts]
  if isinstance(texts, dict):
    raise errors.InputError(
      f"{where}, {name}: {short(texts)} is an object: it must be a list of"
      f' the accepted texts, "answers": ["a", "b"]'
    )
  return strings(texts, where, name, marked)


def no_question(value: Mapping[str, Any], where: str) -> errors.InputError:
  """The error for an object without a question, with the fix."""
  said = f"{where}: no field question, only {short(sorted(value))}"
  if fix := json_objects.around(value):
    return errors.InputError(f"{said}: {fix}")
  for name in ("query", "Question", "question_text", "q"):
    if name in value:
      return errors.InputError(f"{said}: rename {name} to question")
  return errors.InputError(said)


def listed(value: Any, where: str, field: str) -> list:
  """Returns a list; None, a missing list, becomes an empty one."""
  if value is None:
    return []
  if not isinstance(value, list):
    raise errors.InputError(f"{where}, {field}: {short(value)} is not a list")
  return value


def _not_unicode(where: str, field: str, value: str) -> errors.InputError:
  return errors.InputError(
    f"{where}, {field}: not valid UTF-8, or half of a surrogate pair, in"
    f" {short(value)}: the file was written in another encoding or cut"
  )
