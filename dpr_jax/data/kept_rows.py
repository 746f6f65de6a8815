"""Which rows of users' files `prepare` keeps, and what it counts of the others.

In come the readers' streams, out come the questions and passages that are
stored, the counts of the manifest, and warnings on what is missing in all of a
file and so is perhaps named otherwise.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from absl import logging

from dpr_jax.core import errors
from dpr_jax.data import (
  answer_matching,
  dpr_files,
  gold_passages,
  json_records,
  records,
  same_passages,
  tsv_corpus,
)

_NAMED = 20  # ids in a warning


class KeptQuestions:
  """Iterates over the questions of a file that are kept; counts the others.

  Attributes:
    counts: complete after the iteration.
    gold: the positives of the questions kept, after the iteration.
  """

  def __init__(self, split: str, path: pathlib.Path, limit: int):
    self.gold: list[gold_passages.Gold] = []
    self._split = split
    self._path = path
    self._limit = limit
    self._counts = dict.fromkeys(
      (
        "read",
        "kept",
        "without_question",
        "without_positives",
        "beyond_max",
        "without_answers",
        "answers_without_tokens",
        "positives",
        "empty_positives",
      ),
      0,
    )
    self._unread: json_records.Unread = json_records.Unread()

  @property
  def counts(self) -> dict[str, int]:
    """As the manifest has them: `train` for those kept, `train_read`, …."""
    counts = {f"{self._split}_{key}": n for key, n in self._counts.items()}
    return {self._split: counts.pop(f"{self._split}_kept"), **counts}

  def __iter__(self) -> Iterator[records.Question]:
    counts = self._counts
    for question in dpr_files.read_questions(self._path, self._unread):
      counts["read"] += 1
      if not question.question.strip():
        counts["without_question"] += 1
        continue
      if self._split == "train" and not question.positives:
        counts["without_positives"] += 1
        continue
      if self._limit and counts["kept"] == self._limit:
        counts["beyond_max"] += 1
        continue
      counts["kept"] += 1
      counts["without_positives"] += not question.positives
      counts["positives"] += len(question.positives)
      counts["empty_positives"] += sum(map(is_empty, question.positives))
      self.gold.extend(map(gold_passages.Gold.of, question.positives))
      kept = with_real_answers(question)
      counts["answers_without_tokens"] += len(question.answers) - len(
        kept.answers
      )
      counts["without_answers"] += not kept.answers
      yield kept
    if not counts["kept"]:
      raise errors.InputError(
        f"{self._path}: no question is left for {self._split}: of"
        f" {counts['read']} rows, {counts['without_question']} have an empty"
        f" question and {counts['without_positives']} no positive passage"
        f"{self._not_read()}"
      )

  def _not_read(self) -> str:
    """The fields of the file that nobody looks at, for messages."""
    names = [name for name in self._unread if not name.startswith("ctx ")]
    return f"; not read there: {', '.join(sorted(names)[:9])}" if names else ""

  def warn(self, counts: Mapping[str, int]) -> None:
    """Says what is missing in all rows, and so is perhaps named otherwise.

    Args:
      counts: those of the manifest.
    """
    kept, positives = self._counts["kept"], self._counts["positives"]
    if self._counts["without_answers"] == kept:
      logging.warning(
        "prepare: %s: no question has an answer, so answers are not looked for;"
        " they are read from %s%s",
        self._path,
        " or ".join(json_records.ANSWERS),
        self._not_read(),
      )
    if not positives:
      return
    nameless = counts[f"{self._split}_gold_without_id"]
    if nameless == positives:
      others = sorted(n[4:] for n in self._unread if n.startswith("ctx "))
      logging.warning(
        "prepare: %s: no positive passage has an id: ids are read from %s%s",
        self._path,
        ", ".join(json_records.IDS),
        f"; not read there: {', '.join(others[:9])}" if others else "",
      )
    elif counts[f"{self._split}_gold_not_in_corpus"] == positives - nameless:
      logging.warning(
        "prepare: %s: none of the %d ids of positive passages (%s, ...) is in"
        " the corpus: the corpus is another one, or has other ids",
        self._path,
        positives - nameless,
        ", ".join(list(dict.fromkeys(g.id for g in self.gold if g.id))[:3]),
      )
    if empty := self._counts["empty_positives"]:
      logging.warning(
        "prepare: %s: %d of %d positive passages have no text",
        self._path,
        empty,
        positives,
      )


def is_empty(passage: records.Passage) -> bool:
  """A passage whose text has nothing to be seen."""
  return not passage.text.strip()


def with_real_answers(question: records.Question) -> records.Question:
  """Drops answers without a token: they would match every passage."""
  kept = tuple(a for a in question.answers if answer_matching.answer_tokens(a))
  if len(kept) == len(question.answers):
    return question
  return dataclasses.replace(question, answers=kept)


class KeptPassages:
  """Iterates over the passages of a corpus that are kept, in file order.

  With a limit the file is read twice: first to learn which of the gold passages
  it holds, for these are kept before all others.

  Attributes:
    counts: complete after the iteration.
    quoting: of a table: "csv" or "none"; "" of JSON.
    finder: has read along, to know passages by their texts.
  """

  def __init__(
    self,
    path: pathlib.Path,
    limit: int,
    gold: Sequence[gold_passages.Gold],
    quoting: str,
  ):
    self.counts = dict.fromkeys(
      (
        "passages",
        "passages_read",
        "passages_beyond_max",
        "passages_without_text",
        "passages_with_tab_and_line_break",
      ),
      0,
    )
    self.quoting = quoting
    self._auto = quoting == "auto"
    self._swallowing: list[str] = []
    self._path = path
    self._limit = limit
    self._gold = gold
    self._gold_ids = {one.id for one in gold if one.id}
    self.finder = same_passages.Finder(one.same for one in gold)

  def __iter__(self) -> Iterator[records.Passage]:
    if dpr_files.is_json(self._path):
      self.quoting = ""
    elif self._auto:
      self.quoting = tsv_corpus.choose(self._path)
    room = self._room_for_others()
    counts = self.counts
    for passage in self._read(self._swallowing):
      counts["passages_read"] += 1
      if room is not None and passage.id not in self._gold_ids:
        if not room:
          counts["passages_beyond_max"] += 1
          continue
        room -= 1
      counts["passages"] += 1
      counts["passages_without_text"] += is_empty(passage)
      self.finder.see(passage)
      yield passage
    counts["passages_with_tab_and_line_break"] = len(self._swallowing)
    if not counts["passages_read"]:
      raise errors.InputError(
        f"{self._path}: the corpus is empty, there is only a header"
      )

  def _read(
    self, swallowing: list[str] | None = None
  ) -> Iterator[records.Passage]:
    return dpr_files.read_passages(self._path, self.quoting, swallowing)

  def warn(self) -> None:
    """Says how the file was read where that may be wrong."""
    if self._auto and self.quoting == "none":
      logging.warning(
        "prepare: %s was written without quoting (as csv it would lose rows):"
        " quotation marks are part of the texts; config.data.quoting=csv would"
        " read it otherwise",
        self._path,
      )
    if ids := self._swallowing:
      logging.warning(
        "prepare: %s: %d passages hold both a tab and a line break, as those do"
        " in which a quotation mark was left open and the rows behind it were"
        " swallowed: %s%s; if quotation marks mean nothing in this file, set"
        " config.data.quoting=none",
        self._path,
        len(ids),
        ", ".join(ids[:_NAMED]),
        ", ..." if len(ids) > _NAMED else "",
      )

  def _room_for_others(self) -> int | None:
    """How many passages that are no gold ones may be kept; None = all."""
    if not self._limit:
      return None
    found, finder = set(), same_passages.Finder(one.same for one in self._gold)
    for passage in self._read():
      finder.see(passage)
      if passage.id in self._gold_ids:
        found.add(passage.id)
    for one in self._gold:
      if one.id not in found and one.same in finder.ids:
        found.add(finder.ids[one.same])
    self._gold_ids = found
    if len(found) > self._limit:
      raise errors.InputError(
        f"config.data.max_passages={self._limit}: the questions kept have"
        f" {len(found)} different positive passages in {self._path}, and all"
        f" of them are needed: set it to at least {len(found)}, or lower"
        " config.data.max_train and max_dev"
      )
    return self._limit - len(found)
