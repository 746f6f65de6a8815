"""Selects the questions that `prepare` keeps, and counts the others.

Input: the sources of questions.  Output: the questions to store, the counts of
the manifest, and warnings about fields that are missing in a whole file, which
may have another name there.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

from absl import logging

from dpr_jax.core import errors
from dpr_jax.data import (
  answer_matching,
  datasets,
  gold_passages,
  json_records,
  question_sources,
  records,
)

_COUNTS = (
  *("read", "kept", "without_question", "without_positives", "beyond_max"),
  *("without_answers", "answers_without_tokens", "positives"),
  "empty_positives",
)
_COUNTS_BY_ID = (
  "positives_not_in_corpus",
  "negatives_not_in_corpus",
  "without_positives_in_corpus",
)


class KeptQuestions:
  """Iterates over the questions of a source that are kept; counts the others.

  Attributes:
    source: where the questions come from.
    gold: positives of the kept questions; complete after the iteration.
  """

  def __init__(
    self,
    split: str,
    source: question_sources.QuestionSource,
    limit: int,
    prefix: str = "",
  ):
    """Reads a source.

    Args:
      split: "train" or "dev".
      source: where the questions come from.
      limit: number of questions to keep at most; 0 = all.
      prefix: text to put before every question.
    """
    self.source = source
    self.gold: list[gold_passages.Gold] = []
    self._split = split
    self._limit = limit
    self._prefix = prefix
    self._counts = dict.fromkeys(_COUNTS, 0)
    self._notes = question_sources.Notes()

  @property
  def kept(self) -> int:
    """Number of questions that are kept."""
    return self._counts["kept"]

  @property
  def counts(self) -> dict[str, int]:
    """Counts for the manifest: `train` (kept questions), `train_read`, …."""
    everything = {**self._counts, **self._notes.dropped}
    counts = {f"{self._split}_{key}": n for key, n in everything.items()}
    return {self._split: counts.pop(f"{self._split}_kept"), **counts}

  def __iter__(self) -> Iterator[records.Question]:
    counts = self._counts
    for question in self.source.read(self._notes):
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
      self._count_positives(question)
      kept = with_real_answers(question)
      counts["answers_without_tokens"] += len(question.answers) - len(
        kept.answers
      )
      counts["without_answers"] += not kept.answers
      if self._prefix:
        kept = dataclasses.replace(kept, question=self._prefix + kept.question)
      yield kept
    if not counts["kept"]:
      raise errors.InputError(
        f"{self.source.where}: no questions are left for {self._split}: of"
        f" {counts['read']} rows, {counts['without_question']} have an empty"
        f" question and {counts['without_positives']} no positive passage"
        f"{self._not_read()}"
      )

  def _count_positives(self, question: records.Question) -> None:
    positives = question.positives
    self._counts["positives"] += len(positives)
    if self.source.by_id:  # without texts, until `filled`
      self.gold.extend(gold_passages.Gold(p.id, b"", 0) for p in positives)
      return
    self._counts["empty_positives"] += sum(map(is_empty, positives))
    self.gold.extend(map(gold_passages.Gold.of, positives))

  def filled(
    self,
    written: Iterable[records.Question],
    table: datasets.PassageTable,
  ) -> Iterator[records.Question]:
    """Yields the kept questions again, their passages with texts.

    For a source whose passages are ids.  Passages that the corpus does not have
    are counted and left out, but for the positives of dev; a training question
    that has no positive left is dropped.  Recomputes `gold`.

    Args:
      written: the questions, as this object has yielded them.
      table: the corpus.
    """
    counts = self._counts
    counts |= dict.fromkeys((*_COUNTS_BY_ID, "positives"), 0)
    self.gold.clear()
    train = self._split == "train"
    for question in gold_passages.with_texts(written, table):
      full = dataclasses.replace(
        question,
        positives=tuple(p for p in question.positives if p.text or not train),
        hard_negatives=tuple(p for p in question.hard_negatives if p.text),
      )
      missing = [p for p in question.positives if not p.text]
      counts["positives_not_in_corpus"] += len(missing)
      counts["negatives_not_in_corpus"] += len(question.hard_negatives) - len(
        full.hard_negatives
      )
      if train and not full.positives:
        counts["kept"] -= 1
        counts["without_positives_in_corpus"] += 1
        counts["without_answers"] -= not full.answers
        continue
      counts["positives"] += len(full.positives)
      self.gold.extend(map(gold_passages.Gold.of, full.positives))
      yield full
    if not counts["kept"]:
      raise errors.InputError(
        f"{self.source.where}: no questions are left for {self._split}: none of"
        f" their {counts['positives_not_in_corpus']} positive passages"
        f" ({', '.join(p.id for p in missing[:3])}, ...) is in the corpus: its"
        " ids are those of another one"
      )

  def _not_read(self) -> str:
    """The fields of the file that are not read, for messages."""
    names = [name for name in self._notes.unread if not name.startswith("ctx ")]
    return f"; other fields: {', '.join(sorted(names)[:9])}" if names else ""

  def warn(self, counts: Mapping[str, int]) -> None:
    """Warns about fields that are missing in all rows.

    Args:
      counts: counts of `gold_passages.compare`, of this source.
    """
    kept, positives = self._counts["kept"], self._counts["positives"]
    if self._counts["without_answers"] == kept:
      logging.warning(
        "prepare: %s: no question has an answer, so passages are not"
        " searched for answers; they are read from %s%s",
        self.source.where,
        " or ".join(json_records.ANSWERS),
        self._not_read(),
      )
    if not positives:
      return
    nameless = counts[f"{self._split}_gold_without_id"]
    if nameless == positives:
      others = sorted(n[4:] for n in self._notes.unread if n.startswith("ctx "))
      logging.warning(
        "prepare: %s: no positive passage has an id: ids are read from %s%s",
        self.source.where,
        ", ".join(json_records.IDS),
        f"; other fields: {', '.join(others[:9])}" if others else "",
      )
    elif counts[f"{self._split}_gold_not_in_corpus"] == positives - nameless:
      logging.warning(
        "prepare: %s: none of the %d ids of positive passages (%s, ...) is in"
        " the corpus: it is another corpus, or its ids are different",
        self.source.where,
        positives - nameless,
        ", ".join(list(dict.fromkeys(g.id for g in self.gold if g.id))[:3]),
      )
    if empty := self._counts["empty_positives"]:
      logging.warning(
        "prepare: %s: %d of %d positive passages have no text",
        self.source.where,
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
