"""The questions of a report: ranks of all, passages of those that differ most.

Input: the results of several systems.  Output: a JSON-able value that the
page's script searches and shows.  All questions are listed, with their ranks;
passages are included for the questions where the main system and its reference
differ most, up to `MOST_QUESTIONS` and `MOST_BYTES`, so that the file stays
small enough for a browser.
"""

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import answer_matching
from dpr_jax.evaluation import answer_scores
from dpr_jax.evaluation.ranked_results import Ranks, read_results
from dpr_jax.reporting.html import clean
from dpr_jax.reporting.runs import Run, System
from dpr_jax.retrieval import text_analysis

MOST_QUESTIONS = 500
MOST_BYTES = 6_000_000  # of passages, as JSON
_TOP = 3  # passages of each system


@dataclasses.dataclass
class Questions:
  """What was read of the questions.

  Attributes:
    value: for the page's script; {} = no questions.
    shown: number of questions with passages.
    fingerprints: of the questions and their answers, by the label of a system;
      systems with the same one can be compared.
  """

  value: dict[str, Any]
  shown: int
  fingerprints: dict[str, str]


def most_different(one: Ranks, other: Ranks | None = None) -> list[int]:
  """Rows of all questions, the largest difference in reciprocal rank first.

  Wins come before losses of the same size, and equal differences in the order
  of the file.

  Args:
    one: ranks of the main system.
    other: ranks of its reference; None = there is none, and the order is that
      of the file.
  """
  rows = range(len(one.answer))
  if other is None or len(other.answer) != len(one.answer):
    return list(rows)
  first, second = _ranks(one), _ranks(other)

  def key(row: int) -> tuple[float, int]:
    ones, others = (
      0.0 if ranks[row] is None else 1 / (ranks[row] + 1)
      for ranks in (first, second)
    )
    return -abs(ones - others), ones < others

  return sorted(rows, key=key)


def _ranks(ranks: Ranks) -> list[int | None]:
  """Ranks of answers, or of gold passages where no question has answers."""
  whole = len(ranks.gold) == len(ranks.answer)
  return ranks.gold if whole and not ranks.with_answers else ranks.answer


def read(
  run: Run, systems: Sequence[System], order: Sequence[int]
) -> Questions:
  """Reads the results of all systems once more, for texts and passages.

  Args:
    run: the run, for its answers and its BM25 settings.
    systems: the systems, the main one first.
    order: rows of questions, those whose passages are wanted first.
  """
  wanted = frozenset(order[:MOST_QUESTIONS])
  texts: list[tuple[str, list[str]]] = []
  entries: dict[str, dict[int, Mapping[str, Any]]] = {}
  fingerprints = {}
  for system in systems:
    digest = hashlib.sha256()
    kept = entries[system.label] = {}
    for row, entry in enumerate(read_results(system.path)):
      question = str(entry.get("question", ""))
      answers = [str(answer) for answer in entry.get("answers") or ()]
      digest.update(ascii([question, sorted(answers)]).encode())
      if system is systems[0]:
        texts.append((question, answers))
      if row in wanted:
        kept[row] = entry
    fingerprints[system.label] = digest.hexdigest()
  same = [
    each
    for each in systems
    if fingerprints[each.label] == fingerprints[systems[0].label]
  ]
  finder = _Finder(run, same, entries, texts)
  details, used = {}, 0
  for row in order[:MOST_QUESTIONS]:
    if used > MOST_BYTES:
      break
    details[row] = finder.hits(row)
    used = finder.bytes
  ranks = [_ranks(each.ranks) for each in same]
  depths = [each.ranks.depth for each in same]
  read_answers = _predictions(run, systems[0].method, len(texts))
  value = {
    "systems": [each.label for each in same],
    "depths": depths,
    # A miss beyond a system's depth is not known to be one.
    "ks": [k for k in run.ks if k <= min(depths)] or [1],
    "questions": [
      [
        clean(question),
        [clean(answer) for answer in answers],
        [0 if of[row] is None else of[row] + 1 for of in ranks],
        read_answers[row] if read_answers else None,
      ]
      for row, (question, answers) in enumerate(texts)
    ],
    "order": list(order),
    "passages": finder.passages,
    "hits": details,
  }
  return Questions(value, len(details), fingerprints)


class _Finder:
  """Hits of single questions; every passage is kept once."""

  def __init__(
    self,
    run: Run,
    systems: Sequence[System],
    entries: Mapping[str, Mapping[int, Mapping[str, Any]]],
    texts: Sequence[tuple[str, list[str]]],
  ):
    self._systems, self._entries, self._texts = systems, entries, texts
    self._match = run.match
    self._gold = systems[0].sidecar.get("gold", [])
    bm25 = run.manifests.get("bm25", {}).get("config", {}).get("bm25", {})
    self._splitter = text_analysis.Splitter(
      stopwords=bm25.get("stopwords", "en"),
      stemmer=bm25.get("stemmer", "english"),
    )
    self._numbers: dict[tuple[str, str], int] = {}
    self.passages: list[list[str]] = []
    self.bytes = 0

  def hits(self, row: int) -> list[list[Any]]:
    """Passages of a question: [number, answers, words, gold, places].

    "answers" are (start, end) in UTF-16 units of the text, as a browser counts;
    "words" those that the question shares, as BM25 counts them; "places" is
    [rank from 1, score] in each system, null where it did not retrieve it.
    """
    question, answers = self._texts[row]
    asked = set(self._splitter.words(question))
    places: dict[tuple[str, str], list[Any]] = {}
    first: dict[tuple[str, str], Mapping[str, Any]] = {}
    for number, system in enumerate(self._systems):
      hits = self._entries[system.label].get(row, {}).get("ctxs", [])
      top = {*range(_TOP), _first_hit(hits)}
      for rank, hit in enumerate(hits):
        key = str(hit.get("id", "")), str(hit["text"])
        places.setdefault(key, [None] * len(self._systems))[number] = [
          rank + 1,
          _score(hit.get("score")),
        ]
        if rank in top:
          first.setdefault(key, hit)
    gold = set(self._gold[row]) if row < len(self._gold) else set()
    return [
      [
        self._number(key, hit),
        list(_spans(answers, clean(key[1]), self._match)),
        sorted(asked & set(self._splitter.words(f"{_title(hit)} {key[1]}"))),
        int(key[0] in gold),
        places[key],
      ]
      for key, hit in first.items()
    ]

  def _number(self, key: tuple[str, str], hit: Mapping[str, Any]) -> int:
    if key not in self._numbers:
      self._numbers[key] = len(self.passages)
      passage = [clean(part) for part in (key[0], _title(hit), key[1])]
      self.passages.append(passage)
      self.bytes += sum(len(ascii(part)) for part in passage)
    return self._numbers[key]


def _title(hit: Mapping[str, Any]) -> str:
  return str(hit.get("title") or "")


def _first_hit(hits: Sequence[Mapping[str, Any]]) -> int | None:
  return next(
    (rank for rank, hit in enumerate(hits) if hit.get("has_answer")), None
  )


def _score(score: Any) -> float | None:
  try:
    rounded = round(float(score), 4)
  except (TypeError, ValueError):
    return None
  return rounded if math.isfinite(rounded) else None  # JSON has no others


def _spans(
  answers: Sequence[str], passage: str, match: str
) -> Iterator[tuple[int, int]]:
  """Answers in a passage, not overlapping, in UTF-16 units."""
  end = units = 0  # the same place, in characters and in units
  spans = answer_matching.answer_spans(answers, passage, match=match)
  for start, stop in spans:
    start = max(start, end)
    if start < stop:
      first = units + _units(passage[end:start])
      end, units = stop, first + _units(passage[start:stop])
      yield first, units


def _units(passage: str) -> int:
  return len(passage.encode("utf-16-le")) // 2


def _predictions(run: Run, method: str, total: int) -> list[list[Any]] | None:
  """[the reader's answer, 1 if it is correct] of each question, if read."""
  path = run.answers.get(method)
  rows = workdir_lib.read_json(path) if path is not None else []
  if len(rows) != total:
    return None
  return [
    [clean(str(row["prediction"])), int(right or 0)]
    for row, right in zip(rows, answer_scores.exact_matches(rows), strict=True)
  ]
