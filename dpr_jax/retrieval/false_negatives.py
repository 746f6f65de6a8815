"""Measures how many candidates for hard negatives contain an answer.

Without the answers, such passages would be trained on as negatives.  Here they
are left out, and counted: for the best candidates of some questions, as the
filters choose them and with other relative margins in place of theirs.
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import logging

from dpr_jax.retrieval import negative_filters

MARGINS = (None, 0.0, 0.05, 0.1)  # relative margins that are compared
_QUESTIONS = 1000  # questions measured per split, evenly spaced
_RANKS = (1, 5)  # numbers of best candidates, besides all that are kept


@dataclasses.dataclass(frozen=True)
class Measured:
  """Counts per choice of filters, filled by `add`.

  Attributes:
    filters: the filters by name: first those of the config, then the same with
      each of `MARGINS` as their only margin.
    numbers: numbers of the questions to measure.
    counts: by (name, number of best candidates): [candidates, with an answer].
    seen: "questions", and those whose "positives" have a score.
  """

  filters: dict[str, negative_filters.Filters]
  numbers: frozenset[int]
  counts: dict[tuple[str, int], list[int]]
  seen: collections.Counter

  @classmethod
  def of(cls, filters: negative_filters.Filters, questions: int) -> "Measured":
    """Nothing measured yet.

    Args:
      filters: those that are mined with.
      questions: number of questions.
    """
    spaced = np.linspace(0, questions - 1, min(questions, _QUESTIONS))
    others = (
      dataclasses.replace(filters, absolute_margin=None, relative_margin=margin)
      for margin in MARGINS
    )
    by_name = {_margins(each): each for each in (filters, *others)}
    ranks = sorted({*(n for n in _RANKS if n < filters.keep), filters.keep})
    return cls(
      by_name,
      frozenset(spaced.astype(int).tolist()),
      {(name, most): [0, 0] for name in by_name for most in ranks},
      collections.Counter(),
    )

  def wants(self, number: int) -> bool:
    """Whether the question of this number is measured."""
    return number in self.numbers

  def add(
    self,
    hits: negative_filters.Hits,
    place: int,
    excluded: Callable[[Sequence[int]], list[tuple[bool, bool]]],
  ) -> None:
    """Counts the candidates of one question.

    Args:
      hits: hits of several questions.
      place: place of the question among them.
      excluded: function from rows to (has an answer, is a positive) of each.
    """
    own = hits.part(place, place + 1)
    self.seen["questions"] += 1
    self.seen["positives"] += int(not np.isnan(own.positives[0]))
    known: dict[int, tuple[bool, bool]] = {}
    for name, filters in self.filters.items():
      answers: list[bool] = []  # of the best candidates that are no positive
      rows = own.rows[0][filters.passed(own)[0]].tolist()
      for start in range(0, len(rows), filters.keep):
        if len(answers) >= filters.keep:
          break
        block = rows[start : start + filters.keep]
        new = [row for row in block if row not in known]
        known.update(zip(new, excluded(new), strict=True))
        answers += [known[row][0] for row in block if not known[row][1]]
      for (other, most), count in self.counts.items():
        if other == name:
          count[0] += len(answers[:most])
          count[1] += sum(answers[:most])

  def plain(self) -> dict[str, Any]:
    """The counts for a manifest."""
    return {
      "questions": self.seen["questions"],
      "questions_with_positive_score": self.seen["positives"],
      "best": [
        {
          "filters": name,
          "passages": most,
          "candidates": candidates,
          "with_answer": answers,
        }
        for (name, most), (candidates, answers) in self.counts.items()
      ],
    }

  def log(self, label: str) -> None:
    """Logs one line per choice of filters."""
    questions = self.seen["questions"]
    if not questions:
      return
    logging.info(
      "%s: candidates that contain an answer (left out), of %d questions:",
      label,
      questions,
    )
    for number, name in enumerate(self.filters):
      parts, last = [], 0.0
      for (other, most), (candidates, answers) in self.counts.items():
        if other == name:
          share = 100 * answers / candidates if candidates else 0.0
          parts.append(f"{share:.1f} % of the best {most}")
          last = candidates / questions
      logging.info(
        "%s: %s%s: %s; %.1f candidates per question",
        label,
        name,
        "" if number else " (as set)",
        ", ".join(parts),
        last,
      )


def _margins(filters: negative_filters.Filters) -> str:
  """The margins of filters in words."""
  margins = {
    "absolute": filters.absolute_margin,
    "relative": filters.relative_margin,
  }
  named = [f"{k} margin {v:g}" for k, v in margins.items() if v is not None]
  return " and ".join(named) or "no margin"
