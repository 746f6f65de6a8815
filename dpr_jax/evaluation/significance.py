"""Tests whether the difference of two methods is statistically significant.

Input: the first ranks of two methods on the same questions.  Output:
`evaluation/<questions>.<one>-vs-<other>.json` with exact McNemar tests of top-k
accuracy, a paired permutation test of the mean reciprocal rank, and all
questions that only one of the methods answers.
"""

import math
import pathlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import rich.table

RESAMPLES = 9999  # permutations
_LEVEL = 0.95  # confidence level of all intervals
_Z = statistics.NormalDist().inv_cdf((1 + _LEVEL) / 2)
# Smallest two-sided p of a permutation test: 1 of RESAMPLES + 1 in each tail.
FLOOR = 2 / (RESAMPLES + 1)
NOTE = (
  f"p: McNemar's exact test of top-k, permutation test of the reciprocal rank"
  f" ({RESAMPLES:,} resamples: never below {FLOOR:.4f}); not corrected for"
  " multiple testing"
)

SURE = 0.05  # a smaller p is called a difference
# What `outcome` returns.
BETTER, WORSE, EVEN = "better", "worse", "even"
# Test of `compare` that decides which of two methods is better, of answers, and
# where no question has an answer, of gold passages: unlike top-k it counts
# every change of a rank, and one test needs no correction for several.
DECISIVE = ("reciprocal_rank", "gold_reciprocal_rank")

Rank = int | None  # from 0; None = no hit


def share_interval(hits: int, questions: int) -> tuple[float, float]:
  """Wilson's score interval of a share of questions, at 95 %.

  Args:
    hits: questions that count.
    questions: all questions, at least one.

  Raises:
    ValueError: there are no questions.
  """
  if questions < 1:
    raise ValueError("an interval of no questions is not defined")
  share, square = hits / questions, _Z * _Z
  middle = (share + square / (2 * questions)) / (1 + square / questions)
  variance = share * (1 - share) / questions + square / (4 * questions**2)
  half = _Z * math.sqrt(variance) / (1 + square / questions)
  return max(0.0, middle - half), min(1.0, middle + half)


def mcnemar(
  one: Sequence[bool] | np.ndarray, other: Sequence[bool] | np.ndarray
) -> dict[str, Any]:
  """Exact McNemar test of paired hits and misses, two-sided.

  Only questions with exactly one hit matter: under the null hypothesis each
  method has half of these hits, a binomial distribution.  The interval of the
  difference, at 95 %, is Wald's with one hit added to either method's own
  (Bonett and Price 2012), which also holds where no question differs.
  """
  import scipy.stats  # takes a second, and is rarely needed

  one, other = np.asarray(one, bool), np.asarray(other, bool)
  only_one = int(np.sum(one & ~other))
  only_other = int(np.sum(other & ~one))
  apart = only_one + only_other
  p_value = scipy.stats.binomtest(only_one, apart).pvalue if apart else 1.0
  return {
    "one": float(np.mean(one)),
    "other": float(np.mean(other)),
    "difference": float(np.mean(one) - np.mean(other)),
    "only_one": only_one,
    "only_other": only_other,
    "p": float(p_value),
    "interval": _paired_interval(only_one, only_other, len(one)),
  }


def _paired_interval(only_one: int, only_other: int, total: int) -> list[float]:
  first, second = (only_one + 1) / (total + 2), (only_other + 1) / (total + 2)
  middle = first - second
  variance = (first + second - middle**2) / (total + 2)
  half = _Z * math.sqrt(max(0.0, variance))
  return [max(-1.0, middle - half), min(1.0, middle + half)]


def permutation(
  one: Sequence[float] | np.ndarray,
  other: Sequence[float] | np.ndarray,
  seed: int = 0,
) -> dict[str, Any]:
  """Paired permutation test of a difference of means, two-sided.

  Under the null hypothesis the two values of a question can be swapped.  The
  interval is a bootstrap over questions, at 95 %.  p is exact if there are so
  few questions that all swaps can be tried; otherwise it is at least `FLOOR`.
  """
  one, other = np.asarray(one, float), np.asarray(other, float)
  difference = one - other
  summary = {
    "one": float(np.mean(one)),
    "other": float(np.mean(other)),
    "difference": float(np.mean(difference)),
  }
  if not np.any(difference) or len(difference) < 2:
    return {**summary, "p": 1.0, "interval": 2 * [summary["difference"]]}
  import scipy.stats

  test = scipy.stats.permutation_test(
    (one, other),
    lambda a, b, axis: np.mean(a, axis=axis) - np.mean(b, axis=axis),
    permutation_type="samples",
    vectorized=True,
    n_resamples=RESAMPLES,
    batch=1000,
    rng=np.random.default_rng(seed),
  )
  generator = np.random.default_rng(seed + 1)
  means = [
    float(np.mean(generator.choice(difference, len(difference))))
    for _ in range(2000)
  ]
  tail = 100 * (1 - _LEVEL) / 2
  return {
    **summary,
    "p": float(test.pvalue),
    "interval": [float(np.percentile(means, p)) for p in (tail, 100 - tail)],
  }


def outcome(test: Mapping[str, Any]) -> str:
  """Of the first against the second in a test: `BETTER`, `WORSE` or `EVEN`."""
  if test["p"] >= SURE:
    return EVEN
  return BETTER if test["difference"] > 0 else WORSE


def decisive(report: Mapping[str, Any]) -> str:
  """Name of the test of `compare` that decides; see `DECISIVE`.

  Raises:
    ValueError: the methods have neither answers nor gold passages.
  """
  for name in DECISIVE:
    if name in report["tests"]:
      return name
  raise ValueError("a comparison without any rank has no verdict")


def compare(
  methods: tuple[str, str],
  answer: tuple[Sequence[Rank], Sequence[Rank]],
  gold: tuple[Sequence[Rank], Sequence[Rank]],
  ks: Sequence[int],
) -> dict[str, Any]:
  """Tests of all measures of two methods.

  Args:
    methods: names of the methods.
    answer: ranks of the first passage with an answer, per method; both of the
      same questions.
    gold: ranks of the first positive passage, of questions that have some.
    ks: values of k for top-k.
  """
  tests: dict[str, Any] = {}
  for prefix, ranks in (("", answer), ("gold_", gold)):
    if not len(ranks[0]):
      continue
    for k in ks:
      tests[f"{prefix}top{k}"] = mcnemar(
        *([_within(rank, k) for rank in each] for each in ranks)
      )
    tests[f"{prefix}reciprocal_rank"] = permutation(
      *([_reciprocal(rank) for rank in each] for each in ranks)
    )
  return {
    "one": methods[0],
    "other": methods[1],
    "questions": len(answer[0]),
    "tests": tests,
  }


def disagreements(
  questions: Iterable[Mapping[str, Any]],
  answer: tuple[Sequence[Rank], Sequence[Rank]],
  k: int,
) -> dict[str, list[dict[str, Any]]]:
  """Questions with an answer in the first k passages of only one method.

  Args:
    questions: objects with "question" and "answers", in order.
    answer: as in `compare`.
    k: number of passages.

  Returns:
    "only_one" and "only_other": {"row", "question", "answers", "rank_one",
    "rank_other"}, ranks from 1, null where there is no hit at all.
  """
  rows: dict[str, list[dict[str, Any]]] = {"only_one": [], "only_other": []}
  for row, (entry, one, other) in enumerate(
    zip(questions, *answer, strict=True)
  ):
    if _within(one, k) != _within(other, k):
      rows["only_one" if _within(one, k) else "only_other"].append(
        {
          "row": row,
          "question": entry["question"],
          "answers": entry["answers"],
          "rank_one": None if one is None else one + 1,
          "rank_other": None if other is None else other + 1,
        }
      )
  return rows


def table(report: Mapping[str, Any]) -> rich.table.Table:
  """A table of the tests of a comparison."""
  one, other = report["one"], report["other"]
  shown = rich.table.Table(
    title=f"{one} against {other}, {report['questions']} questions",
    title_justify="left",
  )
  shown.add_column("", no_wrap=True)
  for name in (
    one,
    other,
    "difference",
    f"only {one}",
    f"only {other}",
    "p",
  ):
    shown.add_column(name, justify="right", no_wrap=True)
  for name, test in report["tests"].items():
    shown.add_row(
      name.replace("_", " "),
      *(f"{100 * test[key]:.1f}" for key in ("one", "other")),
      f"{100 * test['difference']:+.1f}",
      str(test.get("only_one", "")),
      str(test.get("only_other", "")),
      f"{test['p']:.2g}",
    )
  return shown


def file_of(output: pathlib.Path, methods: tuple[str, str]) -> pathlib.Path:
  """Path of the comparison, in the folder of `evaluation/<questions>.json`."""
  return output.with_name(f"{output.stem}.{methods[0]}-vs-{methods[1]}.json")


def _within(rank: Rank, k: int) -> bool:
  return rank is not None and rank < k


def _reciprocal(rank: Rank) -> float:
  return 0.0 if rank is None else 1 / (rank + 1)
