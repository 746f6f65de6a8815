"""Compares the trials of a sweep: means over seeds, and paired tests.

Input: the workdirs of finished trials.  Output: `sweep.json` and `sweep.md`.
Every setting is compared with the first one by a paired permutation test over
questions, of each question's mean over the seeds that both settings have: it
tells whether the mean of those trainings differs on questions like these.  How
much trainings differ among themselves is the standard error over seeds.
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.evaluation import evaluate, significance, staleness
from dpr_jax.evaluation.ranked_results import read_ranks, sidecar_of

JSON, MARKDOWN = "sweep.json", "sweep.md"
_STAGE = "sweep"
_QUESTIONS = "dev"
_POOL = "dev pool"
_FIRST = ("dense", "exact", "hybrid")  # order of the tables
_TOP = re.compile(r"(gold_)?top(\d+)")
_KINDS = ("answer", "gold")
_NOTE = (
  "Mean ± standard error over seeds. p: paired permutation test of the"
  " reciprocal rank against the first setting, of each question's mean over"
  f" seeds ({significance.RESAMPLES:,} resamples; never below"
  f" {significance.FLOOR:.4f}); not corrected for multiple testing. The pool"
  " has the gold passages and some negatives of the dev questions; it depends"
  " on the seed."
)

Measures = dict[str, float]
# Reciprocal ranks of all questions of a method, by kind of passage.
Reciprocals = dict[str, list[float]]
# The figures of a method of a trial, and the fingerprint of its dev questions.
Figures = tuple[Measures, Reciprocals, str]


@dataclasses.dataclass(frozen=True)
class Row:
  """One trial.

  Attributes:
    setting: name of its combination of settings.
    values: their values by key.
    seed: its seed.
    workdir: its workdir; None = it failed.
  """

  setting: str
  values: Mapping[str, Any]
  seed: int
  workdir: workdir_lib.Workdir | None


def check_ours(folder: pathlib.Path) -> None:
  """`InputError` if the comparison would replace another program's files."""
  path = folder / JSON
  if not path.exists():
    if (folder / MARKDOWN).exists():
      raise errors.InputError(
        f"{folder / MARKDOWN} exists without {JSON} beside it: it is not of a"
        " sweep and is not replaced: move it away"
      )
    return
  record = workdir_lib.read_json(path)
  if not isinstance(record, dict) or record.get("stage") != _STAGE:
    raise errors.InputError(
      f"{path} is not of a sweep and is not replaced: move it away"
    )


def write(folder: pathlib.Path, rows: Sequence[Row], whole: bool) -> str:
  """Writes both files, and returns the text of `sweep.md`.

  Args:
    folder: folder of the sweep.
    rows: all trials; the first setting is what the others are compared with.
    whole: the trials have results over the corpus; False = only trainings.

  Raises:
    InputError: results of a trial are damaged, or older than its training.
  """
  record = {"stage": _STAGE, **compare(rows, whole)}
  workdir_lib.write_record(folder / JSON, record)
  text = markdown(record)
  with workdir_lib.replace_file(folder / MARKDOWN) as temporary:
    temporary.write_text(text, encoding="utf-8")
  return text


def compare(rows: Sequence[Row], whole: bool) -> dict[str, Any]:
  """All figures of a sweep.

  Args:
    rows: all trials.
    whole: as in `write`.

  Returns:
    "settings": for each its "values", "seeds" and "failed" seeds; "methods":
    {method: {setting: {"measures": {name: {"mean", "standard_error",
    "by_seed"}}, "tests": {kind: test}}}}.  A test is of the setting ("one")
    against the first ("other"), with the "seeds" of both; the first has none.
  """
  settings: dict[str, dict[str, Any]] = {}
  found: dict[str, dict[str, dict[int, Figures]]] = {}
  for row in rows:
    own = settings.setdefault(
      row.setting, {"values": dict(row.values), "seeds": [], "failed": []}
    )
    own["failed" if row.workdir is None else "seeds"].append(row.seed)
    if row.workdir is None:
      continue
    trained = workdir_lib.read_manifest(row.workdir.training, "train")
    asked = trained["inputs"].get("dev", "")
    for method, read in _methods(row.workdir, trained, whole).items():
      by_setting = found.setdefault(method, {})
      by_setting.setdefault(row.setting, {})[row.seed] = (*read(), asked)
  first = next(iter(settings))
  return {
    "against": first,
    "settings": settings,
    "methods": {
      method: {
        setting: {
          "measures": _means({seed: own[0] for seed, own in seeds.items()}),
          "tests": {}
          if setting == first
          else _tests(seeds, by_setting.get(first, {})),
        }
        for setting, seeds in by_setting.items()
      }
      for method, by_setting in found.items()
    },
  }


def _methods(
  workdir: workdir_lib.Workdir, trained: Mapping[str, Any], whole: bool
) -> dict[str, Callable[[], tuple[Measures, Reciprocals]]]:
  """Functions that read the figures of each method of a trial.

  Args:
    workdir: its workdir.
    trained: the manifest of its training.
    whole: as in `write`.
  """
  found = {}
  if whole:
    for method, path in evaluate.results_files(workdir, _QUESTIONS).items():
      found[method] = lambda method=method, path=path: _of_results(
        workdir, method, path
      )
  verdict = trained.get("verdict", {})
  if verdict.get("outcome"):
    found[_POOL] = lambda: _of_pool(verdict)
  return found


def _of_results(
  workdir: workdir_lib.Workdir, method: str, path: pathlib.Path
) -> tuple[Measures, Reciprocals]:
  measures = workdir_lib.read_json(workdir.evaluation(_QUESTIONS))[method]
  sidecar = sidecar_of(path)
  staleness.check_results(workdir, _QUESTIONS, method, sidecar)
  ranks = read_ranks(path, sidecar, sidecar.get("match", "string"))
  reciprocals = {
    kind: [0.0 if rank is None else 1 / (rank + 1) for rank in own]
    for kind, own in zip(_KINDS, (ranks.answer, ranks.gold), strict=True)
    if own and (kind == "gold" or ranks.with_answers)
  }
  shares = {k: v for k, v in measures.items() if isinstance(v, float)}
  return shares | _mean_ranks(reciprocals), reciprocals


def _of_pool(verdict: Mapping[str, Any]) -> tuple[Measures, Reciprocals]:
  reciprocals = {"gold": [1 / rank for rank in verdict["ranks"]]}
  measures = {
    "gold_top1": verdict["top1"]["one"],
    "average_rank": verdict["average_rank"][1],
  }
  return measures | _mean_ranks(reciprocals), reciprocals


def _mean_ranks(reciprocals: Reciprocals) -> Measures:
  return {
    f"{kind}_reciprocal_rank": math.fsum(own) / len(own)
    for kind, own in reciprocals.items()
  }


def _means(by_seed: Mapping[int, Measures]) -> dict[str, dict[str, Any]]:
  """Mean and standard error of each measure that all seeds have."""
  names = [
    name
    for name in next(iter(by_seed.values()))
    if all(name in own for own in by_seed.values())
  ]
  found = {}
  for name in names:
    values = [own[name] for own in by_seed.values()]
    count = len(values)
    error = np.std(values, ddof=1) / math.sqrt(count) if count > 1 else None
    found[name] = {
      "mean": float(np.mean(values)),
      "standard_error": None if error is None else float(error),
      "by_seed": {
        str(seed): value for seed, value in zip(by_seed, values, strict=True)
      },
    }
  return found


def _tests(
  one: Mapping[int, Figures], other: Mapping[int, Figures]
) -> dict[str, Any]:
  """Paired tests over questions, of the means over common seeds."""
  seeds = [seed for seed in one if seed in other]
  tests: dict[str, Any] = {}
  if len({own[seed][2] for own in (one, other) for seed in seeds}) > 1:
    return tests  # as many questions may still be other ones
  for kind in _KINDS if seeds else ():
    sides = [
      [own[seed][1].get(kind, []) for seed in seeds] for own in (one, other)
    ]
    counts = {len(ranks) for side in sides for ranks in side}
    if len(counts) != 1 or 0 in counts:  # other questions: not paired
      continue
    means = [np.mean(side, axis=0) for side in sides]
    test = significance.permutation(*means)
    tests[kind] = test | {
      "outcome": significance.outcome(test),
      "questions": counts.pop(),
      "seeds": seeds,
    }
  return tests


def markdown(record: Mapping[str, Any]) -> str:
  """The comparison as text: a table for each method.

  Args:
    record: from `compare`.
  """
  settings = record["settings"]
  lines = ["# Sweep", "", f"Compared with `{record['against']}`. {_NOTE}", ""]
  methods = sorted(
    record["methods"],
    key=lambda name: (
      name == _POOL,
      _FIRST.index(name) if name in _FIRST else len(_FIRST),
      name,
    ),
  )
  for method in methods:
    lines += [f"## {method}", "", *_table(record["methods"][method], settings)]
  failed = {
    name: own["failed"] for name, own in settings.items() if own["failed"]
  }
  if failed:
    lines.append("## Failed")
    lines += [""] + [
      f"- `{name}`: seed {', '.join(map(str, seeds))}"
      for name, seeds in failed.items()
    ]
  return "\n".join(lines).rstrip() + "\n"


def _table(
  by_setting: Mapping[str, Mapping[str, Any]],
  settings: Mapping[str, Mapping[str, Any]],
) -> list[str]:
  columns = sorted(
    dict.fromkeys(
      name for own in by_setting.values() for name in own["measures"]
    ),
    key=_order,
  )
  kinds = [
    kind
    for kind in _KINDS
    if any(kind in own["tests"] for own in by_setting.values())
  ]
  head = ["setting", "seeds", *map(_title, columns)]
  head += [f"{kind} RR: difference, p" for kind in kinds]
  rows = [head, ["---", *["---:"] * (len(head) - 1)]]
  for setting in settings:
    if setting not in by_setting:
      continue
    own = by_setting[setting]
    cells = [f"`{setting}`", str(len(settings[setting]["seeds"]))]
    cells += [_cell(own["measures"].get(name), name) for name in columns]
    cells += [_test(own["tests"].get(kind)) for kind in kinds]
    rows.append(cells)
  return [*(f"| {' | '.join(row)} |" for row in rows), ""]


def _order(name: str) -> tuple[int, bool, int, str]:
  match = _TOP.fullmatch(name)
  if match:
    return 0, bool(match[1]), int(match[2]), name
  return 1, name.startswith("gold"), 0, name


def _title(name: str) -> str:
  match = _TOP.fullmatch(name)
  if match:
    return f"{'gold' if match[1] else 'answer'} top-{match[2]}, %"
  return name.replace("_", " ")


def _cell(measure: Mapping[str, Any] | None, name: str) -> str:
  if measure is None:
    return "–"
  scale, digits = (100, 1) if _TOP.fullmatch(name) else (1, 3)
  said = f"{scale * measure['mean']:.{digits}f}"
  if measure["standard_error"] is not None:
    said += f" ± {scale * measure['standard_error']:.{digits}f}"
  return said


def _test(test: Mapping[str, Any] | None) -> str:
  if test is None:
    return "–"
  p = "< 0.001" if test["p"] < 0.001 else f"{test['p']:.2g}"
  said = f"{test['difference']:+.3f}, {p}"
  if test["outcome"] != significance.EVEN:
    said += f": {test['outcome']}"
  return said
