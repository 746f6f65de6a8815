"""Stage `mine`: mines hard negatives, well ranked passages without an answer.

Input: the questions of `data/train` and `data/dev`, and a ranker (BM25, or the
trained towers with their index).  Output: `negatives/<ranker>.jsonl.gz` and
`negatives/<ranker>-dev.jsonl.gz`, with one line per question, in the order of
the dataset: the ids and scores of its best ranked passages that pass the
filters of section `mine`, contain no answer and are not a positive of it, a
positive of another row with the same question, or a copy of one.  Training
samples from them per question and epoch; the dev file of BM25 gives the pool
for the average rank.  The share of candidates that contain an answer is
measured, and is in the manifest (`false_negatives`).
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

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
from dpr_jax.retrieval import (
  bm25,
  false_negatives,
  hybrid,
  negative_filters,
  negative_sources,
  passage_cache,
  text_analysis,
)

_BATCH = 256  # questions searched at once
_BLOCK = 4096  # questions read at once
_SPARE = 8  # passages read at once beyond the wanted ones, of each question


# The method of `retrievers` that a ranker searches with.
_METHODS = {
  "bm25": "bm25",
  "model": "dense",
  "passage": "dense",
  "hybrid": "hybrid",
}


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
    config: reads `mine`, `bm25`, `index` and `model`, `fusion` if the ranker
      does, and `evaluate.match`.
    workdir: workdir with data; but for "bm25" also with the towers' index.
    ranker: one of `mined_negatives.RANKERS`: "bm25", "model" for the workdir's
      trained towers, "hybrid" for both, "passage" for the neighbours of the
      gold passage.
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
  if ranker != "bm25":
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
    _METHODS[ranker],
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
  source = _load(config, workdir, ranker, passages, overwrite)
  matcher = answer_matching.AnswerMatcher(match=config.evaluate.match)
  depth = int(config.mine.depth)
  filters = negative_filters.Filters.of(config)
  stage.begin(
    stage.folder / name for name in mined_negatives.files(ranker).values()
  )
  counts: dict[str, int] = {}
  written, measured = {}, {}
  for split, name in mined_negatives.files(ranker).items():
    path = stage.folder / name
    if not (workdir.data / split).exists():
      logging.info("mine: the workdir has no %s questions: skipped", split)
      path.unlink(missing_ok=True)
      continue
    questions = prepare.open_questions(workdir, split)
    label = f"mine {split}"
    seen = false_negatives.Measured.of(filters, len(questions))
    mined = mine_negatives(
      lambda _, batch, own: source(batch, own, depth),
      passages,
      questions,
      Positives(questions, passages, same_passages.open_copies(workdir)),
      filters=filters,
      matcher=matcher,
      measured=seen,
      ranker=ranker,
    )
    of_split = mined_negatives.write(
      path, mined, len(questions), label, filters.keep
    )
    seen.log(label)
    measured[split] = seen.plain()
    counts |= {f"{split}_{key}": count for key, count in of_split.items()}
    written[name] = workdir_lib.fingerprint_file(path)
  stage.finish(counts, files=written, **{workdir_lib.FALSE_NEGATIVES: measured})


def _stage(
  config: ml_collections.ConfigDict, workdir: workdir_lib.Workdir, ranker: str
) -> workdir_lib.Stage:
  """The stage that mines with a ranker: all that its output depends on."""
  name, manifest_name = mined_negatives.stage_of(ranker)
  settings = mined_negatives.settings(config)
  inputs = workdir_lib.dataset_inputs(workdir, "passages", "train", "dev")
  if ranker == "bm25":
    of_bm25, words = bm25.depends_on(config)
    return workdir_lib.Stage(
      name=name,
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
  if ranker == "hybrid":
    of_bm25, words = bm25.depends_on(config)
    inputs |= words
    settings |= {**of_bm25, "fusion": hybrid.settings(config, workdir)}
  # Settings of encoding questions are not part of the inputs' fingerprints.
  settings |= config_lib.sections(config, "model")
  settings["search"] = faiss_stage.search_overrides(config)
  return workdir_lib.Stage(
    name=name,
    folder=workdir.negatives,
    config=settings,
    inputs=inputs,
    manifest_name=manifest_name,
  )


def _load(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  ranker: str,
  passages,
  overwrite: bool,
) -> negative_sources.Source:
  """The source of a ranker's candidates; errors as of `retrievers.load`."""
  from dpr_jax.retrieval import retrievers

  if ranker == "bm25":
    index = bm25.build_or_load(config, workdir, overwrite=overwrite)
    bm25.check_size(index, passages)
    return negative_sources.of_bm25(index)
  loaded = retrievers.load(config, workdir, _METHODS[ranker], passages)
  if ranker == "hybrid":
    return negative_sources.of_hybrid(loaded)
  folder = workdir.embeddings("dense")
  space = negative_sources.Space.of(loaded, folder)
  if ranker == "passage" and space.vectors is None:
    raise errors.InputError(
      f"--from=passage needs the vectors of the gold passages: {folder} has"
      " none: run `dpr-jax embed`, or use config.index.factory='Flat'"
    )
  return negative_sources.OF_SPACE[ranker](space)


class Positives:
  """The positives of each question, which are not used as its negatives.

  They are the positives of all rows with the same question text, by corpus row;
  the corpus rows with the same title and text as one of these; and passages
  with the text of a positive, ignoring titles, white space and case.
  """

  def __init__(self, questions, passages, copies: same_passages.Copies):
    """Reads a QuestionTable once, and looks up its ids in a PassageTable."""
    self._copies = copies
    # By question: keys are rows in the order of the data; -1 = not in it.
    self._rows: dict[int, dict[int, None]] = collections.defaultdict(dict)
    # By first word: texts with another one need no digest.
    self._texts: dict[int, dict[str, set[int]]] = collections.defaultdict(dict)
    for _, block in questions.blocks(_BLOCK):
      gold = [(q.question, p) for q in block for p in q.positives]
      rows = copies.first(passages.rows_of([p.id for _, p in gold]))
      for (question, passage), row in zip(gold, rows.tolist(), strict=True):
        key = same_passages.text_digest(question)
        self._rows[key][row] = None
        same = self._texts[key].setdefault(_first_word(passage.text), set())
        same.add(_any_case(passage.text))

  def rows(self, question: records.Question) -> list[int]:
    """Corpus rows of a question's positives, in the order of the data."""
    key = same_passages.text_digest(question.question)
    return [row for row in self._rows.get(key, ()) if row >= 0]

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
  rank: Callable[
    [int, list[records.Question], list[list[int]]], negative_filters.Hits
  ],
  passages,
  questions,
  positives: Positives,
  *,
  filters: negative_filters.Filters,
  matcher: answer_matching.AnswerMatcher,
  measured: false_negatives.Measured,
  ranker: str,
) -> Iterator[mined_negatives.Row]:
  """Yields every question, in order, with its hard negatives, best first.

  Args:
    rank: function from (number of the first question, questions, corpus rows of
      each one's positives) to their hits.
    passages: PassageTable of the corpus.
    questions: a QuestionTable.
    positives: positives of these questions.
    filters: choose among the hits.
    matcher: finds answers in passages; its keys are rows of `passages`.
    measured: counts candidates that contain an answer.
    ranker: one of `mined_negatives.RANKERS`, for messages.
  """
  cache, without = passage_cache.PassageCache(passages), 0
  for first in range(0, len(questions), _BATCH):
    batch = questions.take(range(first, min(first + _BATCH, len(questions))))
    hits = rank(first, batch, [positives.rows(each) for each in batch])
    without += int((hits.rows < 0).all(axis=1).sum())
    passed = [np.flatnonzero(each) for each in filters.passed(hits)]
    likely = [
      rows[places[: _likely(filters)]]
      for rows, places in zip(hits.rows, passed, strict=True)
    ]
    cache.take(np.concatenate(likely).tolist())  # one read: far faster
    for place, question in enumerate(batch):
      asked = _Asked(question, first + place, positives, cache, matcher)
      rows, scores = hits.rows[place], hits.scores[place]
      kept = _negatives(asked, rows, scores, passed[place], filters)
      if measured.wants(first + place) and question.answers:
        measured.add(hits, place, asked.excluded)
      block = cache.take(rows[kept].tolist())
      yield mined_negatives.Row(
        question,
        [block[row] for row in rows[kept].tolist()],
        scores[kept].tolist(),
        float(hits.positives[place]),
      )
  matcher.warn("mine")
  if ranker != "passage":
    bm25.warn_without_hits("mine", without, len(questions))
  elif without:
    logging.info(
      "mine: %d questions have no positive in the corpus, and so no neighbours"
      " of one",
      without,
    )


def _likely(filters: negative_filters.Filters) -> int | None:
  """Number of first candidates that are looked at; None = all of them."""
  return filters.keep + _SPARE if filters.sampling == "top" else None


@dataclasses.dataclass(frozen=True)
class _Asked:
  """A question, and what decides which passages are its negatives.

  Attributes:
    question: the question.
    number: its number, for messages.
    positives: positives of all questions.
    cache: passages of the corpus.
    matcher: finds answers.
  """

  question: records.Question
  number: int
  positives: Positives
  cache: passage_cache.PassageCache
  matcher: answer_matching.AnswerMatcher

  def excluded(self, rows: Sequence[int]) -> list[tuple[bool, bool]]:
    """Of each row: whether it has an answer, and whether it is a positive."""
    block = self.cache.take(rows)
    texts = [block[row].text for row in rows]
    answers = self.question.answers
    hits = self.matcher.hits(answers, rows, texts, self.number)
    gold = self.positives.among(self.question, rows, texts)
    return list(zip(hits, gold, strict=True))


def _negatives(
  asked: _Asked,
  rows: np.ndarray,
  scores: np.ndarray,
  passed: np.ndarray,
  filters: negative_filters.Filters,
) -> np.ndarray:
  """Ranks of the hard negatives of a question, best first.

  Args:
    asked: the question.
    rows: its hits, best first.
    scores: their scores.
    passed: ranks that pass the filters, ascending.
    filters: how many are kept, and which.
  """
  kept: list[int] = []
  # Few passages are excluded: those after the spare ones are rarely needed.
  enough = _likely(filters)
  ends = [0, len(passed)]
  if enough is not None:
    keep = filters.keep
    ends = [0, keep, *range(enough, max(enough, len(passed)) + keep, keep)]
  for start, end in itertools.pairwise(ends):
    block = passed[start:end]
    excluded = asked.excluded(rows[block].tolist())
    kept += [
      rank
      for rank, reasons in zip(block.tolist(), excluded, strict=True)
      if not any(reasons)
    ]
    if enough is not None and len(kept) >= filters.keep:
      break
  ranks = np.array(kept, np.int64)
  return ranks[filters.draw(asked.question.question, scores[ranks])]
