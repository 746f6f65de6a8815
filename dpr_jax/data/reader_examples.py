"""Makes the reader's training examples: questions, positives and negatives.

Input: the entries of a results file in DPR's format, or the questions of a file
in SQuAD's format.  Output: `Example`s, which refer to rows of a `Passages`
store where every passage is tokenized once.  A positive has the token spans of
its answers, found with the tokenizer's offsets; questions that cannot be used
are counted by reason.
"""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Int

from dpr_jax.core import errors
from dpr_jax.data import (
  answer_matching,
  reader_tokenization,
  records,
  squad_files,
)

Spans = tuple[tuple[int, int], ...]
_NO_TITLE = np.zeros(0, np.int32)


@dataclasses.dataclass(frozen=True, slots=True)
class Positive:
  """A passage that answers the question.

  Attributes:
    row: row of the passage in the store.
    spans: (first, last) token of each answer.
  """

  row: int
  spans: Spans


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
  """A training question.

  Attributes:
    question: token ids, see `ReaderTokenizer.question_ids`.
    positives: positives, of which one is drawn per epoch.
    negatives: rows of passages without an answer, best first.
  """

  question: Int[np.ndarray, " tokens"]
  positives: tuple[Positive, ...]
  negatives: Int[np.ndarray, " negatives"]


class Passages:
  """A store of distinct passages as token ids, by row."""

  def __init__(self, tokenizer: reader_tokenization.ReaderTokenizer):
    """An empty store."""
    self._tokenizer = tokenizer
    self._rows: dict[tuple[str, str, str], int] = {}
    self._titles: dict[str, np.ndarray] = {"": _NO_TITLE}
    self._waiting: list[records.Passage] = []
    self._ids: list[np.ndarray] = []
    self._title_of: list[str] = []

  def __len__(self) -> int:
    return len(self._rows)

  def add(self, passage: records.Passage) -> int:
    """The passage's row; equal passages share one."""
    key = (passage.id, passage.title, passage.text)
    row = self._rows.setdefault(key, len(self._rows))
    if row == len(self._ids) + len(self._waiting):
      self._waiting.append(passage)
      if len(self._waiting) == 4096:
        self._tokenize()
    return row

  def _tokenize(self) -> None:
    texts = [passage.text for passage in self._waiting]
    self._ids += [tokens.ids for tokens in self._tokenizer.tokenize(texts)]
    self._title_of += [passage.title for passage in self._waiting]
    new = sorted({p.title for p in self._waiting} - self._titles.keys())
    for title, tokens in zip(new, self._tokenizer.tokenize(new), strict=True):
      self._titles[title] = tokens.ids
    self._waiting.clear()

  def ids(self, row: int) -> Int[np.ndarray, " tokens"]:
    """Token ids of a passage's text."""
    if row >= len(self._ids):
      self._tokenize()
    return self._ids[row]

  def title(self, row: int) -> Int[np.ndarray, " tokens"]:
    """Token ids of a passage's title."""
    if row >= len(self._ids):
      self._tokenize()
    return self._titles[self._title_of[row]]


@dataclasses.dataclass
class Examples:
  """Examples, their passages, and counts of the questions.

  Attributes:
    tokenizer: tokenizer of questions and passages.
    passages: store of the passages.
    examples: the examples of usable questions.
    counts: numbers of questions, by reason; see `log`.
  """

  tokenizer: reader_tokenization.ReaderTokenizer
  passages: Passages
  examples: list[Example]
  counts: collections.Counter

  @classmethod
  def empty(cls, tokenizer: reader_tokenization.ReaderTokenizer) -> "Examples":
    """No examples, and all counts 0."""
    names = ("questions", "without_answers", "without_positive", "unalignable")
    names += ("kept", "questions_cut", "spans_left_out", "positives_windowed")
    counts = collections.Counter(dict.fromkeys(names, 0))
    return cls(tokenizer, Passages(tokenizer), [], counts)

  def add(
    self,
    question: str,
    positives: Sequence[tuple[records.Passage, Sequence[tuple[int, int]]]],
    negatives: Sequence[records.Passage],
    most_spans: int,
  ) -> None:
    """Adds a question, unless none of its answers is found among the tokens.

    Args:
      question: text of the question.
      positives: passages with (start, end) characters of their answers.
      negatives: passages without an answer.
      most_spans: maximum number of spans per positive; later ones are left out.
    """
    tokenizer, counts = self.tokenizer, self.counts
    (ids,) = tokenizer.question_ids([question])
    aligned = []
    texts = [passage.text for passage, _ in positives]
    for (passage, places), tokens in zip(
      positives, tokenizer.tokenize(texts), strict=True
    ):
      located = [tokens.span_of(*place) for place in places]
      spans = list(dict.fromkeys(span for span in located if span is not None))
      row = self.passages.add(passage)
      windows = self.windows(ids, row)
      spans = [
        span for span in spans if any(window.holds(span) for window in windows)
      ]
      counts["spans_left_out"] += len(places) - len(spans[:most_spans])
      counts["positives_windowed"] += len(windows) > 1
      if spans:
        aligned.append(Positive(row, tuple(spans[:most_spans])))
    if not aligned:
      counts["unalignable"] += 1
      return
    counts["kept"] += 1
    counts["questions_cut"] += len(ids) > tokenizer.question_length
    rows = [self.passages.add(passage) for passage in negatives]
    self.examples.append(Example(ids, tuple(aligned), np.array(rows, np.int64)))

  def windows(
    self, question: Int[np.ndarray, " tokens"], row: int
  ) -> list[reader_tokenization.Window]:
    """The windows in which a passage is read with a question."""
    head, _ = self.tokenizer.head(question, self.passages.title(row))
    return self.tokenizer.windows(len(head), len(self.passages.ids(row)))

  def log(self, source: str) -> None:
    """Logs how many questions were kept, and the others by reason.

    Args:
      source: name of the file.

    Raises:
      InputError: no question was kept.
    """
    notes = ", ".join(
      f"{count} {name.replace('_', ' ')}"
      for name, count in self.counts.items()
      if count and name not in ("questions", "kept")
    )
    if not self.examples:
      raise errors.InputError(
        f"{source}: none of {self.counts['questions']} questions can be used"
        f" for training ({notes or 'the file is empty'}): give a file with"
        " answers that occur in its passages"
      )
    logging.info(
      "train-reader: %d questions of %d in %s%s; %d passages",
      self.counts["kept"],
      self.counts["questions"],
      source,
      f" ({notes})" if notes else "",
      len(self.passages),
    )


def from_results(
  entries: Iterable[Mapping[str, Any]],
  tokenizer: reader_tokenization.ReaderTokenizer,
  *,
  golden: Sequence[Sequence[records.Passage]] = (),
  match: str = "string",
  from_top: int = 200,
  most_spans: int = 10,
) -> Examples:
  """Examples from retrieval results.

  A positive contains an answer (by `data/answer_matching.py`).  Three kinds are
  tried in order, and only the first one found is kept: gold passages, retrieved
  or not; other passages with the title of a gold passage; any other passage.

  Args:
    entries: {question, answers, ctxs: [{id, title, text}]}, best first.
    tokenizer: tokenizer of the reader.
    golden: gold passages of each entry; () = unknown.
    match: "string" or "regex".
    from_top: number of passages to use per question.
    most_spans: see `Examples.add`.

  Raises:
    InputError: an entry is malformed; the message names its row.
  """
  examples = Examples.empty(tokenizer)
  counts = examples.counts
  matcher = answer_matching.AnswerMatcher(match=match)
  for row, entry in enumerate(entries):
    counts["questions"] += 1
    try:
      question, answers = entry["question"], entry["answers"]
      passages = [
        records.Passage(str(c["id"]), c.get("title") or "", c["text"])
        for c in entry["ctxs"][:from_top]
      ]
    except (KeyError, TypeError, AttributeError) as error:
      raise errors.InputError(
        f"question {row} of the results: not in DPR's format ({error!r}):"
        " {question, answers, ctxs: [{id, title, text}]}"
      ) from error
    if not answers:
      counts["without_answers"] += 1
      continue
    gold = list(golden[row]) if row < len(golden) else []
    ids = {passage.id for passage in gold if passage.id}
    retrieved = [passage for passage in passages if passage.id not in ids]
    keys = [(passage.id, passage.text) for passage in retrieved]
    is_hit = matcher.hits(answers, keys, [p.text for p in retrieved], row)
    titles = {passage.title for passage in gold} - {""}
    hits = [p for p, hit in zip(retrieved, is_hit, strict=True) if hit]
    kinds = (gold, [p for p in hits if p.title in titles], hits)
    positives = []
    for kind in kinds:
      spans = [
        (p, answer_matching.answer_spans(answers, p.text, match=match))
        for p in kind
      ]
      positives = [(p, places) for p, places in spans if places]
      if positives:
        break
    if not positives:
      counts["without_positive"] += 1
      continue
    negatives = [p for p, hit in zip(retrieved, is_hit, strict=True) if not hit]
    examples.add(question, positives, negatives, most_spans)
  matcher.warn("train-reader")
  return examples


def from_squad(
  questions: Iterable[squad_files.SquadQuestion],
  tokenizer: reader_tokenization.ReaderTokenizer,
  *,
  most_spans: int = 10,
) -> Examples:
  """Examples from SQuAD: a question, its paragraph, and its answers' offsets.

  Negatives are the paragraphs of the same article without an answer; they are
  used if `reader.passages` is more than one.
  """
  examples = Examples.empty(tokenizer)
  matcher = answer_matching.AnswerMatcher()
  questions = list(questions)
  articles: dict[str, dict[str, records.Passage]] = {}
  for one in questions:
    article = articles.setdefault(one.paragraph.id.partition(".")[0], {})
    article[one.paragraph.id] = one.paragraph
  for one in questions:
    examples.counts["questions"] += 1
    if not one.answers:
      examples.counts["without_answers"] += 1
      continue
    places = [
      (start, start + len(answer))
      for start, answer in zip(one.starts, one.answers, strict=True)
    ]
    others = list(articles[one.paragraph.id.partition(".")[0]].values())
    hits = matcher.hits(
      one.answers, [p.id for p in others], [p.text for p in others]
    )
    negatives = [
      passage
      for passage, hit in zip(others, hits, strict=True)
      if not hit and passage.id != one.paragraph.id
    ]
    examples.add(
      one.question,
      [(one.paragraph, sorted(set(places)))],
      negatives,
      most_spans,
    )
  return examples
