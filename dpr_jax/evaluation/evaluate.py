"""Top-k accuracy: how often is an answer among the first k passages?

In come `results/<name>.<method>.json` (ours or any in DPR's results format),
out come `evaluation/<name>.json` and a table.  "top20" is the share of all
questions with an answer string in one of the first 20 passages, "gold_top20"
the share with one of their own positive passages there, where those are known.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections
from absl import logging

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import answer_matching, beir_files, file_streams
from dpr_jax.evaluation import (
  exact_match,
  qrels_measures,
  significance,
  staleness,
  tables,
)

_METHOD = re.compile(r"[\w-]+")


def top_k_accuracy(
  first_hit_ranks: Sequence[int | None], ks: Sequence[int]
) -> dict[int, float]:
  """Share of all questions whose first hit has a rank below k.

  Args:
    first_hit_ranks: one per question, from 0; None where nothing was hit or
      nothing was retrieved, which is a miss.
    ks: numbers of passages looked at.

  Raises:
    ValueError: no questions: there is no share of nothing.
  """
  if not len(first_hit_ranks):
    raise ValueError("top-k accuracy of no questions is not defined")
  ranks = [rank for rank in first_hit_ranks if rank is not None]
  return {k: sum(rank < k for rank in ranks) / len(first_hit_ranks) for k in ks}


@dataclasses.dataclass
class Ranks:
  """What one results file says.

  Attributes:
    answer: rank of the first passage with an answer, per question.
    gold: rank of the first positive passage, per question that has one.
    depth: passages retrieved per question, at most.
    with_answers: questions that have answer strings.
  """

  answer: list[int | None]
  gold: list[int | None]
  depth: int
  with_answers: int = 0


def evaluate(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  *,
  name: str = "dev",
  match: str | None = None,
  qrels: str | os.PathLike | None = None,
  compare: Sequence[str] | None = None,
  overwrite: bool = False,
) -> dict[str, dict[str, float]]:
  """Measures every results file of a question set, writes and prints them.

  Args:
    config: reads `evaluate.match` and `evaluate.ranks`.
    workdir: holds `results/<name>.<method>.json`.
    name: the question set, as it was retrieved.
    match: "string" or "regex", instead of `config.evaluate.match`.
    qrels: judgements in BEIR's or TREC's format, or "gold": the questions' own
      positives; measures over them are added.
    compare: two methods whose difference is tested, and reported question by
      question in `evaluation/<name>.<one>-vs-<other>.json`.
    overwrite: also where nothing has changed.

  Returns:
    {method: {"top1": fraction, ..., "gold_top1": fraction, ..., "em":
    fraction, "f1": fraction, "em_10": ..., ...}}; the last ones of a method
    whose results were read, with the numbers of passages read.

  Raises:
    InputError: no results of this name, or malformed or damaged ones.
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
    method: workdir_lib.fingerprint(
      [workdir_lib.fingerprint_file(path), sidecars[method]]
    )
    for method, path in paths.items()
  }
  inputs |= {
    f"{method} answers": workdir_lib.fingerprint_file(path)
    for method, path in answered.items()
  }
  if qrels is not None and qrels != qrels_measures.GOLD:
    inputs["qrels"] = workdir_lib.fingerprint_file(qrels)
  stage = workdir_lib.Stage(
    name="evaluate",
    folder=output.parent,
    config={
      "ranks": ks,
      "match": match,
      **({"judged": True} if qrels is not None else {}),
    },
    inputs=inputs,
    manifest_name=f"{name}.manifest.json",
  )
  if stage.is_current(overwrite):
    measures = workdir_lib.read_json(output)
  else:
    stage.begin([output])
    measures, counts = {}, {}
    for method, path in paths.items():
      ranks = read_ranks(path, sidecars[method], match)
      measures[method] = _measures(ranks, ks, path.name)
      counts[f"{method}_questions"] = len(ranks.answer)
      counts[f"{method}_questions_with_gold"] = len(ranks.gold)
      if qrels is not None:
        measures[method] |= _judged(path, sidecars[method], qrels, ranks.depth)
    for method, path in answered.items():
      measures.setdefault(method, {}).update(exact_match.file_scores(path))
    workdir_lib.write_json(output, measures)
    sha256 = workdir_lib.fingerprint_file(output)
    stage.finish(counts, files={output.name: sha256})
  title = f"{name}: percent of questions"
  tables.print_table(tables.comparison_table(measures, title))
  if pair:
    _compare(paths, sidecars, match, ks, pair, output)
  return measures


def _name_missing(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  name: str,
  paths: Mapping[str, pathlib.Path],
) -> None:
  """Says which methods have no results: of the config, and those that had."""
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
  """The two methods to compare; `InputError` where they are not two."""
  if not compare:
    return None
  if len(set(compare)) != 2 or not set(compare) <= paths.keys():
    raise errors.InputError(
      f"--compare={','.join(compare)}: must be two of the methods with results:"
      f" {', '.join(paths)}"
    )
  return compare[0], compare[1]


def _judged(
  path: pathlib.Path,
  sidecar: Mapping[str, Any],
  qrels: str | os.PathLike,
  depth: int,
) -> dict[str, float]:
  """Measures over judgements of one method's run."""
  if qrels == qrels_measures.GOLD:
    found = qrels_measures.of_gold(sidecar.get("gold", []))
    if not found:
      raise errors.InputError(
        f"--qrels={qrels_measures.GOLD}: {path} has no questions with"
        " positives: give a file of judgements"
      )
  else:
    found = beir_files.read_qrels(qrels)
  # A run of the whole corpus is as deep as any measure.
  whole = depth == sidecar.get("counts", {}).get("passages")
  return qrels_measures.measures(
    path.with_suffix(".trec"), found, None if whole else depth
  )


def _compare(
  paths: Mapping[str, pathlib.Path],
  sidecars: Mapping[str, Mapping[str, Any]],
  match: str,
  ks: Sequence[int],
  pair: tuple[str, str],
  output: pathlib.Path,
) -> None:
  """Tests and reports the difference of two methods."""
  one, other = (
    read_ranks(paths[method], sidecars[method], match) for method in pair
  )
  if len(one.answer) != len(other.answer) or len(one.gold) != len(other.gold):
    raise errors.InputError(
      f"--compare={','.join(pair)}: {len(one.answer)} and {len(other.answer)}"
      " questions: retrieve both again"
    )
  shown = [k for k in ks if k <= min(one.depth, other.depth)]
  found = significance.compare(
    pair, (one.answer, other.answer), (one.gold, other.gold), shown
  )
  found["disagreements"] = {
    f"top{k}": significance.disagreements(
      read_results(paths[pair[0]]), (one.answer, other.answer), k
    )
    for k in shown
  }
  path = significance.file_of(output, pair)
  workdir_lib.write_json(path, found)
  tables.print_table(significance.table(found))
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
  found = {}
  for path in sorted(folder.glob("*.json")):
    method = path.name.removeprefix(f"{name}.").removesuffix(suffix)
    # `dev.bm25.manifest.json` and, for `nq`, `nq.test.bm25.json` are others.
    if path.name == f"{name}.{method}{suffix}" and _METHOD.fullmatch(method):
      found[method] = path
  return found


def _measures(ranks: Ranks, ks: Sequence[int], file: str) -> dict[str, float]:
  """The columns of one method; those beyond its depth are left out."""
  shown = [k for k in ks if k <= ranks.depth]
  if shown != list(ks):
    logging.warning(
      "evaluate: %s holds %d passages per question, so no top-%s",
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


def read_ranks(
  path: pathlib.Path, sidecar: Mapping[str, Any], match: str
) -> Ranks:
  """First ranks from a results file, read question by question.

  The answers are looked for again where the file was not written with this
  `match`, or not by us.

  Args:
    path: in DPR's results format.
    sidecar: the manifest beside it, {} for a file from elsewhere.
    match: "string" or "regex".

  Raises:
    InputError: the file is malformed, empty, or of other questions than its
      manifest.
  """
  trusted = sidecar.get("match") == match
  gold = sidecar.get("gold", [])
  matcher = answer_matching.AnswerMatcher(match=match)
  ranks = Ranks([], [], int(sidecar.get("depth", 0)))
  row = -1
  for row, entry in enumerate(read_results(path)):
    try:
      hits = entry["ctxs"]
      found = (
        [bool(hit["has_answer"]) for hit in hits]
        if trusted
        else matcher.hits(
          entry["answers"],
          [str(hit["id"]) for hit in hits],
          [hit["text"] for hit in hits],
          row,
        )
      )
      ids = [str(hit["id"]) for hit in hits]
    except (KeyError, TypeError, AttributeError) as error:
      raise errors.InputError(
        f"{path}, question {row}: not in DPR's results format ({error!r}):"
        " {question, answers, ctxs: [{id, title, text, score, has_answer}]}"
      ) from error
    ranks.answer.append(_first(found))
    ranks.with_answers += bool(entry.get("answers"))
    wanted = set(gold[row]) if row < len(gold) else ()
    if wanted:
      ranks.gold.append(_first([passage in wanted for passage in ids]))
    if not sidecar:
      ranks.depth = max(ranks.depth, len(hits))
  if row < 0:
    raise errors.InputError(f"{path}: no questions in it")
  matcher.warn(f"evaluate: {path}")
  if sidecar and len(gold) != row + 1:
    raise errors.InputError(
      f"{path} has {row + 1} questions, its manifest {len(gold)}: run `dpr-jax"
      " retrieve --overwrite`"
    )
  return ranks


def sidecar_of(path: pathlib.Path, stage: str = "retrieve") -> dict[str, Any]:
  """The manifest beside results or answers; {} for a file from elsewhere.

  Args:
    path: of the file.
    stage: that writes such files, "retrieve" or "read".

  Raises:
    InputError: the file is not the one that its manifest describes.
  """
  manifest = path.with_suffix(".manifest.json")
  if not manifest.exists():
    if stage == "retrieve":
      logging.warning(
        "%s has no manifest (it is from elsewhere): gold passages are"
        " not known and answers are looked for again",
        path,
      )
    return {}
  sidecar = workdir_lib.read_record(manifest)
  sidecar.pop("created", None)
  expected = sidecar.get("files", {}).get(path.name)
  if expected != (found := workdir_lib.fingerprint_file(path)):
    raise errors.InputError(
      f"{path} is not the file that {manifest.name} describes (its sha256 is"
      f" {workdir_lib.short(found)}, {workdir_lib.short(expected)} was"
      " recorded): it is damaged, was replaced, or was not finished; run"
      f" `dpr-jax {stage} --overwrite`, or delete {manifest.name} to evaluate"
      " the file as it is"
    )
  run = path.with_suffix(".trec").name
  if run in sidecar.get("files", {}):
    workdir_lib.check_files(path.parent, sidecar, [run])
  return sidecar


def read_results(path: pathlib.Path) -> Iterator[Mapping[str, Any]]:
  """Questions of a results file in DPR's format, one at a time.

  Raises:
    InputError: the file is no JSON list, or is cut off.
  """
  with (
    file_streams.open_bytes(path) as file,
    file_streams.stream_errors(path) as position,
  ):
    rows = file_streams.json_array(path, file, position, "question", first=0)
    for where, entry, _ in rows:
      if not isinstance(entry, dict):
        raise errors.InputError(f"{where}: {str(entry)[:80]} is no JSON object")
      yield entry


def _first(hits: Sequence[bool]) -> int | None:
  return next((rank for rank, hit in enumerate(hits) if hit), None)
