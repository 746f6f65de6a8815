"""Writes retrieval results as DPR JSON, as a TREC run, and for Pyserini.

Input: questions with their hits, one by one.  Output: files in the formats of
DPR's, TREC's and (optionally) Pyserini's tools.  Used by `retrieve.retrieve`
and `rerank.rerank`; the hits are not kept in memory.
"""

import collections
import json
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dpr_jax.data import answer_matching, records


class Hit(NamedTuple):
  """One retrieved passage; a higher score is better."""

  id: str
  title: str
  text: str
  score: float


class ResultsWriter:
  """Writes `<name>.<method>.json` and `.trec`, question by question.

  Attributes:
    counts: numbers of questions, hits, questions without a hit, questions
      without answers, hits whose id has white space (written as `_` in a TREC
      run, which cannot have it), and hits that thereby get the id of another
      hit of their question.
    ids: ids of the questions in the run; [] = the questions have no ids.
  """

  def __init__(
    self,
    results: str | os.PathLike,
    run: str | os.PathLike,
    tag: str,
    matcher: answer_matching.AnswerMatcher,
    pyserini: str | os.PathLike | None = None,
  ):
    """Opens the files.

    Args:
      results: path of the JSON file.
      run: path of the TREC run.
      tag: name of the run in the TREC file.
      matcher: finds answers in passages.
      pyserini: path of the file for Pyserini; None = do not write it.
    """
    self.counts = collections.Counter(
      dict.fromkeys(
        (
          "questions",
          "hits",
          "no_hits",
          "no_answers",
          "ids_with_space",
          "ids_alike_in_run",
        ),
        0,
      )
    )
    self._ids: list[str] = []
    self._tag = tag
    self._matcher = matcher
    self._results = open(results, "w", encoding="utf-8", newline="\n")
    self._run = open(run, "w", encoding="utf-8", newline="\n")
    self._results.write("[")
    self._pyserini = None
    if pyserini is not None:
      self._pyserini = open(pyserini, "w", encoding="utf-8", newline="\n")
      self._pyserini.write("{")

  @property
  def ids(self) -> list[str]:
    """Ids of the questions; see the class."""
    rows = map(str, range(len(self._ids)))
    return [] if all(map(str.__eq__, self._ids, rows)) else self._ids

  def __enter__(self) -> "ResultsWriter":
    return self

  def __exit__(self, failed, *_) -> None:
    """Closes the files; after an error they stay incomplete."""
    if failed is None:
      self._results.write("\n]\n")
      self._matcher.warn(f"results of {self._tag}")
    if self._pyserini is not None:
      if failed is None:
        self._pyserini.write("\n}\n")
      self._pyserini.close()
    self._results.close()
    self._run.close()

  def write(
    self,
    question: records.Question,
    rows: Sequence[int],
    hits: Sequence[Hit],
    identifier: str = "",
  ) -> None:
    """Adds the next question.

    Args:
      question: the next of the set, in order.
      rows: corpus row of each hit, the matcher's key for its text.
      hits: hits of the question, best first.
      identifier: id of the question in TREC's and Pyserini's files; "" = use
        its number in the set, from 0.
    """
    number = self.counts["questions"]
    self._ids.append(identifier or str(number))
    identifier = records.trec_id(self._ids[-1])
    texts = [hit.text for hit in hits]
    matches = self._matcher.hits(question.answers, rows, texts, number)
    passages = [
      {
        "id": hit.id,
        "title": hit.title,
        "text": hit.text,
        "score": _score(hit.score),
        "has_answer": match,
      }
      for hit, match in zip(hits, matches, strict=True)
    ]
    entry = {
      "question": question.question,
      "answers": list(question.answers),
      "ctxs": passages,
    }
    self._results.write(",\n" if number else "\n")
    self._results.write(json.dumps(entry, ensure_ascii=False))
    names = {records.trec_id(hit.id) for hit in hits}
    self.counts["ids_alike_in_run"] += len({h.id for h in hits}) - len(names)
    for rank, hit in enumerate(hits, start=1):
      name = records.trec_id(hit.id)
      self.counts["ids_with_space"] += name != hit.id
      self._run.write(
        f"{identifier} Q0 {name} {rank} {_score(hit.score)} {self._tag}\n"
      )
    if self._pyserini is not None:
      self._write_pyserini(identifier, question, hits, matches)
    self.counts["questions"] += 1
    self.counts["hits"] += len(hits)
    self.counts["no_hits"] += not hits
    self.counts["no_answers"] += not question.answers

  def _write_pyserini(
    self,
    identifier: str,
    question: records.Question,
    hits: Sequence[Hit],
    matches: Sequence[bool],
  ) -> None:
    entry = {
      "question": question.question,
      "answers": list(question.answers),
      "contexts": [
        {
          "docid": hit.id,
          "score": _score(hit.score),
          "has_answer": match,
          "text": f"{hit.title}\n{hit.text}",
        }
        for hit, match in zip(hits, matches, strict=True)
      ],
    }
    self._pyserini.write(",\n" if self.counts["questions"] else "\n")
    self._pyserini.write(
      f"{json.dumps(identifier)}: {json.dumps(entry, ensure_ascii=False)}"
    )


def _score(score: float) -> str:
  """The shortest digits that give the same float32."""
  return str(np.float32(score))
