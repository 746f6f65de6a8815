"""Stage `mine`: mines hard negatives, well ranked passages without an answer.

Input: the questions of `data/train` and `data/dev`, and a ranker (BM25, or the
trained towers with their index).  Output: `negatives/<ranker>.jsonl.gz` and
`negatives/<ranker>-dev.jsonl.gz`, with one line per question, in the order of
the dataset: the ids of its best ranked passages that contain no answer and are
not a positive of it, a positive of another row with the same question, or a
copy of one.  Training samples from them per question and epoch; the dev file of
BM25 gives the pool for the average rank.
"""

import collections
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import ml_collections
import numpy as np
from absl import logging

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors, multiprocess
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import (
  answer_matching,
  mined_negatives,
  records,
  same_passages,
)
from dpr_jax.index import faiss_stage
from dpr_jax.models import model_settings
from dpr_jax.retrieval import bm25, passage_cache, text_analysis

_BATCH = 256  # questions searched at once
_BLOCK = 4096  # questions read at once
_SPARE = 8  # passages read at once beyond the wanted ones, of each question


@runtime_checkable
class Ranker(Protocol):
  """Ranks the corpus for questions: BM25Index or one of `dense_rankers`."""

  def search(
    self, questions: Sequence[str], k: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Rows (-1: no hit) and scores, [questions, at most k], best first."""
    ...


def mine(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  *,
  ranker: str = "bm25",
  overwrite: bool = False,
) -> None:
  """Writes the hard negatives of the train and dev questions.

  A passage is excluded if it contains an answer (`config.evaluate.match`) or is
  one of the question's positives, see `Positives`.

  Args:
    config: reads `mine`, `bm25` or `index` and `model`, `evaluate.match`.
    workdir: workdir with data; for "model" also with the towers' index.
    ranker: "bm25", or "model" for the workdir's trained towers.
    overwrite: mines again even if the negatives are current.

  Raises:
    InputError: no data in the workdir, no index of its trained towers, or a
      bad setting.
  """
  from dpr_jax.retrieval import retrievers

  if ranker not in mined_negatives.RANKERS:
    raise errors.InputError(
      f"--from={ranker!r}: must be one of {', '.join(mined_negatives.RANKERS)}"
    )
  if ranker == "model":
    config = model_settings.settle(config, workdir)
    config.index.backend = ""  # mining searches the FAISS index
  trained = any(workdir.training.glob("*.json")) and not overwrite

  def is_current() -> bool:
    stage = _stage(config, workdir, ranker)
    # New negatives would make the training that uses the old ones another run.
    kept = text_analysis.as_recorded(stage) if trained else stage
    return kept.is_current(overwrite)

  if multiprocess.first_alone(is_current):
    return
  retrievers.on_all_processes(
    config,
    workdir,
    "dense" if ranker == "model" else ranker,
    lambda: _mine(config, workdir, ranker, overwrite),
  )


def _mine(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  ranker: str,
  overwrite: bool,
) -> None:
  """Does the work of `mine`, in the first process."""
  from dpr_jax.data import prepare

  stage = _stage(config, workdir, ranker)
  passages = prepare.open_passages(workdir)
  loaded = _load(config, workdir, ranker, passages, overwrite)
  matcher = answer_matching.AnswerMatcher(match=config.evaluate.match)
  depth, keep = int(config.mine.depth), int(config.mine.keep)
  stage.begin(
    stage.folder / name for name in mined_negatives.files(ranker).values()
  )
  counts: dict[str, int] = {}
  written = {}
  for split, name in mined_negatives.files(ranker).items():
    path = stage.folder / name
    if not (workdir.data / split).exists():
      logging.info("mine: the workdir has no %s questions: skipped", split)
      path.unlink(missing_ok=True)
      continue
    questions = prepare.open_questions(workdir, split)
    mined = mine_negatives(
      lambda _, batch: loaded.search([q.question for q in batch], depth)[0],
      passages,
      questions,
      Positives(questions, passages, same_passages.open_copies(workdir)),
      keep=keep,
      matcher=matcher,
    )
    of_split = mined_negatives.write(
      path, mined, len(questions), f"mine {split}", keep
    )
    counts |= {f"{split}_{key}": count for key, count in of_split.items()}
    written[name] = workdir_lib.fingerprint_file(path)
  stage.finish(counts, files=written)


def _stage(
  config: ml_collections.ConfigDict, workdir: workdir_lib.Workdir, ranker: str
) -> workdir_lib.Stage:
  """The stage that mines with a ranker: all that its output depends on."""
  settings = mined_negatives.settings(config)
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
  # Settings of encoding questions are not part of the inputs' fingerprints.
  settings |= config_lib.sections(config, "model")
  settings["search"] = faiss_stage.search_overrides(config)
  return workdir_lib.Stage(
    name=mined_negatives.command(ranker).removeprefix("dpr-jax "),
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
  from dpr_jax.retrieval import dense_rankers

  return dense_rankers.load_dense(
    workdir, "dense", config.index.factory, len(passages), config
  )


class Positives:
  """The positives of each question, which are not used as its negatives.

  They are the positives of all rows with the same question text, by corpus row;
  the corpus rows with the same title and text as one of these; and passages
  with the text of a positive, ignoring titles, white space and case.
  """

  def __init__(self, questions, passages, copies: same_passages.Copies):
    """Reads a QuestionTable once, and looks up its ids in a PassageTable."""
    self._copies = copies
    self._rows: dict[int, set[int]] = collections.defaultdict(set)
    # By first word: texts with another one need no digest.
    self._texts: dict[int, dict[str, set[int]]] = collections.defaultdict(dict)
    for _, block in questions.blocks(_BLOCK):
      gold = [(q.question, p) for q in block for p in q.positives]
      rows = copies.first(passages.rows_of([p.id for _, p in gold]))
      for (question, passage), row in zip(gold, rows.tolist(), strict=True):
        key = same_passages.text_digest(question)
        self._rows[key].add(row)
        same = self._texts[key].setdefault(_first_word(passage.text), set())
        same.add(_any_case(passage.text))

  def among(
    self, question: records.Question, rows: Sequence[int], texts: Sequence[str]
  ) -> list[bool]:
    """Whether each passage, by corpus row and text, is a positive."""
    key = same_passages.text_digest(question.question)
    gold, same = self._rows.get(key, ()), self._texts.get(key, {})
    firsts = self._copies.first(np.asarray(rows, np.int64)).tolist()
    return [
      row in gold
      or ((word := _first_word(text)) in same and _any_case(text) in same[word])
      for row, text in zip(firsts, texts, strict=True)
    ]


def _first_word(text: str) -> str:
  """The first word in lower case; "" = none."""
  return (text.split(None, 1) or [""])[0].lower()


def _any_case(text: str) -> int:
  """64-bit digest of a text, ignoring white space and case."""
  return same_passages.text_digest(text.lower())


def mine_negatives(
  rank: Callable[[int, list[records.Question]], np.ndarray],
  passages,
  questions,
  positives: Positives,
  *,
  keep: int,
  matcher: answer_matching.AnswerMatcher,
) -> Iterator[tuple[records.Question, list[records.Passage]]]:
  """Yields every question, in order, with its hard negatives, best first.

  Args:
    rank: function from (number of the first question, questions) to the ranked
      rows [questions, depth], best first; -1 = no hit.
    passages: PassageTable of the corpus.
    questions: a QuestionTable.
    positives: positives of these questions.
    keep: largest number of hard negatives per question.
    matcher: finds answers in passages; its keys are rows of `passages`.
  """
  cache, without = passage_cache.PassageCache(passages), 0
  for first in range(0, len(questions), _BATCH):
    batch = questions.take(range(first, min(first + _BATCH, len(questions))))
    rows = rank(first, batch)
    without += int((rows < 0).all(axis=1).sum())
    likely = rows[:, : keep + _SPARE]
    cache.take(likely[likely >= 0].tolist())  # one read: far faster
    for place, (question, ranked) in enumerate(zip(batch, rows, strict=True)):
      yield (
        question,
        _negatives(
          question, ranked, positives, cache, keep, matcher, first + place
        ),
      )
  matcher.warn("mine")
  bm25.warn_without_hits("mine", without, len(questions))


def _negatives(
  question: records.Question,
  ranked: np.ndarray,
  positives: Positives,
  cache: passage_cache.PassageCache,
  keep: int,
  matcher: answer_matching.AnswerMatcher,
  number: int,
) -> list[records.Passage]:
  """The hard negatives of a question; `number` is its number, for messages."""
  ranked = ranked[ranked >= 0].tolist()
  kept: list[records.Passage] = []
  # Few passages are excluded: those after the spare ones are rarely needed.
  spare = keep + _SPARE
  ends = [0, keep, *range(spare, max(spare, len(ranked)) + keep, keep)]
  for start, end in itertools.pairwise(ends):
    rows = ranked[start:end]
    block = cache.take(rows)
    texts = [block[row].text for row in rows]
    hits = matcher.hits(question.answers, rows, texts, number)
    gold = positives.among(question, rows, texts)
    for row, hit, positive in zip(rows, hits, gold, strict=True):
      if not hit and not positive:
        kept.append(block[row])
    if len(kept) >= keep:
      break
  return kept[:keep]
