"""Writes the report of a workdir: one HTML file, complete in itself.

Input: a workdir after any stage, and perhaps a second one to compare with.
Output: `<folder>/<questions>.html`, which loads nothing, neither from a network
nor from a disk.  What the workdir does not have is left out, with the command
that would make it.
"""

import base64
import contextlib
import hashlib
import pathlib
import string
import time
from collections.abc import Mapping, Sequence

from absl import logging

from dpr_jax import version
from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.reporting import (
  html,
  questions,
  results_sections,
  run_sections,
  runs,
  training_sections,
)
from dpr_jax.reporting.html import Section
from dpr_jax.reporting.runs import Run

_MARK = '<meta name="generator" content="dpr-jax report">'


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
  if against is not None and against.root.samefile(workdir.root):
    raise errors.InputError(
      f"--against={against.root} is --workdir itself: name another workdir"
    )
  workdir_lib.check_name("--name", name)
  folder = workdir.root / "report" if out is None else out
  suffix = "" if against is None else ".against"
  path = folder / f"{name}{suffix}.html"
  start = _start_of_ours(path)
  workdirs = [workdir] if against is None else [workdir, against]
  state = _state(workdirs, match)
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


def _state(workdirs: Sequence[workdir_lib.Workdir], match: str | None) -> str:
  """Fingerprint of names, sizes and times of what a report is made from."""
  found = {}
  for workdir in workdirs:
    paths = [workdir.root / config_lib.FILE]
    for name in workdir_lib.FOLDERS:
      paths += (workdir.root / name).rglob("*.json*")
    for path in paths:
      # A stage that runs may have removed its temporary file.
      with contextlib.suppress(FileNotFoundError):
        status = path.stat()
        found[str(path)] = [status.st_mtime_ns, status.st_size]
  return workdir_lib.fingerprint([version.__version__, match, found])


def page_of(run: Run, other: Run | None = None, state: str = "") -> str:
  """The HTML of a report.

  Args:
    run: the run that it is about.
    other: a second run to compare it with; None = none.
    state: fingerprint of its inputs, kept in the page.
  """
  both = [run] if other is None else [run, other]
  systems = results_sections.systems_of(both)
  browsed = None
  if systems:
    order = questions.most_different(*(each.ranks for each in systems[:2]))
    browsed = run.attempt(lambda: questions.read(run, systems, order), None)
  sections = [
    Section(
      "verdict", "Verdict", results_sections.verdict(both, systems, browsed)
    ),
    Section("accuracy", "Accuracy", results_sections.accuracy(both, systems)),
    Section("training", "Training", training_sections.training(both)),
    Section(
      "questions", "Questions", results_sections.browser(both, systems, browsed)
    ),
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
  script = results_sections.resource("page.js")
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
  return string.Template(results_sections.resource("page.html")).substitute(
    mark=_MARK,
    state=html.text(state),
    title=html.text(title),
    name=html.text(both[0].name),
    made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    hash=base64.b64encode(digest).decode(),
    style=results_sections.resource("page.css"),
    script=script,
    contents=contents,
    warnings="".join(html.paragraph(line, "warning") for line in warnings),
    sections=body,
    data=html.json_script("question-data", value),
  )
