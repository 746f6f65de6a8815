"""Reads and writes files with a teacher's scores of questions' passages.

Input: a JSON list or JSONL, also gzipped, of one object per question, in one of
three formats: `{question, passages: [ids], scores}`; mined negatives with
scores, `{question, hard_negatives: [ids], scores, positive_score}`; or DPR's
results, `{question, ctxs: [{id, score}]}`.  Output: a `Scored` per row.
"""

import contextlib
import dataclasses
import gzip
import json
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import json_objects

_FORMATS = (
  "{question, passages: [ids], scores: [numbers]}, mined negatives with"
  " `scores`, or results in DPR's format"
)


@dataclasses.dataclass(frozen=True)
class Scored:
  """The scores of a question's passages.

  Attributes:
    question: text of the question.
    ids: ids of passages.
    scores: score of each; NaN = not known.
    positive_score: score of the question's gold passage; NaN = not known, or
      the passage is among the others.
  """

  question: str
  ids: tuple[str, ...]
  scores: tuple[float, ...]
  positive_score: float = math.nan


def read(path: str | os.PathLike) -> Iterator[Scored]:
  """Yields the rows of a file, in its order.

  Raises:
    InputError: the file is missing or malformed, names the row; or it holds
      mined negatives without scores.
  """
  path = pathlib.Path(path)
  depth = _depth(path)
  for where, row, _ in json_objects.read(path, f"{_FORMATS} expected"):
    if not isinstance(row, Mapping) or not isinstance(row.get("question"), str):
      raise errors.InputError(
        f"{where}: {str(row)[:80]} has no `question`: {_FORMATS} expected"
      )
    yield _scored(where, row, depth)


def write(path: str | os.PathLike, rows: Iterable[Scored]) -> None:
  """Writes a file in the first format, gzipped if its name ends in `.gz`.

  The same rows always give the same bytes.
  """
  with contextlib.ExitStack() as stack:
    temporary = stack.enter_context(workdir_lib.replace_file(path))
    file: Any = stack.enter_context(open(temporary, "wb"))
    if str(path).endswith(".gz"):  # without a name and a time in the header
      file = stack.enter_context(gzip.GzipFile("", "wb", fileobj=file, mtime=0))
    for row in rows:
      line = {
        "question": row.question,
        "passages": list(row.ids),
        "scores": list(row.scores),
      }
      file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")


def _depth(path: pathlib.Path) -> int | None:
  """Passages of a question that were scored; None = all.

  Of results that the reader reordered only the first ones were: the others have
  made-up scores, which only keep their order.
  """
  manifest = path.with_suffix(".manifest.json")
  if not manifest.exists():
    return None
  config = workdir_lib.read_record(manifest).get("config", {})
  return config.get("rerank_depth") if isinstance(config, Mapping) else None


def _scored(where: str, row: Mapping[str, Any], depth: int | None) -> Scored:
  if isinstance(row.get("ctxs"), list):
    hits = row["ctxs"][:depth]
    if not all(isinstance(hit, Mapping) and "id" in hit for hit in hits):
      raise errors.InputError(f"{where}: ctxs must be objects with `id`")
    ids: Sequence[Any] = [str(hit["id"]) for hit in hits]
    scores: Any = [hit.get("score") for hit in hits]
    positive = None
  else:
    field = "passages" if "passages" in row else "hard_negatives"
    ids, scores = row.get(field), row.get("scores")
    positive = row.get("positive_score")
    if not isinstance(ids, list) or not all(isinstance(i, str) for i in ids):
      raise errors.InputError(
        f"{where}: `passages` must be a list of ids (strings): {_FORMATS}"
        " expected"
      )
    if scores is None and field == "hard_negatives":
      raise errors.InputError(
        f"{where}: these mined negatives have no `scores`: run `dpr-jax mine"
        " --overwrite` with this version, or name another file in"
        " config.train.distill_scores"
      )
  if not isinstance(scores, list) or len(scores) != len(ids):
    raise errors.InputError(
      f"{where}: `scores` must be a list of {len(ids)} numbers, one for each"
      " passage"
    )
  return Scored(
    row["question"],
    tuple(ids),
    tuple(_number(each, where) for each in scores),
    _number(positive, where),
  )


def _number(value: Any, where: str) -> float:
  """A score; NaN for null.  In DPR's files some are written as text."""
  if value is None:
    return math.nan
  try:
    if isinstance(value, bool) or not math.isfinite(float(value)):
      raise ValueError
    return float(value)
  except (TypeError, ValueError):
    raise errors.InputError(
      f"{where}: score {str(value)[:40]!r} must be a finite number, or null"
    ) from None
