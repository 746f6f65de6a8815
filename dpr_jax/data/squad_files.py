"""Reader of SQuAD's JSON: questions with their paragraph and answer offsets.

In comes `train-v1.1.json` or a file of the same form (also v2.0, also gzipped),
out come `SquadQuestion`s: each has the one paragraph that it was asked about,
and its answers with the characters where they stand.  Mistakes in the file are
`errors.InputError` with article, paragraph and question.
"""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import ijson

from dpr_jax.core import errors
from dpr_jax.data import file_streams, records


@dataclasses.dataclass(frozen=True, slots=True)
class SquadQuestion:
  """A question about one paragraph.

  Attributes:
    id: SQuAD's own.
    question: its text.
    answers: accepted answers, repeats included; () for one without an answer
      (v2.0).
    starts: character of the paragraph where each answer starts.
    paragraph: what it is asked about; its id is `<article>.<paragraph>`.
  """

  id: str
  question: str
  answers: tuple[str, ...]
  starts: tuple[int, ...]
  paragraph: records.Passage


def is_squad(path: str | os.PathLike) -> bool:
  """True where a file is a JSON object with SQuAD's first key."""
  with file_streams.open_bytes(path) as file, file_streams.stream_errors(path):
    if file_streams.first_byte(file) != b"{":
      return False
    try:
      # Not `parse`, whose paths grow with the square of the depth.
      for event, value in ijson.basic_parse(file, use_float=True):
        if event == "map_key":
          return value in ("data", "version")
    except (ijson.JSONError, ValueError, OverflowError):
      return False
  return False


def read_squad(path: str | os.PathLike) -> Iterator[SquadQuestion]:
  """Yields the questions of a file in its order.

  Raises:
    InputError: the file is not in SQuAD's format; an answer does not stand
      where it says.
  """
  with file_streams.open_bytes(path) as file, file_streams.stream_errors(path):
    content = file_streams.parse_json(file.read(), str(path))
  articles = content.get("data") if isinstance(content, dict) else None
  if not isinstance(articles, list):
    raise errors.InputError(
      f'{path} is not in SQuAD\'s format: {{"data": [{{"title", "paragraphs":'
      ' [{"context", "qas"}]}]}'
    )
  for number, article in enumerate(articles):
    where = f"{path}: article {number}"
    try:
      title = file_streams.string(
        article.get("title", ""), where, "title"
      ).replace("_", " ")
      for place, paragraph in enumerate(article["paragraphs"]):
        where = f"{path}: article {number} ({title!r}), paragraph {place}"
        context = file_streams.string(paragraph["context"], where, "context")
        passage = records.Passage(f"{number}.{place}", title, context)
        for row in paragraph["qas"]:
          where = f"{path}: question {str(row.get('id'))[:80]!r} ({title!r})"
          yield _question(row, passage, where)
    except (KeyError, TypeError, AttributeError) as error:
      raise errors.InputError(
        f"{where} is not in SQuAD's format: {error!r}"
      ) from error


def _question(
  row: dict[str, Any], passage: records.Passage, where: str
) -> SquadQuestion:
  answers = [] if row.get("is_impossible") else row["answers"]
  for answer in answers:
    start, text = (
      answer["answer_start"],
      file_streams.string(answer["text"], where, "text"),
    )
    if start < 0 or passage.text[start : start + len(text)] != text:
      raise errors.InputError(
        f"{where}: the paragraph holds"
        f" {passage.text[start : start + len(text)][:80]!r} at character"
        f" {start}, not the answer {text[:80]!r}: offsets count characters, not"
        " bytes"
      )
  return SquadQuestion(
    file_streams.string(str(row["id"]), where, "id"),
    file_streams.string(row["question"], where, "question"),
    tuple(answer["text"] for answer in answers),
    tuple(answer["answer_start"] for answer in answers),
    passage,
  )
