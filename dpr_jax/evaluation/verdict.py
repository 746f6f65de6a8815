"""Says whether a training made retrieval better: better, worse, no difference.

`of_ranks` compares two models on the dev pool of a training, `of_results` the
trained towers' results of a question set with those of the towers before
training and of BM25, over the whole corpus.  Both have one rule: the paired
permutation test of the reciprocal rank at the level `significance.SURE`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.evaluation import evaluate, significance
from dpr_jax.evaluation.ranked_results import Ranks, read_ranks, sidecar_of

START = "dense-start"
_TRAINED = ("dense", "exact")  # methods of the trained towers alone
_AGAINST = ("bm25", START)
_WORDS = {
  significance.BETTER: "better than",
  significance.WORSE: "worse than",
  significance.EVEN: "no difference from",
}
# What to do about a training that made retrieval worse.
FIX = (
  "this training made retrieval worse: use the start (--method=dense-start), or"
  " try config.train.blend=auto, a lower learning rate, or other negatives"
)

# In place of the verdict of a training by an older version.
OLDER = {
  "outcome": "",
  "why": "the training is of an older version, and dense-start was not"
  " retrieved with (config.retrieve.methods)",
}


def mean_reciprocal(ranks: Sequence[int]) -> float:
  """Mean reciprocal rank of ranks from 1, the same in any order of them."""
  return math.fsum(1 / rank for rank in ranks) / len(ranks)


def of_ranks(
  trained: Sequence[int], start: Sequence[int], pool: int
) -> dict[str, Any]:
  """Verdict of two models on the same questions, for a manifest.

  Args:
    trained: rank of each question's positive with the trained model, from 1.
    start: likewise before training.
    pool: number of passages that were ranked.

  Returns:
    "outcome" of the trained model against the start, "questions", "pool",
    "average_rank" (before, after), "ranks" of the trained model, and the tests
    "top1" and "reciprocal_rank", in which "one" is the trained model.
  """
  one, other = np.asarray(trained), np.asarray(start)
  test = significance.permutation(1 / one, 1 / other)
  return {
    "outcome": significance.outcome(test),
    "questions": len(one),
    "pool": pool,
    "average_rank": [float(np.mean(other)), float(np.mean(one))],
    "ranks": [int(rank) for rank in trained],
    "top1": significance.mcnemar(one == 1, other == 1),
    "reciprocal_rank": test,
  }


def line_of_pool(found: Mapping[str, Any]) -> str:
  """A training's verdict on the dev pool, as one line without its stage.

  Args:
    found: from `of_ranks`; or {"outcome": "", "why": ...} = none was possible.
  """
  if not found["outcome"]:
    return f"no verdict: {found['why']}"
  top1, ranks = found["top1"], found["average_rank"]
  test = found["reciprocal_rank"]
  said = (
    f"verdict on dev, {found['questions']} questions, pool of {found['pool']}"
    f" passages: reciprocal rank {test['other']:.3f} -> {test['one']:.3f}"
    f" ({_p(test)}), average rank {ranks[0]:.1f} -> {ranks[1]:.1f}, top-1"
    f" {100 * top1['other']:.1f} -> {100 * top1['one']:.1f} % ({_p(top1)}):"
    f" {_WORDS[found['outcome']]} the start"
  )
  share = found.get("blend", {}).get("share", 1)
  if share != 1:
    said += f" (blended: {share:g} of the training, {1 - share:g} of the start)"
  if found["outcome"] == significance.WORSE:
    said += f"; {FIX}"
  return said


def _p(test: Mapping[str, Any]) -> str:
  p = test["p"]
  return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def of_results(
  workdir: workdir_lib.Workdir, name: str, match: str
) -> list[dict[str, Any]]:
  """The trained towers against BM25 and the start, in this order.

  The tests are stored in `evaluation/<name>.verdict.json`, because results
  files of large question sets take a while to read.

  Args:
    workdir: a workdir with results that `evaluate` has measured.
    name: name of the question set.
    match: how answers are matched, "string" or "regex".

  Returns:
    For each comparison "one", "other" (methods), "outcome", "questions",
    "measure" ("answer" or "gold") and "test", of its reciprocal rank; [] where
    there are no results of trained towers, or nothing to compare them with.

  Raises:
    InputError: a results file is damaged.
  """
  paths = evaluate.results_files(workdir, name)
  one = next((method for method in _TRAINED if method in paths), None)
  others = [method for method in _AGAINST if method in paths]
  if one is None or not others:
    return []
  sidecars = {each: sidecar_of(paths[each]) for each in (one, *others)}
  inputs = {
    each: evaluate.results_fingerprint(paths[each], sidecar)
    for each, sidecar in sidecars.items()
  } | {"match": match}
  file = workdir.evaluation(name).with_suffix(".verdict.json")
  if file.exists():
    try:
      record = workdir_lib.read_record(file)
      if record.get("inputs") == inputs:
        return record["verdicts"]
    except errors.InputError:
      pass  # damaged: written again
  ranks = {
    each: read_ranks(paths[each], sidecar, match)
    for each, sidecar in sidecars.items()
  }
  found = [_compare(one, each, ranks[one], ranks[each]) for each in others]
  verdicts = [each for each in found if each]
  workdir_lib.write_record(file, {"inputs": inputs, "verdicts": verdicts})
  return verdicts


def _compare(
  one: str, other: str, first: Ranks, second: Ranks
) -> dict[str, Any] | None:
  """One comparison; None = the methods answered different questions."""
  if len(first.answer) != len(second.answer):
    return None
  golds = (first.gold, second.gold)
  if len(first.gold) != len(second.gold):
    golds = ([], [])
  answers = (first.answer, second.answer)
  if not first.with_answers:
    answers = ([], [])
  if not answers[0] and not golds[0]:
    return None
  report = significance.compare((one, other), answers, golds, ())
  decisive = significance.decisive(report)
  gold = decisive.startswith("gold")
  return {
    "one": one,
    "other": other,
    "outcome": significance.outcome(report["tests"][decisive]),
    "questions": len(golds[0] if gold else answers[0]),
    "measure": "gold" if gold else "answer",
    "test": report["tests"][decisive],
  }


def line_of_results(found: Mapping[str, Any], name: str) -> str:
  """One comparison of `of_results` as a line.

  Args:
    found: an item of its result.
    name: name of the question set.
  """
  test = found["test"]
  other = found["other"]
  if other == START:
    other = f"the start ({START})"
  said = (
    f"verdict on {name}, {found['questions']} questions, whole corpus:"
    f" {found['measure']} reciprocal rank {test['other']:.3f} ({other}),"
    f" {test['one']:.3f} ({found['one']}; {_p(test)}):"
    f" {_WORDS[found['outcome']]} {other}"
  )
  if found["outcome"] == significance.WORSE and found["other"] == START:
    said += f"; {FIX}"
  return said
