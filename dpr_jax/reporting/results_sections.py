"""Sections on what was retrieved: verdict, accuracy, and single questions.

Each function takes the runs that the report is about (one, or two with
`--against`) and their systems, and returns the HTML of its section.
"""

import dataclasses
from collections.abc import Sequence
from importlib import resources as importlib_resources

from dpr_jax.evaluation import significance
from dpr_jax.reporting import comparisons, html, plots, questions
from dpr_jax.reporting.runs import Run, System

_REFERENCES = ("dense-start", "bm25")


def resource(name: str) -> str:
  """The text of a file of the page's folder."""
  folder = importlib_resources.files("dpr_jax.reporting") / "page"
  return (folder / name).read_text(encoding="utf-8")


def systems_of(runs: Sequence[Run]) -> list[System]:
  """All results: the main system, its reference, then the others.

  The reference is what the main system is compared with first: the same method
  of the second run, the towers before training, or BM25.  With two runs the
  labels name the run.
  """
  found = []
  for run in runs:
    for each in run.systems.values():
      label = f"{each.method} ({run.label})" if len(runs) > 1 else each.method
      found.append((each is run.main, dataclasses.replace(each, label=label)))
  if not found:
    return []
  main = next(each for is_main, each in found if is_main)

  def place(system: System) -> tuple[bool, bool, int]:
    names = (*_REFERENCES, system.method)
    is_other = system.method != main.method
    return system is not main, is_other, names.index(system.method)

  return sorted((each for _, each in found), key=place)


def verdict(
  runs: Sequence[Run],
  systems: Sequence[System],
  browsed: questions.Questions | None,
) -> str:
  """The main system against all others, on the same questions."""
  if not systems:
    return html.missing(
      "There are no results.",
      f"dpr-jax retrieve --workdir={runs[0].workdir.root}",
    )
  lines, tables, left = [], [], []
  prints = browsed.fingerprints if browsed else {}
  pairs = _pairs(runs, systems)
  for one, other in pairs:
    found = None
    if prints.get(one.label, "") == prints.get(other.label):
      found = comparisons.compare(one, other, runs[0].ks)
    if found is None:
      left.append(
        html.paragraph(
          f"{one.label} is not compared with {other.label}: their questions"
          " or answers differ, or nothing tells which passages are right.",
          "missing",
        )
      )
      continue
    lines.append(comparisons.verdict(found))
    tables.append(comparisons.table(found))
  if not pairs:
    left.append(
      html.missing(
        f"There is nothing to compare {systems[0].label} with.",
        f"dpr-jax retrieve --workdir={runs[0].workdir.root}"
        " --method=bm25,dense-start",
      )
    )
  note = (
    "Better and worse are said where p of the reciprocal rank is below 0.05."
    f" Intervals are at 95 %. {significance.NOTE}."
  )
  details = (
    f"<details open><summary>All tests</summary>{''.join(tables)}"
    f"{html.paragraph(note)}</details>"
    if tables
    else ""
  )
  return "".join([*lines, *left, details])


def _pairs(
  runs: Sequence[Run], systems: Sequence[System]
) -> list[tuple[System, System]]:
  """What is compared: the main system with the others of its run.

  With two runs, each method of the first with the same of the second comes
  first.
  """
  main, *others = systems
  paths = {each.path for each in runs[0].systems.values()}
  across = [
    (one, other)
    for one in systems
    for other in systems
    if one.method == other.method
    and one.path in paths
    and other.path not in paths
  ]
  within = [(main, other) for other in others if other.path in paths]
  return across + within


def accuracy(runs: Sequence[Run], systems: Sequence[System]) -> str:
  """Top-k curves with bands, and the same as a table."""
  if not systems:
    return html.missing(
      "There are no results.",
      f"dpr-jax retrieve --workdir={runs[0].workdir.root}",
    )
  figures = []
  for kind in ("answer", "gold"):
    series = [
      curve
      for number, each in enumerate(systems)
      if (curve := comparisons.top_k_curve(each, kind, number))
    ]
    if series:
      what = "an answer" if kind == "answer" else "a gold passage"
      figures.append(
        plots.curves(
          f"Questions with {what} in the first k passages, with 95 % bands",
          series,
          x="k",
          y="percent of questions",
          log_x=True,
          most=100,
        )
      )
  return (
    f'<div class="figures large">{"".join(figures)}</div>'
    + comparisons.accuracy_table(systems, runs[0].ks)
    + _judged(runs)
  )


def _judged(runs: Sequence[Run]) -> str:
  """Measures over judged passages, if `evaluate --qrels` has written some."""
  measures = {
    f"{method} ({run.label})" if len(runs) > 1 else method: found
    for run in runs
    for method, found in run.measures.items()
    if any("@" in key for key in found)
  }
  keys = list(dict.fromkeys(k for of in measures.values() for k in of))
  keys = [key for key in keys if "@" in key]
  if not keys:
    return ""
  return html.table(
    ["percent", *keys, "judged questions"],
    [
      [
        label,
        *(html.percent(found.get(key)) for key in keys),
        html.number(found.get("judged_questions", 0)),
      ]
      for label, found in measures.items()
    ],
    "Over judged passages, as evaluate --qrels has measured",
  )


def browser(
  runs: Sequence[Run],
  systems: Sequence[System],
  browsed: questions.Questions | None,
) -> str:
  """The place that the page's script fills, and what is in the file."""
  if browsed is None:
    return html.missing(
      "There are no results.",
      f"dpr-jax retrieve --workdir={runs[0].workdir.root}",
    )
  total = len(browsed.value["questions"])
  by = f" and {systems[1].label}" if systems[1:] else ""
  note = (
    f"All {total:,} questions are listed; passages are in this file for"
    f" {browsed.shown:,}"
    + (
      f", those where {systems[0].label}{by} differ most in reciprocal rank:"
      f" at most {questions.MOST_QUESTIONS:,}, or"
      f" {questions.MOST_BYTES / 1e6:g} MB, so that a browser can open it. The"
      " others are in the results files."
      if browsed.shown < total
      else "."
    )
  )
  return html.paragraph(note) + resource("browser.html")
