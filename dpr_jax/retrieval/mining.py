"""Hard negatives from BM25: passages that look right and hold no answer.

In come the questions of `data/train` and `data/dev` and the BM25 index, out
come `negatives/bm25.jsonl.gz` and `negatives/bm25-dev.jsonl.gz`: one line per
question, in the order of the dataset, with the ids of its best ranked passages
that contain no answer string and are not its gold passage.  Training draws
one of them per question and epoch; the dev file makes the pool for the average
rank.
"""

import collections
import gzip
import io
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import ml_collections
import numpy as np
from absl import logging

from dpr_jax import configuration, errors, progress
from dpr_jax import workdir as workdir_lib
from dpr_jax.data import records
from dpr_jax.evaluation import answers as answers_lib
from dpr_jax.retrieval import bm25

FILES = {"train": "bm25.jsonl.gz", "dev": "bm25-dev.jsonl.gz"}
_BATCH = 256  # questions searched at once


class PassageCache:
  """Passages by row, read once: many questions share their best passages."""

  def __init__(self, passages, size: int = 100_000):
    """Keeps at most about `size` passages of a PassageTable in memory."""
    self._passages = passages
    self._size = size
    self._rows: dict[int, records.Passage] = {}

  def take(self, rows: Sequence[int]) -> Mapping[int, records.Passage]:
    """Passages by row, for the distinct rows of `rows`."""
    wanted = sorted({int(row) for row in rows})
    missing = [row for row in wanted if row not in self._rows]
    if len(self._rows) + len(missing) > self._size:
      self._rows.clear()
      missing = wanted
    if missing:
      self._rows.update(zip(missing, self._passages.take(missing), strict=True))
    return {row: self._rows[row] for row in wanted}


def mine(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  *,
  overwrite: bool = False,
) -> None:
  """Writes the negatives of the train and dev questions.

  A passage is left out if it contains an answer (`config.evaluate.match`), is
  one of the question's positives by id, or has a positive's text.

  Raises:
    InputError: no data in the workdir, or a bad setting.
  """
  from dpr_jax.data import prepare

  depth = int(configuration.at_least("mine.depth", config.mine.depth, 1))
  keep = int(configuration.at_least("mine.keep", config.mine.keep, 1))
  match = configuration.one_of(
    "evaluate.match", config.evaluate.match, answers_lib.MATCHES
  )
  folder = workdir.negatives
  stage = workdir_lib.Stage(
    name="mine",
    folder=folder,
    config={**configuration.sections(config, "bm25", "mine"), "match": match},
    inputs=workdir_lib.dataset_inputs(workdir, "passages", "train", "dev"),
  )
  if stage.is_current(overwrite):
    return
  index = bm25.build_or_load(config, workdir, overwrite=overwrite)
  passages = prepare.open_passages(workdir)
  bm25.check_size(index, passages)
  matcher = answers_lib.AnswerMatcher(match=match)
  stage.manifest.unlink(missing_ok=True)  # not for half-replaced files
  counts: collections.Counter[str] = collections.Counter()
  files = {}
  for split, name in FILES.items():
    if not (workdir.data / split).exists():
      logging.info("mine: no %s questions in this workdir", split)
      (folder / name).unlink(missing_ok=True)
      continue
    questions = prepare.open_questions(workdir, split)
    mined = mine_negatives(
      index, passages, questions, depth=depth, keep=keep, matcher=matcher
    )
    _write(folder / name, mined, len(questions), split, keep, counts)
    files[name] = workdir_lib.fingerprint_file(folder / name)
  stage.finish(dict(counts), files=files)


def mine_negatives(
  index: bm25.BM25Index,
  passages,
  questions,
  *,
  depth: int,
  keep: int,
  matcher: answers_lib.AnswerMatcher,
) -> Iterator[tuple[records.Question, list[records.Passage]]]:
  """Yields every question, in order, with its hard negatives, best first.

  Args:
    index: searched for the question's text.
    passages: the PassageTable that `index` was built from.
    questions: a QuestionTable.
    depth: ranks looked at.
    keep: hard negatives kept at most.
    matcher: decides what contains an answer; its keys are rows of `passages`.
  """
  cache = PassageCache(passages)
  for first in range(0, len(questions), _BATCH):
    batch = questions.take(range(first, min(first + _BATCH, len(questions))))
    rows, _ = index.search([question.question for question in batch], depth)
    likely = rows[:, :keep]
    cache.take(likely[likely >= 0].tolist())  # all at once: far faster
    for question, ranked in zip(batch, rows, strict=True):
      yield question, _negatives(question, ranked, cache, keep, matcher)


def _negatives(
  question: records.Question,
  ranked: np.ndarray,
  cache: PassageCache,
  keep: int,
  matcher: answers_lib.AnswerMatcher,
) -> list[records.Passage]:
  gold_ids = {passage.id for passage in question.positives if passage.id}
  gold_texts = {_same_text(passage.text) for passage in question.positives}
  ranked = ranked[ranked >= 0].tolist()
  kept: list[records.Passage] = []
  # Most passages pass: reading `keep` at a time seldom needs a third round.
  for start in range(0, len(ranked), keep):
    rows = ranked[start : start + keep]
    found = cache.take(rows)
    texts = [found[row].text for row in rows]
    hits = matcher.hits(question.answers, rows, texts)
    for row, hit in zip(rows, hits, strict=True):
      passage = found[row]
      if (
        not hit
        and passage.id not in gold_ids
        and _same_text(passage.text) not in gold_texts
      ):
        kept.append(passage)
    if len(kept) >= keep:
      break
  return kept[:keep]


def _same_text(text: str) -> str:
  """Passages count as the same text whatever their white space and case."""
  return " ".join(text.split()).lower()


def _write(
  path: pathlib.Path,
  mined: Iterator[tuple[records.Question, list[records.Passage]]],
  total: int,
  split: str,
  keep: int,
  counts: collections.Counter[str],
) -> None:
  """Writes one file, the same bytes for the same negatives; adds counts."""
  names = ("questions", "fewer_than_keep", "without_negatives", "no_answers")
  for name in names:
    counts[f"{split}_{name}"] = 0
  with workdir_lib.replace_file(path) as temporary:
    with (
      open(temporary, "wb") as raw,
      # No name and no time in the header: the same bytes every time.
      gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed,
      io.TextIOWrapper(packed, encoding="utf-8", newline="\n") as file,
      progress.Progress(total, f"mine {split}", "questions") as bar,
    ):
      for question, negatives in mined:
        ids = [passage.id for passage in negatives]
        line = {"question": question.question, "hard_negatives": ids}
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
        counts[f"{split}_questions"] += 1
        counts[f"{split}_fewer_than_keep"] += len(ids) < keep
        counts[f"{split}_without_negatives"] += not ids
        counts[f"{split}_no_answers"] += not question.answers
        bar.update()
  logging.info(
    "mine: %d %s questions, %d with fewer than %d hard negatives, %d with"
    " none; %d have no answers, so only their positives were left out",
    counts[f"{split}_questions"],
    split,
    counts[f"{split}_fewer_than_keep"],
    keep,
    counts[f"{split}_without_negatives"],
    counts[f"{split}_no_answers"],
  )


def read_negatives(
  path: str | os.PathLike, questions: int | None = None
) -> list[list[str]]:
  """Passage ids per question, in the order of the dataset, best first.

  Args:
    path: `negatives/bm25.jsonl.gz`, or a file of this form (also unpacked).
    questions: how many questions the dataset has, to compare.

  Raises:
    InputError: the file is missing, damaged, malformed, or of other questions.
  """
  path = pathlib.Path(path)
  manifest_path = path.parent / workdir_lib.MANIFEST
  if manifest_path.exists():
    manifest = workdir_lib.read_json(manifest_path)
    if path.name in manifest.get("files", {}):
      files = {path.name: manifest["files"][path.name]}
      workdir_lib.check_files(path.parent, {**manifest, "files": files})
  negatives: list[list[str]] = []
  opened = gzip.open if path.suffix == ".gz" else open
  try:
    with opened(path, "rt", encoding="utf-8") as file:
      for number, line in enumerate(file, start=1):
        negatives.append(_parse_line(line, path, number))
  except FileNotFoundError as error:
    raise errors.InputError(
      f"{path} is missing: run `dpr-jax mine` with this --workdir first"
    ) from error
  except (OSError, EOFError, UnicodeDecodeError) as error:
    raise errors.InputError(
      f"{path}, after line {len(negatives)}: {error}; run `dpr-jax mine"
      " --overwrite`"
    ) from error
  if questions is not None and len(negatives) != questions:
    raise errors.InputError(
      f"{path} has {len(negatives)} lines for {questions} questions: it was"
      " made from other data; run `dpr-jax mine --overwrite`"
    )
  return negatives


def _parse_line(line: str, path: pathlib.Path, number: int) -> list[str]:
  try:
    ids = json.loads(line)["hard_negatives"]
  except (ValueError, KeyError, TypeError) as error:
    raise errors.InputError(
      f"{path}, line {number}: {line.strip()[:80]!r} is not an object with"
      " `question` and `hard_negatives`"
    ) from error
  if not isinstance(ids, list) or not all(isinstance(i, str) for i in ids):
    raise errors.InputError(
      f"{path}, line {number}: hard_negatives={str(ids)[:80]} must be a list"
      " of passage ids (strings)"
    )
  return ids
