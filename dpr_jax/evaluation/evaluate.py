"""The stage `evaluate`: top-k accuracy, judged measures, and answer scores.

Input: `results/<name>.<method>.json` (ours or any in DPR's results format).
Output: `evaluation/<name>.json` and a table.  "top20" is the share of all
questions with an answer string in one of the first 20 passages, "gold_top20"
the share with one of their positive passages there, of the questions that have
some.
"""

import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections
from absl import logging

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import answer_matching, beir_files
from dpr_jax.evaluation import (
  answer_scores,
  qrels_measures,
  significance,
  staleness,
  tables,
  trec_runs,
)
from dpr_jax.evaluation.ranked_results import (
  Ranks,
  read_ranks,
  read_results,
  sidecar_of,
)

DROP_SELF = ("auto", "on", "off")  # values of config.evaluate.drop_self
_METHOD = re.compile(r"[\w-]+")


def top_k_accuracy(
  first_hit_ranks: Sequence[int | None], ks: Sequence[int]
) -> dict[int, float]:
  """Share of all questions whose first hit has a rank below k.

  Args:
    first_hit_ranks: rank of the first hit per question, from 0; None = no hit
      or nothing retrieved, which counts as a miss.
    ks: values of k.

  Raises:
    ValueError: there are no questions.
  """
  if not len(first_hit_ranks):
    raise ValueError("top-k accuracy of no questions is not defined")
  ranks = [rank for rank in first_hit_ranks if rank is not None]
  return {k: sum(rank < k for rank in ranks) / len(first_hit_ranks) for k in ks}


def evaluate(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  *,
  name: str = "dev",
  match: str | None = None,
  qrels: str | os.PathLike | None = None,
  judged: str | None = None,
  compare: Sequence[str] | None = None,
  overwrite: bool = False,
) -> dict[str, dict[str, float | int]]:
  """Measures every results file of a question set, writes and prints them.

  Args:
    config: config of the experiment; section `evaluate` is read.
    workdir: its folder, with `results/<name>.<method>.json`.
    name: name of the question set, as in `retrieve`.
    match: "string" or "regex"; None = `config.evaluate.match`.
    qrels: path of judgements in BEIR's or TREC's format, or "gold" for the
      questions' own positives; adds measures over them, and the counts of
      `qrels_measures.measures`.  None = no judged measures.
    judged: "asked" (the default) = measures over the questions that were both
      asked and judged; "all" = over all judged questions.
    compare: two methods whose difference is tested, and reported question by
      question in `evaluation/<name>.<one>-vs-<other>.json`; None = no test.
    overwrite: run even if nothing has changed.

  Returns:
    {method: {"top1": fraction, ..., "gold_top1": fraction, ..., "em":
    fraction, "f1": fraction, "em_10": ..., ...}}; the answers' scores only for
    methods whose results were read, by the number of passages read.

  Raises:
    InputError: there are no results of this name, or malformed or damaged ones.
  """
  match = config_lib.one_of(
    "evaluate.match", match or config.evaluate.match, answer_matching.MATCHES
  )
  ks = sorted(
    {
      int(config_lib.at_least("evaluate.ranks", k, 1))
      for k in config.evaluate.ranks
    }
  )
  judging = _judging(config, qrels, judged)
  workdir_lib.check_name("--name", name)
  paths = results_files(workdir, name)
  answered = answer_files(workdir, name)
  if not paths and not answered:
    raise errors.InputError(
      f"{workdir.results(name, '*')}: no results of this name; run `dpr-jax"
      f" retrieve --name={name}` first"
    )
  _name_missing(config, workdir, name, paths)
  pair = _pair(compare, paths)
  output = workdir.evaluation(name)
  sidecars = {method: sidecar_of(path) for method, path in paths.items()}
  for method, sidecar in sidecars.items():
    staleness.check_results(workdir, name, method, sidecar)
  for method, path in answered.items():
    staleness.check_answers(workdir, name, method, sidecar_of(path, "read"))
  inputs = {
    method: results_fingerprint(path, sidecars[method])
    for method, path in paths.items()
  }
  inputs |= {
    f"{method} answers": workdir_lib.fingerprint_file(path)
    for method, path in answered.items()
  }
  if qrels is not None and qrels != qrels_measures.GOLD:
    inputs["qrels"] = workdir_lib.fingerprint_file(qrels)
  if qrels is not None and _has_corpus(workdir):
    inputs |= workdir_lib.dataset_inputs(workdir, "passages")
  stage = workdir_lib.Stage(
    name="evaluate",
    folder=output.parent,
    config={
      "ranks": ks,
      "match": match,
      **judging,
    },
    inputs=inputs,
    manifest_name=f"{name}.manifest.json",
  )
  if stage.is_current(overwrite):
    measures = workdir_lib.read_json(output)
  else:
    stage.begin([output])
    measures, counts = {}, {}
    judgements = None
    if qrels is not None and qrels != qrels_measures.GOLD:
      judgements = beir_files.read_qrels(qrels)
    for method, path in paths.items():
      ranks = read_ranks(path, sidecars[method], match)
      measures[method] = _measures(ranks, ks, path.name)
      counts[f"{method}_questions"] = len(ranks.answer)
      counts[f"{method}_questions_with_gold"] = len(ranks.gold)
      if judging:
        measures[method] |= _judged(
          workdir, path, sidecars[method], judgements, ranks, judging
        )
    for method, path in answered.items():
      measures.setdefault(method, {}).update(answer_scores.file_scores(path))
    workdir_lib.write_json(output, measures)
    sha256 = workdir_lib.fingerprint_file(output)
    stage.finish(counts, files={output.name: sha256})
  title = f"{name}: percent of questions"
  tables.print_table(tables.comparison_table(measures, title))
  for line in qrels_measures.note(measures):
    logging.info("evaluate: %s", line)
    print(line)
  if pair:
    _compare(paths, sidecars, match, ks, pair, output)
  return measures


def results_fingerprint(path: pathlib.Path, sidecar: Mapping[str, Any]) -> str:
  """Fingerprint of a results file and its manifest ({} = none)."""
  return workdir_lib.fingerprint([workdir_lib.fingerprint_file(path), sidecar])


def _name_missing(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  name: str,
  paths: Mapping[str, pathlib.Path],
) -> None:
  """Warns about methods without results: of the config, or that had some."""
  suffix = ".manifest"
  had = _by_method(workdir.results(name, "").parent, name, f"{suffix}.json")
  missing = [
    method
    for method in dict.fromkeys([*config.retrieve.methods, *had])
    if method not in paths
  ]
  if missing:
    logging.warning(
      "evaluate: no results of %s for %s: run `dpr-jax retrieve --name=%s"
      " --method=%s`",
      ", ".join(missing),
      name,
      name,
      ",".join(missing),
    )


def _pair(
  compare: Sequence[str] | None, paths: Mapping[str, pathlib.Path]
) -> tuple[str, str] | None:
  """The two methods to compare; `InputError` if they are not two."""
  if not compare:
    return None
  if len(set(compare)) != 2 or not set(compare) <= paths.keys():
    raise errors.InputError(
      f"--compare={','.join(compare)}: must be two of the methods with results:"
      f" {', '.join(paths) or 'none'}"
    )
  return compare[0], compare[1]


def _judging(
  config: ml_collections.ConfigDict,
  qrels: str | os.PathLike | None,
  judged: str | None,
) -> dict[str, str]:
  """How judgements are used, for the manifest; {} = no judgements."""
  drop_self = config_lib.one_of(
    "evaluate.drop_self", config.evaluate.drop_self, DROP_SELF
  )
  if judged is not None and judged not in qrels_measures.JUDGED:
    raise errors.InputError(
      f"--judged={judged}: must be one of {', '.join(qrels_measures.JUDGED)}"
    )
  if qrels is None:
    if judged is not None:
      raise errors.InputError(f"--judged={judged}: needs --qrels as well")
    return {}
  return {"judged": judged or qrels_measures.JUDGED[0], "drop_self": drop_self}


def _judged(
  workdir: workdir_lib.Workdir,
  path: pathlib.Path,
  sidecar: Mapping[str, Any],
  judgements: beir_files.Judgements | None,
  ranks: Ranks,
  judging: Mapping[str, str],
) -> dict[str, float | int]:
  """Judged measures of one method's run; judgements None = gold passages."""
  ids = sidecar.get("ids", [])
  if judgements is None:
    judgements = qrels_measures.of_gold(sidecar.get("gold", []), ids)
    if not judgements:
      raise errors.InputError(
        f"--qrels={qrels_measures.GOLD}: {path} has no questions with"
        " positives: give a file of judgements"
      )
  # A run of the whole corpus is as deep as any measure.
  whole = ranks.depth == sidecar.get("counts", {}).get("passages")
  rows = [str(row) for row in range(len(ranks.answer))] if sidecar else None
  run = path.with_suffix(".trec")
  if rows and not ids and not set(trec_runs.read(run)) <= set(rows):
    rows = None  # of an older version, which did not record BEIR's ids
  own = bool(ids) or bool(sidecar and rows is None)
  asked = qrels_measures.Asked(
    questions=ids or rows,
    depth=None if whole else ranks.depth,
    in_corpus=_in_corpus(workdir),
    drop_self=judging["drop_self"] == "on"
    or (judging["drop_self"] == "auto" and own),
    every=judging["judged"] == "all",
  )
  return qrels_measures.measures(run, judgements, asked)


def _has_corpus(workdir: workdir_lib.Workdir) -> bool:
  return (workdir.data / workdir_lib.MANIFEST).exists()


def _in_corpus(
  workdir: workdir_lib.Workdir,
) -> Callable[[list[str]], Sequence[bool]] | None:
  """Function that tests ids for the corpus; None = there is no corpus."""
  if not _has_corpus(workdir):
    return None
  from dpr_jax.data import prepare

  table = prepare.open_passages(workdir)
  return lambda ids: (table.rows_of(ids) >= 0).tolist()


def _compare(
  paths: Mapping[str, pathlib.Path],
  sidecars: Mapping[str, Mapping[str, Any]],
  match: str,
  ks: Sequence[int],
  pair: tuple[str, str],
  output: pathlib.Path,
) -> None:
  """Tests the difference of two methods; writes and prints the result."""
  one, other = (
    read_ranks(paths[method], sidecars[method], match) for method in pair
  )
  if len(one.answer) != len(other.answer) or len(one.gold) != len(other.gold):
    raise errors.InputError(
      f"--compare={','.join(pair)}: they have {len(one.answer)} and"
      f" {len(other.answer)} questions: retrieve both again"
    )
  shown = [k for k in ks if k <= min(one.depth, other.depth)]
  report = significance.compare(
    pair, (one.answer, other.answer), (one.gold, other.gold), shown
  )
  report["disagreements"] = {
    f"top{k}": significance.disagreements(
      read_results(paths[pair[0]]), (one.answer, other.answer), k
    )
    for k in shown
  }
  path = significance.file_of(output, pair)
  workdir_lib.write_json(path, report)
  tables.print_table(significance.table(report))
  print(significance.NOTE)
  logging.info("evaluate: question by question in %s", path)


def results_files(
  workdir: workdir_lib.Workdir, name: str
) -> dict[str, pathlib.Path]:
  """Results of a question set by method, in alphabetical order."""
  return _by_method(workdir.results(name, "bm25").parent, name)


def answer_files(
  workdir: workdir_lib.Workdir, name: str
) -> dict[str, pathlib.Path]:
  """Answers to a question set by method, in alphabetical order."""
  return _by_method(workdir.answers(name).parent, name)


def _by_method(
  folder: pathlib.Path, name: str, suffix: str = ".json"
) -> dict[str, pathlib.Path]:
  paths = {}
  for path in sorted(folder.glob("*.json")):
    method = path.name.removeprefix(f"{name}.").removesuffix(suffix)
    # `dev.bm25.manifest.json` and, for `nq`, `nq.test.bm25.json` are others.
    if path.name == f"{name}.{method}{suffix}" and _METHOD.fullmatch(method):
      paths[method] = path
  return paths


def _measures(ranks: Ranks, ks: Sequence[int], file: str) -> dict[str, float]:
  """The measures of one method, without those beyond its depth."""
  shown = [k for k in ks if k <= ranks.depth]
  if shown != list(ks):
    logging.warning(
      "evaluate: %s has %d passages per question, so there is no top-%s",
      file,
      ranks.depth,
      ", top-".join(str(k) for k in ks if k > ranks.depth),
    )
  measures = {}
  if ranks.with_answers:
    for k, share in top_k_accuracy(ranks.answer, shown).items():
      measures[f"top{k}"] = share
  else:
    logging.info("evaluate: %s: no question has an answer string", file)
  if not ranks.gold:
    logging.info("evaluate: %s: no gold passages are known", file)
    return measures
  if len(ranks.gold) < len(ranks.answer):
    logging.warning(
      "evaluate: %s: gold top-k is the share of the %d of %d questions that"
      " have a gold passage",
      file,
      len(ranks.gold),
      len(ranks.answer),
    )
  for k, share in top_k_accuracy(ranks.gold, shown).items():
    measures[f"gold_top{k}"] = share
  return measures
