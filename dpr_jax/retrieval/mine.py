"""Hard negatives: passages that look right and hold no answer.

In come the questions of `data/train` and `data/dev` and a ranker (BM25, or the
trained towers with their index), out come `negatives/<ranker>.jsonl.gz` and
`negatives/<ranker>-dev.jsonl.gz`: one line per question, in the order of the
dataset, with the ids of its best ranked passages that contain no answer string
and are not its gold passage.  Training draws some of them per question and
epoch; the dev file of BM25 makes the pool for the average rank.
"""

import gzip
import io
import json
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import ml_collections
import numpy as np
from absl import logging

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors, progress
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import answer_matching, file_streams, records
from dpr_jax.index import faiss_stage
from dpr_jax.models import model_settings
from dpr_jax.retrieval import bm25, text_analysis

RANKERS = ("bm25", "model")
_BATCH = 256  # questions searched at once


def files(ranker: str) -> dict[str, str]:
  """Names of what one of `RANKERS` leaves in `negatives/`, by split."""
  return {"train": f"{ranker}.jsonl.gz", "dev": f"{ranker}-dev.jsonl.gz"}


FILES = files("bm25")


def command(ranker: str) -> str:
  """What makes the files of one of `RANKERS`, for messages."""
  return "dpr-jax mine" + (" --from=model" if ranker == "model" else "")


@runtime_checkable
class Ranker(Protocol):
  """Questions to rows of the corpus: BM25Index or a class of `retrievers`."""

  def search(
    self, questions: Sequence[str], k: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Rows (-1: no hit) and scores, [questions, at most k], best first."""
    ...


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
  ranker: str = "bm25",
  overwrite: bool = False,
) -> None:
  """Writes the negatives of the train and dev questions.

  A passage is left out if it contains an answer (`config.evaluate.match`), is
  one of the question's positives by id, or has a positive's text.

  Args:
    config: reads `mine`, `bm25` or `index` and `model`, `evaluate.match`.
    workdir: holds the data; for "model" also the trained towers' index.
    ranker: "bm25" or "model", the workdir's trained towers.
    overwrite: also where the negatives are current.

  Raises:
    InputError: no data in the workdir, no index of its trained towers, or a
      bad setting.
  """
  from dpr_jax.data import prepare

  if ranker not in RANKERS:
    raise errors.InputError(
      f"--from={ranker!r}: must be one of {', '.join(RANKERS)}"
    )
  if ranker == "model":
    config = model_settings.settle(config, workdir)
  stage = _stage(config, workdir, ranker)
  # Other negatives would end the training that has begun with those.
  trained = any(workdir.training.glob("*.json")) and not overwrite
  kept = text_analysis.as_recorded(stage) if trained else stage
  if kept.is_current(overwrite):
    return
  passages = prepare.open_passages(workdir)
  loaded = _load(config, workdir, ranker, passages, overwrite)
  matcher = answer_matching.AnswerMatcher(match=config.evaluate.match)
  depth, keep = int(config.mine.depth), int(config.mine.keep)
  stage.begin(stage.folder / name for name in files(ranker).values())
  counts: dict[str, int] = {}
  written = {}
  for split, name in files(ranker).items():
    path = stage.folder / name
    if not (workdir.data / split).exists():
      logging.info("mine: no %s questions in this workdir", split)
      path.unlink(missing_ok=True)
      continue
    questions = prepare.open_questions(workdir, split)
    mined = mine_negatives(
      lambda _, batch: loaded.search([q.question for q in batch], depth)[0],
      passages,
      questions,
      keep=keep,
      matcher=matcher,
    )
    found = write_negatives(path, mined, len(questions), f"mine {split}", keep)
    counts |= {f"{split}_{key}": count for key, count in found.items()}
    written[name] = workdir_lib.fingerprint_file(path)
  stage.finish(counts, files=written)


def mine_settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """What decides which ranked passages are kept; `InputError` if it is bad."""
  config_lib.at_least("mine.depth", config.mine.depth, 1)
  config_lib.at_least("mine.keep", config.mine.keep, 1)
  match = config_lib.one_of(
    "evaluate.match", config.evaluate.match, answer_matching.MATCHES
  )
  return {**config_lib.sections(config, "mine"), "match": match}


def _stage(
  config: ml_collections.ConfigDict, workdir: workdir_lib.Workdir, ranker: str
) -> workdir_lib.Stage:
  """What the negatives of a ranker depend on."""
  settings = mine_settings(config)
  inputs = workdir_lib.dataset_inputs(workdir, "passages", "train", "dev")
  if ranker == "bm25":
    of_bm25, words = bm25.depends_on(config)
    return workdir_lib.Stage(
      name="mine",
      folder=workdir.negatives,
      config={**of_bm25, **settings},
      inputs=inputs | words,
    )
  index = workdir.index(faiss_stage.check_factory(config.index.factory))
  inputs |= {
    "training": workdir_lib.manifest_fingerprint(workdir.training, "train"),
    "index": workdir_lib.manifest_fingerprint(index, "index"),
    "model": workdir_lib.read_manifest(index, "index")["model"],
  }
  # How questions are encoded is in no input's fingerprint.
  settings |= config_lib.sections(config, "model")
  settings["search"] = faiss_stage.search_overrides(config)
  return workdir_lib.Stage(
    name=command(ranker).removeprefix("dpr-jax "),
    folder=workdir.negatives,
    config=settings,
    inputs=inputs,
    manifest_name=f"model.{workdir_lib.MANIFEST}",
  )


def _load(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  ranker: str,
  passages,
  overwrite: bool,
) -> Ranker:
  if ranker == "bm25":
    index = bm25.build_or_load(config, workdir, overwrite=overwrite)
    bm25.check_size(index, passages)
    return index
  from dpr_jax.retrieval import retrievers

  return retrievers.load_dense(
    workdir, "dense", config.index.factory, len(passages), config
  )


def mine_negatives(
  rank: Callable[[int, list[records.Question]], np.ndarray],
  passages,
  questions,
  *,
  keep: int,
  matcher: answer_matching.AnswerMatcher,
) -> Iterator[tuple[records.Question, list[records.Passage]]]:
  """Yields every question, in order, with its hard negatives, best first.

  Args:
    rank: of (number of the first, some questions in order), gives the rows
      that are looked at [questions, depth], best first, -1 for none.
    passages: the PassageTable that the rows point into.
    questions: a QuestionTable.
    keep: hard negatives kept at most.
    matcher: decides what contains an answer; its keys are rows of `passages`.
  """
  cache, without = PassageCache(passages), 0
  for first in range(0, len(questions), _BATCH):
    batch = questions.take(range(first, min(first + _BATCH, len(questions))))
    rows = rank(first, batch)
    without += int((rows < 0).all(axis=1).sum())
    likely = rows[:, :keep]
    cache.take(likely[likely >= 0].tolist())  # all at once: far faster
    for place, (question, ranked) in enumerate(zip(batch, rows, strict=True)):
      some = _negatives(question, ranked, cache, keep, matcher, first + place)
      yield question, some
  matcher.warn("mine")
  bm25.warn_without_hits("mine", without, len(questions))


def _negatives(
  question: records.Question,
  ranked: np.ndarray,
  cache: PassageCache,
  keep: int,
  matcher: answer_matching.AnswerMatcher,
  number: int,
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
    hits = matcher.hits(question.answers, rows, texts, number)
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


def write_negatives(
  path: pathlib.Path,
  mined: Iterator[tuple[records.Question, list[records.Passage]]],
  total: int,
  label: str,
  keep: int,
) -> dict[str, int]:
  """Writes one file, the same bytes for the same negatives.

  Args:
    path: of the file, `*.jsonl.gz`.
    mined: from `mine_negatives`.
    total: number of questions.
    label: what the progress is shown as.
    keep: hard negatives per question that were asked for.

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
      # No name and no time in the header: the same bytes every time.
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
  logging.info(
    "%s: %d questions, %d with fewer than %d hard negatives, %d with none; %d"
    " have no answers, so only their positives were left out",
    label,
    counts["questions"],
    counts["fewer_than_keep"],
    keep,
    counts["without_negatives"],
    counts["no_answers"],
  )
  return counts


def manifest_of(path: str | os.PathLike) -> dict[str, Any] | None:
  """The manifest beside a file of negatives that lists it, if there is one."""
  path = pathlib.Path(path)
  for place in sorted(path.parent.glob(f"*{workdir_lib.MANIFEST}")):
    manifest = workdir_lib.read_record(place)
    if path.name in manifest.get("files", {}):
      return manifest
  return None


def fingerprint_of(path: str | os.PathLike) -> str:
  """Fingerprint of a file of negatives, for a later stage's `inputs`.

  Raises:
    InputError: it was not made in its folder.
  """
  manifest = manifest_of(path)
  if manifest is None:
    ranker = "model" if pathlib.Path(path).name.startswith("model") else "bm25"
    raise errors.InputError(
      f"no manifest beside {path}: run `{command(ranker)}` with this --workdir"
      " first"
    )
  manifest.pop("created", None)
  return workdir_lib.fingerprint(manifest)


def read_negatives(
  path: str | os.PathLike,
  questions: int | None = None,
  command: str = "dpr-jax mine",
) -> list[list[str]]:
  """Passage ids per question, in the order of the dataset, best first.

  Args:
    path: `negatives/bm25.jsonl.gz`, or a file of this form (also unpacked).
    questions: how many questions the dataset has, to compare.
    command: makes such a file, for the messages.

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
      f"{where} is not an object with `question` and `hard_negatives`"
    ) from error
  if not isinstance(ids, list) or not all(isinstance(i, str) for i in ids):
    raise errors.InputError(
      f"{path}, line {number}: hard_negatives={str(ids)[:80]} must be a list"
      " of passage ids (strings)"
    )
  return ids
