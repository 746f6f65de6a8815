"""Reads and writes mined negatives: `negatives/<ranker>.jsonl.gz`.

There is one line per question, `{"question", "hard_negatives": [passage ids]}`,
best first, in the order of the dataset.  `retrieval.mine` and
`retrieval.negative_refresh` write such files; training reads them, from its own
workdir or another.
"""

import gzip
import io
import json
import os
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any

import ml_collections
from absl import logging

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors, progress
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import answer_matching, file_streams, records

RANKERS = ("bm25", "model")


def files(ranker: str) -> dict[str, str]:
  """Names of the files of one of `RANKERS` in `negatives/`, by split."""
  return {"train": f"{ranker}.jsonl.gz", "dev": f"{ranker}-dev.jsonl.gz"}


FILES = files("bm25")


def command(ranker: str) -> str:
  """The command that makes the files of one of `RANKERS`, for messages."""
  return "dpr-jax mine" + (" --from=model" if ranker == "model" else "")


def settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Settings that determine the kept passages; `InputError` if one is bad."""
  config_lib.at_least("mine.depth", config.mine.depth, 1)
  config_lib.at_least("mine.keep", config.mine.keep, 1)
  match = config_lib.one_of(
    "evaluate.match", config.evaluate.match, answer_matching.MATCHES
  )
  return {**config_lib.sections(config, "mine"), "match": match}


def write(
  path: pathlib.Path,
  mined: Iterator[tuple[records.Question, list[records.Passage]]],
  total: int,
  label: str,
  keep: int,
) -> dict[str, int]:
  """Writes one file: the same negatives always give the same bytes.

  Args:
    path: path of the file, `*.jsonl.gz`.
    mined: every question in order, with its hard negatives, best first.
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
      for question, negatives in mined:
        ids = [passage.id for passage in negatives]
        line = {"question": question.question, "hard_negatives": ids}
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
    ranker = "model" if pathlib.Path(path).name.startswith("model") else "bm25"
    raise errors.InputError(
      f"no manifest lists {path}: run `{command(ranker)}` with this --workdir"
      " first"
    )
  manifest.pop("created", None)
  return workdir_lib.fingerprint(manifest)


def read(
  path: str | os.PathLike,
  questions: int | None = None,
  command: str = "dpr-jax mine",
) -> list[list[str]]:
  """Passage ids per question, in the order of the dataset, best first.

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
  negatives: list[list[str]] = []
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


def _parse_line(line: str, path: pathlib.Path, number: int) -> list[str]:
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
  return ids
