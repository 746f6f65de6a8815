"""Compares results question by question: the tables at the top of a report.

All statistics are those of `evaluation.significance`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from dpr_jax.evaluation import evaluate, significance
from dpr_jax.reporting import html, plots
from dpr_jax.reporting.runs import System

_RECIPROCAL = "reciprocal_rank"


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Two systems on the same questions, and the tests of their differences."""

  one: System
  other: System
  tests: Mapping[str, Mapping[str, Any]]
  decisive: str

  @property
  def outcome(self) -> str:
    """Of the first against the second: "better", "worse" or "even"."""
    return significance.outcome(self.tests[self.decisive])


def compare(one: System, other: System, ks: Sequence[int]) -> Comparison | None:
  """Tests two systems; None = their numbers of questions differ.

  Args:
    one: first system.
    other: second system, of the same questions.
    ks: values of k for top-k.
  """
  ranks = one.ranks, other.ranks
  if len(ranks[0].answer) != len(ranks[1].answer):
    return None
  golds = ranks[0].gold, ranks[1].gold
  if len(golds[0]) != len(golds[1]):
    golds = [], []
  has_answers = ranks[0].with_answers > 0
  if not has_answers and not golds[0]:
    return None
  depth = min(each.depth for each in ranks)
  report = significance.compare(
    (one.label, other.label),
    (ranks[0].answer, ranks[1].answer) if has_answers else ([], []),
    golds,
    [k for k in ks if k <= depth],
  )
  decisive = significance.decisive(report)
  return Comparison(one, other, report["tests"], decisive)


_NAMES = {"top": "answer top-", "gold_top": "gold top-"}


def measure_name(key: str) -> str:
  """A measure in words: "answer top-20" for "top20"."""
  if key.endswith(_RECIPROCAL):
    kind = "gold" if key.startswith("gold") else "answer"
    return f"{kind} reciprocal rank"
  prefix = "gold_top" if key.startswith("gold_top") else "top"
  return f"{_NAMES[prefix]}{key.removeprefix(prefix)}"


def verdict(found: Comparison) -> str:
  """One paragraph: better, worse or no difference, with the figures."""
  test = found.tests[found.decisive]
  words = {
    "better": "better than",
    "worse": "worse than",
    "even": "no significant difference from",
  }[found.outcome]
  said = [_sentence(found.decisive, test)]
  prefix = "gold_top" if found.decisive.startswith("gold") else "top"
  tops = [
    key
    for key in found.tests
    if key.startswith(prefix) and key.removeprefix(prefix).isdigit()
  ]
  said += [_sentence(key, found.tests[key]) for key in _few(tops)]
  return (
    f'<p class="verdict {found.outcome}"><strong>{html.text(found.one.label)}:'
    f" {words} {html.text(found.other.label)}.</strong> {' '.join(said)}</p>"
  )


def _few(tops: Sequence[str]) -> Sequence[str]:
  """The first and the third of the values of k: top-1 and top-20."""
  return tops[:1] + tops[2:3] if len(tops) > 2 else tops


def _sentence(key: str, test: Mapping[str, Any]) -> str:
  name = measure_name(key)
  return (
    f"{name[0].upper()}{name[1:]} {html.percent(test['one'])} against"
    f" {html.percent(test['other'])} ({html.points(test['difference'])} points,"
    f" {html.interval(test['interval'], signed=True)}; p"
    f" {_equals(html.probability(test['p']))})."
  )


def _equals(p: str) -> str:
  return html.text(p if p.startswith("<") else f"= {p}")


def table(found: Comparison) -> str:
  """All tests of two systems."""
  one, other = found.one.label, found.other.label
  return html.table(
    [
      "percent",
      *(one, other, "difference", "95 % interval"),
      *(f"only {one}", f"only {other}", "p"),
    ],
    [
      [
        measure_name(key),
        html.percent(test["one"]),
        html.percent(test["other"]),
        html.points(test["difference"]),
        html.interval(test["interval"], signed=True),
        html.number(test["only_one"]) if "only_one" in test else "",
        html.number(test["only_other"]) if "only_other" in test else "",
        html.probability(test["p"]),
      ]
      for key, test in found.tests.items()
    ],
    f"{one} against {other},"
    f" {html.number(len(found.one.ranks.answer))} questions",
  )


def top_k_curve(system: System, kind: str, style: int) -> plots.Series | None:
  """Top-k accuracy for all k with its 95 % band; None = no such ranks.

  Args:
    system: the results.
    kind: "answer" or "gold".
    style: as in `plots.Series`.
  """
  ranks = system.ranks.answer if kind == "answer" else system.ranks.gold
  if not ranks or (kind == "answer" and not system.ranks.with_answers):
    return None
  ks = list(range(1, max(2, system.ranks.depth + 1)))
  shares = evaluate.top_k_accuracy(ranks, ks)
  bands = [
    significance.share_interval(round(shares[k] * len(ranks)), len(ranks))
    for k in ks
  ]
  return plots.Series(
    system.label,
    ks,
    [100 * shares[k] for k in ks],
    [100 * low for low, _ in bands],
    [100 * high for _, high in bands],
    style,
  )


def accuracy_table(systems: Sequence[System], ks: Sequence[int]) -> str:
  """Top-k of every system, each with its 95 % interval."""
  kinds = [
    kind
    for kind in ("answer", "gold")
    if any(
      each.ranks.gold if kind == "gold" else each.ranks.with_answers
      for each in systems
    )
  ]
  # A hyphen at which no line is broken.
  names = (f"{kind} top\u2011{k}" for kind in kinds for k in ks)
  head = ["percent", *names]
  return html.table(
    head,
    [
      [each.label, *(_share(each, kind, k) for kind in kinds for k in ks)]
      for each in systems
    ],
    "Share of questions, with its 95 % interval (Wilson)",
  )


def _share(system: System, kind: str, k: int) -> html.Safe | str:
  ranks = system.ranks.gold if kind == "gold" else system.ranks.answer
  if not ranks or k > system.ranks.depth:
    return "–"
  share = evaluate.top_k_accuracy(ranks, [k])[k]
  bounds = significance.share_interval(round(share * len(ranks)), len(ranks))
  return html.Safe(
    f"{html.percent(share)} <small>{html.interval(bounds)}</small>"
  )
