"""Sections on what a run consists of: indexes, data, settings, commands.

Each function takes the runs that the report is about (one, or two with
`--against`) and returns the HTML of its section.
"""

import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from dpr_jax import version
from dpr_jax.core import settings_table
from dpr_jax.reporting import html, plots
from dpr_jax.reporting.runs import Run

_LIBRARIES = (
  *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain"),
  *("numpy", "faiss-cpu", "bm25s", "transformers", "tokenizers", "matplotlib"),
)
_THREAD = "1 thread"
_CONFIG = '''"""Settings of {label}."""

from dpr_jax import configuration


def get_config():
  config = configuration.base_config()
{lines}
  return config
'''


def indexes(runs: Sequence[Run]) -> str:
  """Recall against speed of all indexes, and what tuning tried."""
  rows, points, tried = [], [], []
  for run in runs:
    for key, manifest in run.manifests.items():
      recall = manifest.get("recall", {})
      if not key.startswith("index/") or "recall@20" not in recall:
        continue
      name = key.removeprefix("index/")
      label = f"{name} ({run.label})" if len(runs) > 1 else name
      speeds = recall["questions_per_second"]
      rows.append(
        [
          label,
          html.number(manifest["count"]),
          *(html.percent(recall[f"recall@{k}"]) for k in (20, 100)),
          *(html.number(round(speed)) for speed in speeds.values()),
          html.number(round(manifest.get("bytes", 0) / 1e6, 1)),
          ", ".join(f"{k}={v}" for k, v in manifest.get("search", {}).items()),
        ]
      )
      share = 100 * recall["recall@20"]
      points.append(
        plots.Series(label, [speeds[_THREAD]], [share], points=True)
      )
      if tuning := manifest.get("tuning"):
        tried.append(_tuned(label, tuning))
  if not rows:
    return html.missing(
      "No index was measured.",
      f"dpr-jax index --workdir={runs[0].workdir.root}",
    )
  head = ["index", "vectors", "recall@20", "recall@100"]
  head += ["questions/s, 1 thread", "all threads", "MB", "search"]
  figures = plots.curves(
    "Recall against exact search, and speed",
    points,
    x="questions per second, 1 thread",
    y="recall@20, percent",
    log_x=True,
    most=100,
  )
  shown = f'<div class="figures">{figures}{"".join(tried)}</div>'
  if not tried:
    shown += html.missing(
      "No search parameters were tuned.",
      f"dpr-jax index --workdir={runs[0].workdir.root} --tune",
    )
  return html.table(head, rows) + shown


def _tuned(label: str, tuning: Mapping[str, Any]) -> str:
  """Recall of everything that `index --tune` tried, by the effort."""
  tried = tuning["tried"]
  if not tried:
    return ""
  effort = next(
    (name for name in ("nprobe", "ef_search") if name in tried[0]), None
  )
  if effort is None:
    return ""
  groups: dict[Any, list[Mapping[str, Any]]] = {}
  for each in tried:
    groups.setdefault(each.get("refine_factor"), []).append(each)
  series = []
  for factor, some in groups.items():
    some = sorted(some, key=lambda each: each[effort])
    name = "recall@20" if factor is None else f"Refine × {factor:g}"
    x = [each[effort] for each in some]
    y = [100 * each["recall@20"] for each in some]
    low = [100 * each["recall@20, lower bound"] for each in some]
    series.append(plots.Series(name, x, y, low, y))
  return plots.curves(
    f"{label}: recall@20 of what was tried, with its lower bound; target"
    f" {100 * tuning['target']:g}",
    series,
    x=effort,
    y="recall@20, percent",
    log_x=True,
    most=100,
  )


def data(runs: Sequence[Run]) -> str:
  """What `prepare` read, kept and dropped, and why."""
  if not any(run.counts("data") for run in runs):
    return html.missing(
      "No data was prepared.",
      f"dpr-jax prepare --workdir={runs[0].workdir.root}",
    )
  keys = list(dict.fromkeys(key for run in runs for key in run.counts("data")))
  splits = ("passages", "train", "dev")
  rows = []
  for key in keys:
    counts = [run.counts("data").get(key) for run in runs]
    if not any(counts) and key not in splits:
      continue  # reasons for which nothing was dropped: named below
    cells = ["–" if c is None else html.number(c) for c in counts]
    if len(runs) > 1:
      is_known = None not in counts
      change = counts[0] - counts[1] if is_known else None
      cells.append("–" if change is None else f"{change:+,}".replace("-", "−"))
    rows.append([_count_name(key), *cells])
  head = ["count", *(run.label for run in runs)]
  none = [
    _count_name(key)
    for key in keys
    if not any(run.counts("data").get(key) for run in runs)
  ]
  said = html.paragraph(f"None of these: {', '.join(none)}.") if none else ""
  sources = [
    [f"{run.label}: {split}", source.get("from", ""), source.get("format", "")]
    for run in runs
    for split, found in run.manifests.get("data", {}).get("sources", {}).items()
    for source in (found if isinstance(found, list) else [found])
  ]
  head += ["difference"] if len(runs) > 1 else []
  files = html.table(["source", "file", "format"], sources) if sources else ""
  return html.table(head, rows) + said + files


def _count_name(key: str) -> str:
  split, _, what = key.partition("_")
  return f"{split}: {what.replace('_', ' ') or 'kept'}"


def settings(runs: Sequence[Run]) -> str:
  """Settings that differ from the defaults, or between two runs."""
  known = [run for run in runs if run.config is not None]
  if len(known) < len(runs):
    return html.missing(
      "A workdir has no config.json.",
      f"dpr-jax run --config=FILE --workdir={runs[0].workdir.root}",
    )
  parts = []
  rows = [
    [setting.key, *values, repr(setting.default), setting.meaning]
    for setting in settings_table.ALL
    if set(values := _values(known, setting.key)) != {repr(setting.default)}
  ]
  labels = [run.label for run in runs]
  if len(runs) > 1:
    unequal = [row for row in rows if row[1] != row[2]]
    parts.append(
      html.table(
        ["setting", *labels, "default", "meaning"],
        unequal,
        f"Different in the two runs: {len(unequal)}",
      )
    )
  parts.append(
    html.table(
      ["setting", *labels, "default", "meaning"],
      rows,
      f"Different from the default: {len(rows)} of {len(settings_table.ALL)}",
    )
  )
  return "".join(parts)


def _values(runs: Sequence[Run], key: str) -> list[str]:
  return [repr(settings_table.value_of(run.config, key)) for run in runs]


def config_file(run: Run) -> str:
  """A config file with the settings of a run, for `--config`."""
  lines = [
    f"  config.{setting.key} = {value!r}"
    for setting in settings_table.ALL
    if (value := settings_table.value_of(run.config, setting.key))
    != setting.default
  ]
  label = html.clean(run.label).replace("\\", "/").replace('"', "'")
  return _CONFIG.format(label=label, lines="\n".join(lines) or "  pass")


def origin(runs: Sequence[Run], command: str) -> str:
  """Versions, machine, dates of the stages, and commands to repeat."""
  parts = []
  for run in runs:
    rows = [
      [
        key,
        manifest.get("stage", ""),
        manifest.get("created", ""),
        manifest["version"] or "–",
        html.number(manifest["cores"]) if "cores" in manifest else "–",
        html.number(manifest["seconds"]) if "seconds" in manifest else "–",
      ]
      for key, manifest in sorted(
        run.manifests.items(), key=lambda item: item[1].get("created", "")
      )
    ]
    head = ["output", "stage", "made", "dpr-jax", "devices", "seconds"]
    parts.append(html.table(head, rows, f"{run.label}: {run.workdir.root}"))
    if run.config is not None:
      parts.append(
        "<details><summary>Commands that repeat"
        f" {html.text(run.label)}</summary>"
        "<p>Save as <code>repeat.py</code>:</p>"
        f"<pre>{html.text(config_file(run))}</pre>"
        "<pre>dpr-jax run --config=repeat.py --workdir=NEW</pre></details>"
      )
  machine = {
    "this page": f"{command} (dpr-jax {version.__version__})",
    "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
    "CPU": f"{_processor()}, {os.cpu_count()} cores",
    "Python": platform.python_version(),
  } | {name: _installed(name) for name in _LIBRARIES}
  parts.append("<h3>Where this page was made</h3>" + html.definition(machine))
  return "".join(parts)


def _installed(name: str) -> str:
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return "not installed"


def _processor() -> str:
  """Model of the CPU; Linux names it in a file."""
  try:
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
      for line in file:
        if line.startswith("model name"):
          return line.partition(":")[2].strip()
  except OSError:
    pass
  return platform.processor() or "unknown"
