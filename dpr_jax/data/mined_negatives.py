"""Reads and writes mined negatives: `negatives/<ranker>.jsonl.gz`.

There is one line per question, `{"question", "hard_negatives": [passage ids],
"scores": [one for each], "positive_score"}`, best first, in the order of the
dataset.  Scores are those of the ranker; that of the question's best positive
is null if the corpus has none of its positives.  Files of older versions have
no scores.  `retrieval.mine` and `retrieval.negative_refresh` write such files;
training reads them, from its own workdir or another.
"""

import dataclasses
import gzip
import io
import json
import math
import os
import pathlib
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections
import numpy as np
from absl import logging

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors, progress, setting_rules
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import answer_matching, file_streams, records

# BM25, the model, both fused, and the model's neighbours of the gold passage.
RANKERS = ("bm25", "model", "hybrid", "passage")
# Settings of versions that had no filters.
_OLDER = ("depth", "keep")


def files(ranker: str) -> dict[str, str]:
  """Names of the files of one of `RANKERS` in `negatives/`, by split."""
  return {"train": f"{ranker}.jsonl.gz", "dev": f"{ranker}-dev.jsonl.gz"}


FILES = files("bm25")


def command(ranker: str) -> str:
  """The command that makes the files of one of `RANKERS`, for messages."""
  return "dpr-jax mine" + ("" if ranker == "bm25" else f" --from={ranker}")


def stage_of(ranker: str) -> tuple[str, str]:
  """Name of the stage of one of `RANKERS`, and of its manifest."""
  name = command(ranker).removeprefix("dpr-jax ")
  prefix = "" if ranker == "bm25" else f"{ranker}."
  return name, prefix + workdir_lib.MANIFEST


def number(value: float | int | str) -> float | None:
  """A setting that may be "none"."""
  return None if value == "none" else float(value)


def settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Settings that determine the kept passages; `InputError` if one is bad.

  A filter that an older version did not have is omitted at its default, so that
  the older version's output stays current.
  """
  mine = config.mine
  setting_rules.mining(mine)
  match = config_lib.one_of(
    "evaluate.match", config.evaluate.match, answer_matching.MATCHES
  )
  defaults = config_lib.base_config().mine
  changed = {
    name: float(value) if defaults[name] == "none" else value
    for name, value in config_lib.plain(mine).items()
    if name in _OLDER or value != defaults[name]
  }
  found = {"mine": changed, "match": match}
  if mine.sampling != "top":
    found["seed"] = config.seed
  return found


@dataclasses.dataclass(frozen=True)
class Row:
  """A question and its hard negatives.

  Attributes:
    question: the question.
    passages: its hard negatives, best first.
    scores: score of each.
    positive_score: score of its best positive; nan = not known.
  """

  question: records.Question
  passages: Sequence[records.Passage]
  scores: Sequence[float]
  positive_score: float


@dataclasses.dataclass(frozen=True)
class Mined:
  """A line of a file.

  Attributes:
    ids: ids of the hard negatives, best first.
    scores: score of each; None = of an older version.
    positive_score: score of the best positive; None = not known.
  """

  ids: list[str]
  scores: list[float] | None
  positive_score: float | None


def write(
  path: pathlib.Path,
  mined: Iterator[Row],
  total: int,
  label: str,
  keep: int,
) -> dict[str, int]:
  """Writes one file: the same negatives always give the same bytes.

  Args:
    path: path of the file, `*.jsonl.gz`.
    mined: every question in order.
    total: number of questions.
    label: label of the progress lines.
    keep: wanted number of hard negatives per question.

  Returns:
    Counts of questions, and of those with fewer than `keep` hard negatives,
    with none, and without answers.
  """
  counts = dict.fromkeys(
    ("questions", "fewer_than_keep", "without_negatives", "no_answers"), 0
  )
  with workdir_lib.replace_file(path) as temporary:
    with (
      open(temporary, "wb") as raw,
      # No name and no time in the header, so the bytes are reproducible.
      gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed,
      io.TextIOWrapper(packed, encoding="utf-8", newline="\n") as file,
      progress.Progress(total, label, "questions") as bar,
    ):
      for row in mined:
        question = row.question
        ids = [passage.id for passage in row.passages]
        known = not np.isnan(row.positive_score)
        line = {
          "question": question.question,
          "hard_negatives": ids,
          "scores": [_short(score) for score in row.scores],
          "positive_score": _short(row.positive_score) if known else None,
        }
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
        counts["questions"] += 1
        counts["fewer_than_keep"] += len(ids) < keep
        counts["without_negatives"] += not ids
        counts["no_answers"] += not question.answers
        bar.update()
  notes = {
    "fewer_than_keep": f"have fewer than {keep} hard negatives",
    "without_negatives": "have none",
    "no_answers": "have no answers: only their gold passages were excluded",
  }
  logging.info(
    "%s: %s",
    label,
    "; ".join(
      [f"{counts['questions']} questions"]
      + [f"{counts[key]} {note}" for key, note in notes.items() if counts[key]]
    ),
  )
  return counts


def _short(score: float) -> float:
  """The number with the fewest digits that is this score in float32."""
  return float(str(np.float32(score)))


def manifest_of(path: str | os.PathLike) -> dict[str, Any] | None:
  """The manifest that lists a file of negatives; None = there is none."""
  path = pathlib.Path(path)
  for place in sorted(path.parent.glob(f"*{workdir_lib.MANIFEST}")):
    manifest = workdir_lib.read_record(place)
    if path.name in manifest.get("files", {}):
      return manifest
  return None


def fingerprint_of(path: str | os.PathLike) -> str:
  """Fingerprint of a file of negatives, for a later stage's `inputs`.

  Raises:
    InputError: no manifest in the folder lists the file.
  """
  manifest = manifest_of(path)
  if manifest is None:
    name = pathlib.Path(path).name
    ranker = next((r for r in RANKERS if name.startswith(r)), "bm25")
    raise errors.InputError(
      f"no manifest lists {path}: run `{command(ranker)}` with this --workdir"
      " first"
    )
  for key in ("created", workdir_lib.FALSE_NEGATIVES):
    manifest.pop(key, None)
  return workdir_lib.fingerprint(manifest)


def read(
  path: str | os.PathLike,
  questions: int | None = None,
  command: str = "dpr-jax mine",
) -> list[list[str]]:
  """Passage ids per question, best first; as `read_rows`."""
  return [row.ids for row in read_rows(path, questions, command)]


def read_rows(
  path: str | os.PathLike,
  questions: int | None = None,
  command: str = "dpr-jax mine",
) -> list[Mined]:
  """A file's lines, one per question, in the order of the dataset.

  Args:
    path: `negatives/bm25.jsonl.gz`, or a file of this format, also unzipped.
    questions: number of questions in the dataset; None = do not compare.
    command: command that makes such a file, for messages.

  Raises:
    InputError: the file is missing, damaged, malformed, or of other questions.
  """
  path = pathlib.Path(path)
  manifest = manifest_of(path)
  if manifest is not None:
    listed = {path.name: manifest["files"][path.name]}
    workdir_lib.check_files(path.parent, {**manifest, "files": listed})
  negatives: list[Mined] = []
  opened = gzip.open if path.suffix == ".gz" else open
  try:
    with opened(path, "rt", encoding="utf-8") as file:
      for number, line in enumerate(file, start=1):
        negatives.append(_parse_line(line, path, number))
  except FileNotFoundError as error:
    raise errors.InputError(
      f"{path} is missing: run `{command}` with this --workdir first"
    ) from error
  except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
    raise errors.InputError(
      f"{path}, after line {len(negatives)}: {error}; run `{command}"
      " --overwrite`"
    ) from error
  if questions is not None and len(negatives) != questions:
    raise errors.InputError(
      f"{path} has {len(negatives)} lines for {questions} questions: it was"
      f" made from other data; run `{command} --overwrite`"
    )
  return negatives


def _parse_line(line: str, path: pathlib.Path, number: int) -> Mined:
  where = f"{path}, line {number}: {line.strip()[:80]!r}"
  value = file_streams.parse_json(line, where)
  try:
    ids = value["hard_negatives"]
  except (KeyError, TypeError) as error:
    raise errors.InputError(
      f"{where} is not an object with `question` and `hard_negatives`: write"
      " one such object per line"
    ) from error
  if not isinstance(ids, list) or not all(isinstance(i, str) for i in ids):
    raise errors.InputError(
      f"{path}, line {number}: hard_negatives={str(ids)[:80]} must be a list"
      " of passage ids (strings)"
    )
  scores, positive = value.get("scores"), value.get("positive_score")
  if scores is not None and not (
    isinstance(scores, list)
    and len(scores) == len(ids)
    and all(map(_is_number, scores))
  ):
    raise errors.InputError(
      f"{path}, line {number}: scores={str(scores)[:80]} must be a list of"
      f" {len(ids)} numbers, one per hard negative"
    )
  if positive is not None and not _is_number(positive):
    raise errors.InputError(
      f"{path}, line {number}: positive_score={str(positive)[:80]} must be a"
      " number or null"
    )
  return Mined(ids, scores, positive)


def _is_number(value: Any) -> bool:
  """True for a finite number."""
  return (
    isinstance(value, int | float)
    and not isinstance(value, bool)
    and math.isfinite(value)
  )
