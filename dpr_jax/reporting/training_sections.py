"""Sections on what was trained on, and how: curves, negatives, the reader.

Each function takes the runs that the report is about (one, or two with
`--against`) and returns the HTML of its section.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import mined_negatives
from dpr_jax.evaluation import answer_scores, significance, verdict
from dpr_jax.evaluation.ranked_results import read_results
from dpr_jax.reporting import html, plots
from dpr_jax.reporting.runs import Run

_LOST = "lost_"
_SECONDS = "_seconds"
# Columns of metrics.jsonl: title, label of the y axis.
_TRAINING = {
  "loss": ("Loss of the training batches", "loss"),
  "distill_loss": ("Distance from the teacher", "distance"),
  "dev_loss": ("Loss on the dev pool", "dev loss"),
  "dev_average_rank": (
    "Average rank of the gold passage in the dev pool (lower is better)",
    "average rank",
  ),
  "dev_top1": ("Gold passage first in the dev pool", "share of questions"),
  "dev_em": ("Exact match on the dev questions", "share of questions"),
  "accuracy": ("In-batch accuracy", "share of questions"),
  "learning_rate": ("Learning rate", "learning rate"),
  "gradient_norm": ("Norm of the gradient, before clipping", "norm"),
  "questions_per_second": ("Speed", "questions per second"),
  "useful_tokens": ("Useful tokens of a step, without padding", "tokens"),
  "padding_share": ("Share of padding in the batches", "share of places"),
}
_READER = {
  **{column: _TRAINING[column] for column in ("loss", "dev_em")},
  "accuracy": (
    "Training questions whose positive passage ranks first",
    "share of questions",
  ),
  **{
    column: _TRAINING[column]
    for column in ("learning_rate", "questions_per_second")
  },
}


def training(runs: Sequence[Run]) -> str:
  """Curves of the retriever's training, and where its time went."""
  if not any(run.training for run in runs):
    return html.missing("The towers were not trained.", _command("train", runs))
  rows = {run.label: run.training for run in runs if run.training}
  return (
    _verdicts(runs)
    + _summary(rows, runs, "training")
    + _curves(rows, _TRAINING)
    + _time(rows)
  )


def _verdicts(runs: Sequence[Run]) -> str:
  """The verdict of each finished training on its dev pool."""
  return "".join(
    html.paragraph(f"{run.label}: {verdict.line_of_pool(found)}.")
    for run in runs
    if (found := run.manifests.get("training", {}).get("verdict"))
  )


def _command(command: str, runs: Sequence[Run], more: str = "") -> str:
  return f"dpr-jax {command} --workdir={runs[0].workdir.root}{more}"


def _summary(
  rows: Mapping[str, list[dict[str, Any]]], runs: Sequence[Run], stage: str
) -> str:
  """Steps, first and last figures, and what was selected."""
  table = []
  for run in runs:
    steps = [row for row in rows.get(run.label, ()) if "loss" in row]
    dev = [row for row in rows.get(run.label, ()) if "dev_loss" in row]
    manifest = run.manifests.get(stage, {})
    selected = manifest.get("selected", {})
    if not steps:
      continue
    table.append(
      [
        run.label,
        html.number(steps[-1]["step"]),
        f"{html.number(steps[0]['loss'])} → {html.number(steps[-1]['loss'])}",
        f"{html.number(dev[0]['dev_loss'])} →"
        f" {html.number(dev[-1]['dev_loss'])}"
        if dev
        else "–",
        ", ".join(str(step) for step in selected.get("steps", []))
        + (f" ({selected['why']})" if selected.get("why") else "")
        or "–",
        html.number(manifest["seconds"]) if "seconds" in manifest else "–",
      ]
    )
  head = ["run", "steps", "loss", "dev loss", "selected step", "seconds"]
  return html.table(head, table)


def _curves(
  rows: Mapping[str, list[dict[str, Any]]],
  columns: Mapping[str, tuple[str, str]],
) -> str:
  """Figures of the columns of `rows`, with their titles and units."""
  figures = []
  for column, (title, unit) in columns.items():
    series = []
    for number, (label, found) in enumerate(rows.items()):
      points = [
        (row["step"], row[column])
        for row in found
        if isinstance(row.get(column), int | float)
      ]
      if points:
        x, y = zip(*points, strict=True)
        series.append(plots.Series(label, x, y, style=number))
    if series and any(len(each.x) > 1 for each in series):
      most = 1 if unit.startswith("share") else None
      figures.append(plots.curves(title, series, x="step", y=unit, most=most))
  return f'<div class="figures">{"".join(figures)}</div>'


def _time(rows: Mapping[str, list[dict[str, Any]]]) -> str:
  """Where the wall time went, from the last row of each run."""
  table = []
  for label, found in rows.items():
    last = next((row for row in reversed(found) if "run_seconds" in row), None)
    if last is None:
      continue
    lost = {
      key.removeprefix(_LOST).removesuffix(_SECONDS): value
      for key, value in last.items()
      if key.startswith(_LOST) and key.endswith(_SECONDS)
    }
    steps = last["run_seconds"] - sum(lost.values())
    for cause, seconds in {"steps": steps, **lost}.items():
      share = seconds / max(last["run_seconds"], 1e-9)
      table.append([f"{label}: {cause}", f"{seconds:.1f}", html.percent(share)])
  if not table:
    return ""
  head = ["wall time", "seconds", "percent"]
  return html.table(head, table, "Where the time of the training went")


def reader(runs: Sequence[Run]) -> str:
  """Exact match by passages read, and the curves of the reader's training."""
  if not any(run.scores or run.reader for run in runs):
    return html.missing(
      "No reader was trained.",
      _command("train-reader", runs, " --config.reader.train=results"),
    )
  parts = [_by_passages(runs)]
  rows = {run.label: run.reader for run in runs if run.reader}
  if rows:
    parts += [_summary(rows, runs, "reader"), _curves(rows, _READER)]
  return "".join(parts)


def _by_passages(runs: Sequence[Run]) -> str:
  table, series = [], []
  for run in runs:
    for method, scores in run.scores.items():
      label = f"{method} ({run.label})" if len(runs) > 1 else method
      if "em" not in scores or method not in run.systems:
        continue
      total = len(run.systems[method].ranks.answer)
      total -= int(scores.get("questions_not_scored", 0))
      counts = sorted(
        int(key.removeprefix("em_"))
        for key in scores
        if key.removeprefix("em_").isdigit()
      )
      keys = {str(count): f"_{count}" for count in counts} or {"all": ""}
      bands = []
      for count, suffix in keys.items():
        em = scores[f"em{suffix}"]
        bands.append(significance.share_interval(round(em * total), total))
        f1 = html.percent(scores[f"f1{suffix}"])
        cells = [html.percent(em), html.interval(bands[-1]), f1]
        table.append([label, count, *cells, html.number(total)])
      if len(counts) > 1:
        shares = [100 * scores[f"em_{count}"] for count in counts]
        low, high = ([100 * band[i] for band in bands] for i in (0, 1))
        series.append(plots.Series(label, counts, shares, low, high))
  if not table:
    return html.missing("No answers were read.", _command("read", runs))
  head = ["results of", "passages read", "EM", "95 % interval", "F1"]
  figure = ""
  if series:
    figure = plots.curves(
      "Exact match by passages read, with 95 % bands",
      series,
      x="passages read",
      y="percent of questions",
      most=100,
    )
    figure = f'<div class="figures">{figure}</div>'
  return html.table([*head, "questions"], table) + _paired(runs) + figure


def _paired(runs: Sequence[Run]) -> str:
  """Exact match of two runs with a reader, on the same questions."""
  if len(runs) < 2:
    return ""
  one, other = runs
  rows = []
  for method in one.answers:
    if method not in other.answers:
      continue
    first, second = (
      workdir_lib.read_json(run.answers[method]) for run in (one, other)
    )
    texts = [[row["question"] for row in read] for read in (first, second)]
    if texts[0] != texts[1]:
      continue
    pairs = [
      pair
      for pair in zip(
        *map(answer_scores.exact_matches, (first, second)), strict=True
      )
      if None not in pair
    ]
    if not pairs:
      continue
    test = significance.mcnemar(*zip(*pairs, strict=True))
    rows.append(
      [
        method,
        *(html.percent(test[key]) for key in ("one", "other")),
        html.points(test["difference"]),
        html.interval(test["interval"], signed=True),
        html.probability(test["p"]),
      ]
    )
  if not rows:
    return html.paragraph(
      "The readers are not compared: they read no results of the same method"
      " and questions.",
      "missing",
    )
  head = ["EM", one.label, other.label, "difference", "95 % interval", "p"]
  return html.table(head, rows)


def negatives(runs: Sequence[Run]) -> str:
  """How many were mined, their ranks and scores, and what was excluded."""
  if not any(each.counts("negatives") for each in runs):
    return html.missing("No hard negatives were mined.", _command("mine", runs))
  rows = []
  for each in runs:
    for ranker in mined_negatives.RANKERS:
      key = "negatives" if ranker == "bm25" else f"negatives/{ranker}"
      for split in ("train", "dev"):
        counts = each.counts(key)
        if counts and f"{split}_questions" in counts:
          rows.append(
            [
              f"{each.label}: {'BM25' if ranker == 'bm25' else ranker},"
              f" {split}",
              *(
                html.number(counts[f"{split}_{name}"])
                for name in ("questions", "fewer_than_keep")
              ),
              html.number(counts[f"{split}_without_negatives"]),
            ]
          )
  head = ["negatives", "questions", "fewer than mine.keep", "none at all"]
  sources = {
    f"{ranker} ({run.label})" if len(runs) > 1 else ranker: found
    for run in runs
    for ranker, method in (("bm25", "bm25"), ("model", "dense"))
    if (
      found := run.attempt(
        lambda run=run, ranker=ranker, method=method: _mined(
          run, ranker, method
        ),
        {},
      )
    )
  }
  return html.table(head, rows) + _histograms(sources)


def _mined(run: Run, ranker: str, method: str) -> dict[str, Any]:
  """Ranks and scores of mined dev negatives in the results of their ranker.

  {} = the results or the negatives are not there, are of other questions, or
  the results are from other software.
  """
  path = run.workdir.negatives / mined_negatives.files(ranker)["dev"]
  system = run.systems.get(method)
  if system is None or run.name != "dev" or not path.exists():
    return {}
  if not system.sidecar:
    return {}
  mined = mined_negatives.read(path)
  if len(mined) != len(system.ranks.answer):
    return {}
  ranks, scores, before, answered = [], [], 0, 0
  for ids, entry in zip(mined, read_results(system.path), strict=True):
    wanted = set(ids)
    place = {str(hit["id"]): rank for rank, hit in enumerate(entry["ctxs"])}
    kept = sorted(place[each] for each in wanted if each in place)
    best = float(entry["ctxs"][0]["score"]) if entry["ctxs"] else 0.0
    for rank in kept:
      ranks.append(rank + 1)
      if best > 0:
        scores.append(float(entry["ctxs"][rank]["score"]) / best)
    passed = entry["ctxs"][: kept[-1] + 1] if kept else []
    before += len(passed)
    answered += sum(bool(hit["has_answer"]) for hit in passed)
  return {
    "ranks": ranks,
    "scores": scores,
    "passed": before,
    "answered": answered,
  }


def _histograms(sources: Mapping[str, Mapping[str, Any]]) -> str:
  if not any(found["ranks"] for found in sources.values()):
    return ""
  deepest = max(max(found["ranks"]) for found in sources.values())
  ranks, scores = [], []
  for number, (ranker, found) in enumerate(sources.items()):
    x, y = plots.histogram(found["ranks"], 1, deepest + 1)
    ranks.append(plots.Series(ranker, x, y, style=number))
    x, y = plots.histogram(found["scores"], 0.0, 1.0)
    scores.append(plots.Series(ranker, x, y, style=number))
  axis = "share of negatives"
  table = [
    [
      ranker,
      html.number(found["passed"]),
      html.number(found["answered"]),
      html.percent(found["answered"] / max(1, found["passed"])),
    ]
    for ranker, found in sources.items()
  ]
  head = ["source", "candidates", "with an answer", "percent"]
  title = (
    "Candidates of the dev questions down to the last negative kept: those with"
    " an answer would be false negatives, and were excluded"
  )
  shown = plots.bars("Ranks of mined dev negatives", ranks, x="rank", y=axis)
  shown += plots.bars(
    "Scores of mined dev negatives, relative to the best hit",
    scores,
    x="score / best score of the question",
    y=axis,
  )
  return f'<div class="figures">{shown}</div>{html.table(head, table, title)}'
