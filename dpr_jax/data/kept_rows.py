"""Selects the rows of users' files that `prepare` keeps, and counts the others.

Input: the readers' streams.  Output: the questions and passages to store, the
counts of the manifest, and warnings about fields that are missing in a whole
file, which may have another name there.
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
    counts: counts of the rows; complete after the iteration.
    gold: positives of the kept questions; complete after the iteration.
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
    """Counts for the manifest: `train` (kept questions), `train_read`, …."""
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
        f"{self._path}: no questions are left for {self._split}: of"
        f" {counts['read']} rows, {counts['without_question']} have an empty"
        f" question and {counts['without_positives']} no positive passage"
        f"{self._not_read()}"
      )

  def _not_read(self) -> str:
    """The fields of the file that are not read, for messages."""
    names = [name for name in self._unread if not name.startswith("ctx ")]
    return f"; other fields: {', '.join(sorted(names)[:9])}" if names else ""

  def warn(self, counts: Mapping[str, int]) -> None:
    """Warns about fields that are missing in all rows.

    Args:
      counts: counts of the manifest.
    """
    kept, positives = self._counts["kept"], self._counts["positives"]
    if self._counts["without_answers"] == kept:
      logging.warning(
        "prepare: %s: no question has an answer, so passages are not"
        " searched for answers; they are read from %s%s",
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
        f"; other fields: {', '.join(others[:9])}" if others else "",
      )
    elif counts[f"{self._split}_gold_not_in_corpus"] == positives - nameless:
      logging.warning(
        "prepare: %s: none of the %d ids of positive passages (%s, ...) is in"
        " the corpus: it is another corpus, or its ids are different",
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
  """True for a passage whose text is empty or white space."""
  return not passage.text.strip()


def with_real_answers(question: records.Question) -> records.Question:
  """Drops answers without any token, which would match every passage."""
  kept = tuple(a for a in question.answers if answer_matching.answer_tokens(a))
  if len(kept) == len(question.answers):
    return question
  return dataclasses.replace(question, answers=kept)


class KeptPassages:
  """Iterates over the passages of a corpus that are kept, in file order.

  With a limit the file is read twice: first to find the gold passages in it,
  which are kept before all others.

  Attributes:
    counts: counts of the rows; complete after the iteration.
    quoting: quoting of a table, "csv" or "none"; "" for JSON.
    finder: hashes of all passages read, to find passages by their texts.
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
    free = self._places_for_others()
    counts = self.counts
    for passage in self._read(self._swallowing):
      counts["passages_read"] += 1
      if free is not None and passage.id not in self._gold_ids:
        if not free:
          counts["passages_beyond_max"] += 1
          continue
        free -= 1
      counts["passages"] += 1
      counts["passages_without_text"] += is_empty(passage)
      self.finder.see(passage)
      yield passage
    counts["passages_with_tab_and_line_break"] = len(self._swallowing)
    if not counts["passages_read"]:
      raise errors.InputError(
        f"{self._path}: the corpus has a header but no passages"
      )

  def _read(
    self, swallowing: list[str] | None = None
  ) -> Iterator[records.Passage]:
    return dpr_files.read_passages(self._path, self.quoting, swallowing)

  def warn(self) -> None:
    """Warns where the file may have been read with the wrong quoting."""
    if self._auto and self.quoting == "none":
      logging.warning(
        "prepare: %s is read without quoting (as csv it would lose rows):"
        " quotation marks are part of the texts; set config.data.quoting=csv to"
        " read it as csv",
        self._path,
      )
    if ids := self._swallowing:
      logging.warning(
        "prepare: %s: %d passages contain both a tab and a line break, which"
        " may be an unclosed quotation mark that swallowed the next rows: %s%s;"
        " if quotation marks are plain text in this file, set"
        " config.data.quoting=none",
        self._path,
        len(ids),
        ", ".join(ids[:_NAMED]),
        ", ..." if len(ids) > _NAMED else "",
      )

  def _places_for_others(self) -> int | None:
    """Number of other than gold passages that may be kept; None = all."""
    if not self._limit:
      return None
    gold_ids, finder = (
      set(),
      same_passages.Finder(one.same for one in self._gold),
    )
    for passage in self._read():
      finder.see(passage)
      if passage.id in self._gold_ids:
        gold_ids.add(passage.id)
    for one in self._gold:
      if one.id not in gold_ids and one.same in finder.ids:
        gold_ids.add(finder.ids[one.same])
    self._gold_ids = gold_ids
    if len(gold_ids) > self._limit:
      raise errors.InputError(
        f"config.data.max_passages={self._limit}: the kept questions have"
        f" {len(gold_ids)} different positive passages in {self._path}, which"
        f" must all be kept: set it to at least {len(gold_ids)}, or lower"
        " config.data.max_train and max_dev"
      )
    return self._limit - len(gold_ids)
