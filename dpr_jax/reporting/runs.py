"""Reads what a report shows of one workdir: ranks, metrics and manifests.

Input: a workdir after any stage.  Output: a `Run`.  What is missing is None or
empty, and what cannot be used (damaged or out of date) is left out and named in
`Run.warnings`: a report is made of what there is.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import ml_collections
from absl import logging

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors, settings_table, temporary_names
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.evaluation import answer_scores, evaluate, staleness
from dpr_jax.evaluation.ranked_results import Ranks, read_ranks, sidecar_of

_SUFFIX = ".manifest.json"
# The method that a report is about: the first of these that there is.
_MAIN = ("dense", "exact", "dense-start", "hybrid", "bm25")
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class System:
  """One method's results of one run.

  Attributes:
    label: name in the report, such as "dense", or "dense (other)".
    method: name of the method.
    path: path of the results file.
    ranks: first ranks, per question.
    sidecar: manifest of the file; {} = it is from other software.
  """

  label: str
  method: str
  path: pathlib.Path
  ranks: Ranks
  sidecar: Mapping[str, Any]


@dataclasses.dataclass
class Run:
  """What a report shows of one workdir.

  Attributes:
    workdir: the workdir.
    label: name of the run in the report; the folder's name.
    name: name of the question set.
    match: how answers were matched, "string" or "regex".
    systems: results by method.
    measures: what `evaluate` has written, by method.
    scores: scores of the answers by method, as `answer_scores.file_scores`.
    answers: paths of the answers by method.
    training: rows of `training/metrics.jsonl`.
    reader: rows of `reader/metrics.jsonl`.
    manifests: manifests by their path below the workdir, without suffix; each
      with the version that wrote it, as "version".
    config: the workdir's settings; None = it has no `config.json`.
    warnings: what was left out, and why; one line each.
  """

  workdir: workdir_lib.Workdir
  label: str
  name: str
  match: str = "string"
  systems: dict[str, System] = dataclasses.field(default_factory=dict)
  measures: dict[str, dict[str, float | int]] = dataclasses.field(
    default_factory=dict
  )
  scores: dict[str, dict[str, float | int]] = dataclasses.field(
    default_factory=dict
  )
  answers: dict[str, pathlib.Path] = dataclasses.field(default_factory=dict)
  training: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  reader: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  manifests: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
  config: ml_collections.ConfigDict | None = None
  warnings: list[str] = dataclasses.field(default_factory=list)

  @property
  def main(self) -> System | None:
    """The results that the report is about: the trained towers', if any."""
    found = [self.systems[name] for name in _MAIN if name in self.systems]
    return found[0] if found else next(iter(self.systems.values()), None)

  @property
  def ks(self) -> list[int]:
    """Values of `evaluate.ranks` that some system has."""
    depth = max((each.ranks.depth for each in self.systems.values()), default=0)
    ranks = settings_table.defaults()["evaluate"]["ranks"]
    if self.config is not None:
      ranks = self.config.evaluate.ranks
    return [k for k in sorted(set(ranks)) if k <= depth]

  def counts(self, stage: str) -> Mapping[str, int]:
    """Counts of a manifest; {} = there is none."""
    return self.manifests.get(stage, {}).get("counts", {})

  def attempt(self, read: Callable[[], _T], otherwise: _T) -> _T:
    """What `read` returns; `otherwise` and a warning if it is refused."""
    try:
      return read()
    except (errors.InputError, OSError) as error:
      logging.warning("report: left out: %s", error)
      if str(error) not in self.warnings:
        self.warnings.append(str(error))
      return otherwise


def read(
  workdir: workdir_lib.Workdir, name: str = "dev", match: str | None = None
) -> Run:
  """Reads a workdir.

  Args:
    workdir: the workdir.
    name: name of the question set.
    match: how answers are matched in results of other software, and marked;
      None = `config.evaluate.match`.

  Raises:
    InputError: it holds nothing of dpr-jax.
  """
  workdir_lib.check_name("--name", name)
  run = Run(workdir, workdir.root.name or str(workdir.root), name)
  if (workdir.root / config_lib.FILE).exists():
    run.config = run.attempt(
      lambda: config_lib.read(workdir.root / config_lib.FILE), None
    )
  run.match = match or (run.config.evaluate.match if run.config else "string")
  for path in sorted(workdir.root.rglob(f"*{workdir_lib.MANIFEST}")):
    below = path.relative_to(workdir.root)
    temporary = any(map(temporary_names.is_temporary, (path, *path.parents)))
    if below.parts[0] in workdir_lib.FOLDERS and not temporary:
      key = below.as_posix().removesuffix(workdir_lib.MANIFEST).strip("/.")
      if record := run.attempt(lambda path=path: _record(path), None):
        run.manifests[key] = record
  for method, path in evaluate.results_files(workdir, name).items():
    if system := run.attempt(
      lambda method=method, path=path: _system(run, method, path), None
    ):
      run.systems[method] = system
  for method, path in evaluate.answer_files(workdir, name).items():
    if scores := run.attempt(
      lambda method=method, path=path: _scores(run, method, path), None
    ):
      run.scores[method], run.answers[method] = scores, path
  if workdir.evaluation(name).exists():
    run.measures = run.attempt(lambda: _measures(run), {})
  for rows, folder in (
    (run.training, workdir.training),
    (run.reader, workdir.reader),
  ):
    file = folder / "metrics.jsonl"
    rows += run.attempt(lambda file=file: _rows(run, file), [])
  if not run.manifests and not run.systems and not run.training:
    raise errors.InputError(
      f"--workdir={workdir.root}: holds nothing to report: run `dpr-jax run`"
      " first"
    )
  return run


def _record(path: pathlib.Path) -> dict[str, Any]:
  """A manifest, with the version of dpr-jax that wrote it."""
  record = workdir_lib.read_record(path)
  return record | {"version": workdir_lib.read_json(path).get("dpr_jax", "")}


def _system(run: Run, method: str, path: pathlib.Path) -> System:
  sidecar = sidecar_of(path)
  staleness.check_results(run.workdir, run.name, method, sidecar)
  ranks = read_ranks(path, sidecar, run.match)
  return System(method, method, path, ranks, sidecar)


def _scores(
  run: Run, method: str, path: pathlib.Path
) -> dict[str, float | int]:
  manifest = sidecar_of(path, "read")
  staleness.check_answers(run.workdir, run.name, method, manifest)
  return answer_scores.file_scores(path)


def _measures(run: Run) -> dict[str, dict[str, float | int]]:
  """What `evaluate` has written of the results as they are now."""
  path = run.workdir.evaluation(run.name)
  measures = workdir_lib.read_json(path)
  again = f"run `dpr-jax evaluate --name={run.name}` again"
  if not isinstance(measures, dict) or not all(
    isinstance(found, dict) for found in measures.values()
  ):
    raise errors.InputError(f"{path} has no measures by method; {again}")
  manifest = path.with_suffix(_SUFFIX)
  if not manifest.exists():
    return measures
  record = workdir_lib.read_record(manifest)
  workdir_lib.check_files(path.parent, record, [path.name])
  changed = [
    method
    for method, found in measures.items()
    if any("@" in key for key in found)
    and not _is_measured(run, method, record.get("inputs", {}))
  ]
  if changed:
    run.warnings.append(
      f"{path}, measures over judged passages: the results of"
      f" {', '.join(changed)} have changed since; {again}, with --qrels"
    )
  return {key: measures[key] for key in measures if key not in changed}


def _is_measured(run: Run, method: str, inputs: Mapping[str, str]) -> bool:
  system = run.systems.get(method)
  return system is not None and inputs.get(method) == (
    evaluate.results_fingerprint(system.path, system.sidecar)
  )


def _rows(run: Run, path: pathlib.Path) -> list[dict[str, Any]]:
  """Rows of a metrics file; a line that is not one is left out, and said."""
  rows = []
  if not path.exists():
    return rows
  lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
  for number, line in enumerate(lines, start=1):
    try:
      row = json.loads(line)
      rows.append({"step": int(row["step"]), **row})
    except (ValueError, KeyError, TypeError, OverflowError):
      run.warnings.append(f"{path}, line {number} is not a row of metrics")
  return rows
