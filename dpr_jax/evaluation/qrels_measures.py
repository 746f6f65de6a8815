"""Computes measures over judged passages (qrels): nDCG, recall, MRR, MAP.

Input: a TREC run and the grades of passages.  Output: the measures as
ir-measures computes them, and the number of questions.  Three rules are applied
first:

  * A passage's rank is its position in the run.  trec_eval sorts equal scores
    by id, descending, for some measures and not for others; here scores are
    derived from ranks, so that all measures use the same order.
  * The means are over the questions that were both asked and judged.  A
    question without hits counts as 0.  Judged passages that the corpus does not
    have, which no method can find, are ignored.  With `every`, all judged
    questions and passages count.
  * With `drop_self`, a hit with the question's own id is dropped: in ArguAna
    and Quora the questions are passages too.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence

import ir_measures
from ir_measures import AP, RR, R, nDCG

from dpr_jax.core import errors
from dpr_jax.data import beir_files, records
from dpr_jax.evaluation import trec_runs

GOLD = "gold"  # in place of a file: the questions' own positive passages
JUDGED = ("asked", "all")  # values of `--judged`: which questions count
MEASURES = (nDCG @ 10, R @ 20, R @ 100, RR @ 10, AP @ 100)


@dataclasses.dataclass(frozen=True)
class Asked:
  """How a run was made, and which of its questions and hits count.

  Attributes:
    questions: ids of all questions asked, including those without hits; None =
      those in the run.
    depth: passages per question in the run; measures with a greater cutoff are
      left out; None = no limit.
    in_corpus: function that tells which ids the corpus has; None = unknown.
    drop_self: drop hits with the id of their question.
    every: also count judged questions that were not asked, and judged passages
      that the corpus does not have.
  """

  questions: Collection[str] | None = None
  depth: int | None = None
  in_corpus: Callable[[list[str]], Sequence[bool]] | None = None
  drop_self: bool = False
  every: bool = False


def of_gold(
  gold: Sequence[Sequence[str]], ids: Sequence[str] = ()
) -> beir_files.Judgements:
  """Positive passages as judgements, of the questions that have some.

  Args:
    gold: ids of each question's positives.
    ids: ids of the questions; () = their row numbers.
  """
  return {
    (ids[row] if ids else str(row)): dict.fromkeys(identifiers, 1)
    for row, identifiers in enumerate(gold)
    if identifiers
  }


def measures(
  path: pathlib.Path, judgements: beir_files.Judgements, asked: Asked
) -> dict[str, float | int]:
  """Means over the questions that count, and counts of the others.

  Args:
    path: path of a run in TREC's format.
    judgements: grades; 0 and below are not relevant.
    asked: how the run was made, and what counts.

  Returns:
    The measures, as fractions, and the counts "judged_questions" (over which
    the measures are means), "judged_not_asked", "asked_not_judged",
    "judged_passages_not_in_corpus" (if the corpus is known) and
    "own_hits_dropped" (with `drop_self`).

  Raises:
    InputError: the run is missing, none of its questions is judged, or two ids
      are the same in a run.
  """
  run = trec_runs.read(path)
  counts: dict[str, float | int] = {}
  if asked.drop_self:
    counts["own_hits_dropped"] = sum(q in found for q, found in run.items())
    run = {q: [p for p in found if p != q] for q, found in run.items()}
  missing: set[str] = set()
  if asked.in_corpus is not None:
    missing = _missing(judgements, asked.in_corpus)
    counts["judged_passages_not_in_corpus"] = len(missing)
  grades = _as_in_runs(path, judgements, set() if asked.every else missing)
  there = run.keys() if asked.questions is None else asked.questions
  there = {records.trec_id(each) for each in there} | run.keys()
  both = there & grades.keys()
  if there and not both:
    raise errors.InputError(
      f"{path}: none of its questions ({', '.join(sorted(there)[:3])}, ...) is"
      f" in the judgements ({', '.join(sorted(judgements)[:3])}, ...): are they"
      " of the same question set?"
    )
  counts["judged_not_asked"] = len(grades) - len(both)
  counts["asked_not_judged"] = len(there) - len(both)
  if not asked.every:
    grades = {question: grades[question] for question in both}
  counts["judged_questions"] = len(grades)
  wanted = [
    each
    for each in MEASURES
    if asked.depth is None or each["cutoff"] <= asked.depth
  ]
  if not wanted:
    return counts
  scored = [
    ir_measures.ScoredDoc(question, passage, -float(rank))
    for question, found in run.items()
    for rank, passage in enumerate(found)
  ]
  means = ir_measures.calc_aggregate(wanted, grades, scored)
  return {str(each): float(means[each]) for each in wanted} | counts


def _missing(
  judgements: beir_files.Judgements,
  in_corpus: Callable[[list[str]], Sequence[bool]],
) -> set[str]:
  """Judged passages that the corpus does not have."""
  passages = sorted({p for found in judgements.values() for p in found})
  there = in_corpus(passages)
  return {p for p, known in zip(passages, there, strict=True) if not known}


def _as_in_runs(
  path: pathlib.Path, judgements: beir_files.Judgements, without: set[str]
) -> dict[str, dict[str, int]]:
  """Judgements with ids as in TREC runs, without the passages `without`."""
  for identifiers in (judgements, {p for j in judgements.values() for p in j}):
    names: dict[str, str] = {}
    for identifier in identifiers:
      other = names.setdefault(records.trec_id(identifier), identifier)
      if other != identifier:
        raise errors.InputError(
          f"{path}: the judgements have {other!r} and {identifier!r}, which are"
          f" both {records.trec_id(other)} in a TREC run: rename one of them"
        )
  return {
    records.trec_id(question): {
      records.trec_id(passage): grade
      for passage, grade in found.items()
      if passage not in without
    }
    for question, found in judgements.items()
  }


def note(measured: Mapping[str, Mapping[str, float | int]]) -> list[str]:
  """Lines to print below a table: counts of the questions of the measures.

  Args:
    measured: results of `measures`, by method; methods with the same counts
      share a line.
  """
  lines: dict[str, list[str]] = {}
  for method, found in measured.items():
    if "judged_questions" not in found:
      continue
    parts = [
      f"{found[key]} {words}"
      for key, words in _WORDS.items()
      if found.get(key) or key == "judged_questions"
    ]
    lines.setdefault("; ".join(parts), []).append(method)
  return [f"{', '.join(methods)}: {said}" for said, methods in lines.items()]


_WORDS = {
  "judged_questions": "questions in the judged measures",
  "judged_not_asked": "judged but not asked",
  "asked_not_judged": "asked but not judged",
  "judged_passages_not_in_corpus": "judged passages not in the corpus",
  "own_hits_dropped": "hits dropped that are the question itself",
}
