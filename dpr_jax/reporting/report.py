"""Writes the report of a workdir: one HTML file, complete in itself.

Input: a workdir after any stage, and perhaps a second one to compare with.
Output: `<folder>/<questions>.html`, which loads nothing, neither from a network
nor from a disk.  What the workdir does not have is left out, with the command
that would make it.
"""

import base64
import dataclasses
import hashlib
import pathlib
import string
import time
from collections.abc import Mapping, Sequence
from importlib import resources as importlib_resources

from absl import logging

from dpr_jax import version
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.evaluation import significance
from dpr_jax.reporting import (
  comparisons,
  html,
  plots,
  questions,
  run_sections,
  runs,
  training_sections,
)
from dpr_jax.reporting.html import Section
from dpr_jax.reporting.runs import Run, System

_MARK = '<meta name="generator" content="dpr-jax report">'
_REFERENCES = ("dense-start", "bm25")  # what a verdict compares with, first


def write(
  workdir: workdir_lib.Workdir,
  *,
  name: str = "dev",
  match: str | None = None,
  against: workdir_lib.Workdir | None = None,
  out: pathlib.Path | None = None,
  overwrite: bool = True,
) -> pathlib.Path:
  """Writes the report, and returns the path of its file.

  Args:
    workdir: the workdir.
    name: name of the question set.
    match: how answers are marked, "string" or "regex"; None =
      `config.evaluate.match`.
    against: a second workdir, shown beside the first; None = none.
    out: folder for the file; None = `report/` in the workdir.
    overwrite: whether to write it even if no file of the workdirs has changed.

  Raises:
    InputError: there is no such workdir, it holds nothing, or the file is not a
      report.
  """
  for place, flag in ((workdir, "workdir"), (against, "against")):
    if place is not None:
      check_workdir(place, flag)
  workdir_lib.check_name("--name", name)
  folder = workdir.root / "report" if out is None else out
  suffix = "" if against is None else ".against"
  path = folder / f"{name}{suffix}.html"
  start = _start_of_ours(path)
  state = _state([workdir] if against is None else [workdir, against])
  if not overwrite and state in start:
    logging.info("report: nothing has changed, skipped")
    return path
  run, other = runs.read(workdir, name, match), None
  if against is not None:
    other = runs.read(against, name, match)
    if other.label == run.label:
      run.label, other.label = str(workdir.root), str(against.root)
  page = page_of(run, other, state)
  with workdir_lib.writing(path):
    folder.mkdir(parents=True, exist_ok=True)
    with workdir_lib.replace_file(path) as temporary:
      temporary.write_text(page, encoding="utf-8", newline="\n")
  return path


def check_workdir(workdir: workdir_lib.Workdir, flag: str = "workdir") -> None:
  """`InputError` if a workdir does not exist; `flag` names it."""
  if not workdir.root.is_dir():
    raise errors.InputError(f"--{flag}={workdir.root}: no such folder")


def _start_of_ours(path: pathlib.Path) -> str:
  """First bytes of an existing report; "" = there is none.

  Raises:
    InputError: the file is not a report, so it must not be replaced.
  """
  if not path.exists():
    return ""
  try:
    with path.open("rb") as file:
      start = file.read(4096).decode("utf-8", "replace")
  except OSError as error:
    raise errors.InputError(f"cannot read {path}: {error.strerror}") from error
  if _MARK not in start:
    raise errors.InputError(
      f"{path} is not a report of dpr-jax and is not replaced: move it away, or"
      " give another --out"
    )
  return start


def _state(workdirs: Sequence[workdir_lib.Workdir]) -> str:
  """Fingerprint of names, sizes and times of what a report is made from."""
  found = {}
  for workdir in workdirs:
    for name in workdir_lib.FOLDERS:
      for path in (workdir.root / name).rglob("*.json*"):
        status = path.stat()
        found[str(path)] = [status.st_mtime_ns, status.st_size]
  return workdir_lib.fingerprint([version.__version__, found])


def page_of(run: Run, other: Run | None = None, state: str = "") -> str:
  """The HTML of a report.

  Args:
    run: the run that it is about.
    other: a second run to compare it with; None = none.
    state: fingerprint of its inputs, kept in the page.
  """
  both = [run] if other is None else [run, other]
  systems = _systems(both)
  browsed = None
  if systems:
    reference = _reference(systems)
    order = questions.most_different(
      systems[0].ranks, None if reference is None else reference.ranks
    )
    browsed = run.attempt(lambda: questions.read(run, systems, order), None)
  sections = [
    Section("verdict", "Verdict", _verdict(both, systems, browsed)),
    Section("accuracy", "Accuracy", _accuracy(both, systems)),
    Section("training", "Training", training_sections.training(both)),
    Section("questions", "Questions", _questions(both, systems, browsed)),
    Section("negatives", "Negatives", training_sections.negatives(both)),
    Section("index", "Index", run_sections.indexes(both)),
    Section("reader", "Reader", training_sections.reader(both)),
    Section("data", "Data", run_sections.data(both)),
    Section("settings", "Settings", run_sections.settings(both)),
    Section("origin", "Origin", run_sections.origin(both, _command(both))),
  ]
  title = " against ".join(each.label for each in both)
  value = browsed.value if browsed else {}
  return _filled(title, both, sections, value, state)


def _systems(both: Sequence[Run]) -> list[System]:
  """All results: the main system, its reference, then the others.

  With two runs the labels name the run.
  """
  found = []
  for run in both:
    main = run.main
    for each in run.systems.values():
      label = f"{each.method} ({run.label})" if len(both) > 1 else each.method
      found.append((each is not main, dataclasses.replace(each, label=label)))
  if not found:
    return []
  (_, main), *_ = sorted(found, key=lambda pair: pair[0])  # of the first run
  others = [each for _, each in found if each is not main]
  reference = _reference([main, *others])
  return [main, *sorted(others, key=lambda each: each is not reference)]


def _reference(systems: Sequence[System]) -> System | None:
  """What the main system is compared with first."""
  main, *others = systems
  same = [each for each in others if each.method == main.method]
  by_name = [
    each for name in _REFERENCES for each in others if each.method == name
  ]
  return next(iter([*same, *by_name, *others]), None)


def _verdict(
  both: Sequence[Run],
  systems: Sequence[System],
  browsed: questions.Questions | None,
) -> str:
  """The main system against all others, on the same questions."""
  if not systems:
    return html.missing(
      "There are no results.",
      f"dpr-jax retrieve --workdir={both[0].workdir.root}",
    )
  lines, tables, left = [], [], []
  prints = browsed.fingerprints if browsed else {}
  pairs = _pairs(both, systems)
  for one, other in pairs:
    found = None
    if prints.get(other.label) == prints.get(one.label):
      found = comparisons.compare(one, other, both[0].ks)
    if found is None:
      left.append(
        html.paragraph(
          f"{one.label} is not compared with {other.label}: their questions"
          " differ, or nothing tells which passages are right.",
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
        f"dpr-jax retrieve --workdir={both[0].workdir.root}"
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
  both: Sequence[Run], systems: Sequence[System]
) -> list[tuple[System, System]]:
  """What is compared: the main system with the others of its run.

  With two runs, each method of the first with the same of the second comes
  first.
  """
  main, *others = systems
  paths = {each.path for each in both[0].systems.values()}
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


def _accuracy(both: Sequence[Run], systems: Sequence[System]) -> str:
  """Top-k curves with bands, and the same as a table."""
  if not systems:
    return html.missing(
      "There are no results.",
      f"dpr-jax retrieve --workdir={both[0].workdir.root}",
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
    + comparisons.accuracy_table(systems, both[0].ks)
  )


def _questions(
  both: Sequence[Run],
  systems: Sequence[System],
  browsed: questions.Questions | None,
) -> str:
  """The place that the page's script fills, and what is in the file."""
  if browsed is None:
    return html.missing(
      "There are no results.",
      f"dpr-jax retrieve --workdir={both[0].workdir.root}",
    )
  total = len(browsed.value["questions"])
  reference = _reference(systems)
  by = f" and {reference.label}" if reference else ""
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
  return html.paragraph(note) + _resource("browser.html")


def _command(both: Sequence[Run]) -> str:
  command = f"dpr-jax report --workdir={both[0].workdir.root}"
  if both[0].name != "dev":
    command += f" --name={both[0].name}"
  return " ".join([command, *(f"--against={o.workdir.root}" for o in both[1:])])


def _filled(
  title: str,
  both: Sequence[Run],
  sections: Sequence[Section],
  value: Mapping,
  state: str,
) -> str:
  """The page, from its template."""
  script = _resource("page.js")
  digest = hashlib.sha256(script.encode()).digest()
  warnings = [line for run in both for line in run.warnings]
  contents = "".join(
    f'<li><a href="#{each.key}">{html.text(each.title)}</a></li>'
    for each in sections
  )
  body = "".join(
    f'<section id="{each.key}"><h2>{html.text(each.title)}</h2>{each.body}'
    "</section>"
    for each in sections
  )
  return string.Template(_resource("page.html")).substitute(
    mark=_MARK,
    state=html.text(state),
    title=html.text(title),
    name=html.text(both[0].name),
    made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    hash=base64.b64encode(digest).decode(),
    style=_resource("page.css"),
    script=script,
    contents=contents,
    warnings="".join(html.paragraph(line, "warning") for line in warnings),
    sections=body,
    data=html.json_script("question-data", value),
  )


def _resource(name: str) -> str:
  folder = importlib_resources.files("dpr_jax.reporting") / "page"
  return (folder / name).read_text(encoding="utf-8")
