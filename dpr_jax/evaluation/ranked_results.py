"""Reads results files and finds the rank of each question's first hit.

Input: `results/<name>.<method>.json`, ours with its manifest, or one in DPR's
results format from other software.  Output: its questions, and for each the
rank of the first passage with an answer and of the first gold passage.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import logging

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import answer_matching, file_streams


@dataclasses.dataclass
class Ranks:
  """First ranks of one results file, from 0; None = no hit.

  Attributes:
    answer: rank of the first passage with an answer, per question.
    gold: rank of the first positive passage, per question that has positives.
    depth: maximum number of passages per question.
    with_answers: number of questions with answer strings.
  """

  answer: list[int | None]
  gold: list[int | None]
  depth: int
  with_answers: int = 0


def read_ranks(
  path: pathlib.Path, sidecar: Mapping[str, Any], match: str
) -> Ranks:
  """First ranks from a results file, read question by question.

  Passages are searched for answers again if the file was not written with this
  `match`, or by other software.

  Args:
    path: path of a file in DPR's results format.
    sidecar: manifest of the file; {} = the file is from other software.
    match: "string" or "regex".

  Raises:
    InputError: the file is malformed, empty, or has another number of questions
      than its manifest.
  """
  trusted = sidecar.get("match") == match
  gold = sidecar.get("gold", [])
  matcher = answer_matching.AnswerMatcher(match=match)
  ranks = Ranks([], [], int(sidecar.get("depth", 0)))
  row = -1
  for row, entry in enumerate(read_results(path)):
    try:
      hits = entry["ctxs"]
      is_hit = (
        [bool(hit["has_answer"]) for hit in hits]
        if trusted
        else matcher.hits(
          # Keys are texts: in other files several passages may share an id.
          entry["answers"],
          [hit["text"] for hit in hits],
          [hit["text"] for hit in hits],
          row,
        )
      )
      ids = [str(hit["id"]) for hit in hits] if gold else []
    except (KeyError, TypeError, AttributeError) as error:
      raise errors.InputError(
        f"{path}, question {row}: not in DPR's results format ({error!r}):"
        " {question, answers, ctxs: [{id, title, text, score, has_answer}]}"
      ) from error
    ranks.answer.append(_first(is_hit))
    ranks.with_answers += bool(entry.get("answers"))
    wanted = set(gold[row]) if row < len(gold) else ()
    if wanted:
      ranks.gold.append(_first([passage in wanted for passage in ids]))
    if not sidecar:
      ranks.depth = max(ranks.depth, len(hits))
  if row < 0:
    raise errors.InputError(f"{path}: the file has no questions")
  matcher.warn(f"evaluate: {path}")
  if sidecar and len(gold) != row + 1:
    raise errors.InputError(
      f"{path} has {row + 1} questions, its manifest {len(gold)}: run `dpr-jax"
      " retrieve --overwrite`"
    )
  return ranks


def sidecar_of(path: pathlib.Path, stage: str = "retrieve") -> dict[str, Any]:
  """The manifest of results or answers; {} = the file is from other software.

  Args:
    path: path of the file.
    stage: stage that writes such files, "retrieve" or "read".

  Raises:
    InputError: the file is not the one that its manifest describes.
  """
  manifest = path.with_suffix(".manifest.json")
  if not manifest.exists():
    if stage == "retrieve":
      logging.warning(
        "%s has no manifest (it is not from `dpr-jax retrieve`): its gold"
        " passages are unknown, and its passages are searched for answers",
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
      " recorded): it is damaged, replaced, or incomplete; run"
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
    InputError: the file is not a JSON list, or is truncated.
  """
  with (
    file_streams.open_bytes(path) as file,
    file_streams.stream_errors(path) as position,
  ):
    rows = file_streams.json_array(path, file, position, "question", first=0)
    for where, entry, _ in rows:
      if not isinstance(entry, dict):
        raise errors.InputError(
          f"{where}: {str(entry)[:80]} is not a JSON object"
        )
      yield entry


def _first(hits: Sequence[bool]) -> int | None:
  return next((rank for rank, hit in enumerate(hits) if hit), None)
