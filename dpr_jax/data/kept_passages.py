"""Selects the passages of a corpus that `prepare` keeps; counts the others.

Input: a `PassageSource` and the gold passages of the kept questions.  Output:
the passages to store, the counts of the manifest, and warnings.
"""

from collections.abc import Iterator, Sequence

from absl import logging

from dpr_jax.core import errors
from dpr_jax.data import (
  gold_passages,
  kept_rows,
  kept_splits,
  passage_sources,
  records,
  same_passages,
  tsv_corpus,
)

_NAMED = 20  # ids in a warning


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
    source: passage_sources.PassageSource,
    limit: int,
    gold: Sequence[gold_passages.Gold],
    reading: passage_sources.Reading,
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
    self.quoting = reading.quoting
    self._auto = reading.quoting == "auto"
    self._reading = reading
    self._source = source
    self._limit = limit
    self._gold = gold
    self._gold_ids = {one.id for one in gold if one.id}
    self.finder = same_passages.Finder(one.same for one in gold)

  def __iter__(self) -> Iterator[records.Passage]:
    if self._source.table is None:
      self.quoting = ""
    elif self._auto:
      self.quoting = tsv_corpus.choose(self._source.table)
      self._reading.quoting = self.quoting
    free = self._places_for_others()
    counts = self.counts
    for passage in self._source.read(self._reading):
      counts["passages_read"] += 1
      if free is not None and passage.id not in self._gold_ids:
        if not free:
          counts["passages_beyond_max"] += 1
          continue
        free -= 1
      counts["passages"] += 1
      counts["passages_without_text"] += kept_rows.is_empty(passage)
      self.finder.see(passage)
      yield passage
    counts["passages_with_tab_and_line_break"] = len(self._reading.swallowing)
    for reason, count in self._reading.counts.items():
      counts[f"passages_{reason}"] = count
    if not counts["passages_read"]:
      raise errors.InputError(
        f"{self._source.where}: the corpus has a header but no passages"
      )

  def manifest(self) -> dict[str, str]:
    """Where the passages come from, for the manifest."""
    return {"from": self._source.where, "format": self._source.format}

  def log(self) -> None:
    """Logs the format of the corpus, and all counts above 0."""
    source = self._source
    kept_splits.log_counts("passages", source.format, source.where, self.counts)

  def warn(self) -> None:
    """Warns where the file may have been read with the wrong quoting."""
    if self._auto and self.quoting == "none":
      logging.warning(
        "prepare: %s is read without quoting (as csv it would lose rows):"
        " quotation marks are part of the texts; set config.data.quoting=csv to"
        " read it as csv",
        self._source.where,
      )
    if ids := self._reading.swallowing:
      logging.warning(
        "prepare: %s: %d passages contain both a tab and a line break, which"
        " may be an unclosed quotation mark that swallowed the next rows: %s%s;"
        " if quotation marks are plain text in this file, set"
        " config.data.quoting=none",
        self._source.where,
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
    again = passage_sources.Reading(
      self._reading.quoting, self._reading.title_line
    )
    for passage in self._source.read(again):
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
        f" {len(gold_ids)} different positive passages in"
        f" {self._source.where}, which must all be kept: set it to at least"
        f" {len(gold_ids)}, or lower config.data.max_train and max_dev"
      )
    return self._limit - len(gold_ids)
