"""Two methods on the same questions: is the difference more than chance?

In come the first ranks of two methods, question by question, out comes
`evaluation/<questions>.<one>-vs-<other>.json`: exact McNemar tests of what is
found among the first k, a paired permutation test of the mean reciprocal rank,
and every question that one of them finds and the other misses.
"""

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import rich.table

RESAMPLES = 9999
_LEVEL = 0.95
# The smallest p of a two-sided test: one of as many orders, in either tail.
FLOOR = 2 / (RESAMPLES + 1)
NOTE = (
  f"p: McNemar's exact test of top-k, permutation test of the reciprocal rank"
  f" ({RESAMPLES:,} resamples: never below {FLOOR:.4f}); not corrected for"
  " several tests"
)

Rank = int | None  # from 0; None where nothing was found


def mcnemar(
  one: Sequence[bool] | np.ndarray, other: Sequence[bool] | np.ndarray
) -> dict[str, Any]:
  """Exact McNemar test of paired hits and misses, two-sided.

  Only questions that exactly one of the two finds say anything: were both as
  good, either would have found half of them.
  """
  import scipy.stats  # takes a second, and few evaluations compare

  one, other = np.asarray(one, bool), np.asarray(other, bool)
  only_one = int(np.sum(one & ~other))
  only_other = int(np.sum(other & ~one))
  apart = only_one + only_other
  found = scipy.stats.binomtest(only_one, apart).pvalue if apart else 1.0
  return {
    "one": float(np.mean(one)),
    "other": float(np.mean(other)),
    "difference": float(np.mean(one) - np.mean(other)),
    "only_one": only_one,
    "only_other": only_other,
    "p": float(found),
  }


def permutation(
  one: Sequence[float] | np.ndarray,
  other: Sequence[float] | np.ndarray,
  seed: int = 0,
) -> dict[str, Any]:
  """Paired permutation test of a difference of means, two-sided.

  Under the null hypothesis a question's two values might as well be swapped.
  The interval is a bootstrap over questions, at 95 %.  With so few questions
  that all swaps can be tried, p is exact; else it is at least `FLOOR`.
  """
  one, other = np.asarray(one, float), np.asarray(other, float)
  difference = one - other
  found = {
    "one": float(np.mean(one)),
    "other": float(np.mean(other)),
    "difference": float(np.mean(difference)),
  }
  if not np.any(difference) or len(difference) < 2:
    return {**found, "p": 1.0, "interval": 2 * [found["difference"]]}
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
    **found,
    "p": float(test.pvalue),
    "interval": [float(np.percentile(means, p)) for p in (tail, 100 - tail)],
  }


def compare(
  methods: tuple[str, str],
  answer: tuple[Sequence[Rank], Sequence[Rank]],
  gold: tuple[Sequence[Rank], Sequence[Rank]],
  ks: Sequence[int],
) -> dict[str, Any]:
  """Tests of everything that is measured of two methods.

  Args:
    methods: their names.
    answer: rank of the first passage with an answer, of the same questions.
    gold: of the first positive passage, of those that have one.
    ks: numbers of passages looked at.
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
  """Questions with an answer in the first k of one method alone.

  Args:
    questions: objects with "question" and "answers", in order.
    answer: as of `compare`.
    k: passages looked at.

  Returns:
    "only_one" and "only_other": {"row", "question", "answers", "rank_one",
    "rank_other"}, ranks from 1, null where there is no hit at all.
  """
  found: dict[str, list[dict[str, Any]]] = {"only_one": [], "only_other": []}
  for row, (entry, one, other) in enumerate(
    zip(questions, *answer, strict=True)
  ):
    if _within(one, k) != _within(other, k):
      found["only_one" if _within(one, k) else "only_other"].append(
        {
          "row": row,
          "question": entry["question"],
          "answers": entry["answers"],
          "rank_one": None if one is None else one + 1,
          "rank_other": None if other is None else other + 1,
        }
      )
  return found


def table(report: Mapping[str, Any]) -> rich.table.Table:
  """The tests of a comparison, for people."""
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
  """Beside `evaluation/<questions>.json`."""
  return output.with_name(f"{output.stem}.{methods[0]}-vs-{methods[1]}.json")


def _within(rank: Rank, k: int) -> bool:
  return rank is not None and rank < k


def _reciprocal(rank: Rank) -> float:
  return 0.0 if rank is None else 1 / (rank + 1)
