"""Evaluates the towers during training: dev loss, average rank, top-k.

Input: the dev questions, their gold passages, and the hard negatives mined for
them.  Output: the dev figures of `training/metrics.jsonl`.  Loss and average
rank are over one pool of passages for all questions, as in the paper's model
selection (section 4.2).  Top-k, if configured, is over a sub-corpus.  No figure
depends on the batch size or on the number of devices.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections
import numpy as np
from absl import logging
from jaxtyping import Float, Int

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors, setting_rules
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import (
  answer_matching,
  mined_negatives,
  prepare,
  records,
  same_passages,
)
from dpr_jax.inference import encoder as encoder_lib
from dpr_jax.models import retriever_model

RANKS = "dev_ranks"  # list in a dev row: the verdict's tests are paired
LOWER_IS_BETTER = ("dev_loss", "dev_average_rank")

_BLOCK = 256  # dev questions read at once
_SCORES = 2**24  # scores in memory at once: 64 MB


@dataclasses.dataclass
class SubCorpus:
  """Part of the corpus that top-k is measured over.

  Attributes:
    members: indices of its passages into `DevPool.passages`, ascending.
    ks: values of k, ascending.
    matcher: finds answers; its keys are indices into `DevPool.passages`.
  """

  members: Int[np.ndarray, " members"]
  ks: tuple[int, ...]
  matcher: answer_matching.AnswerMatcher


@dataclasses.dataclass
class DevPool:
  """The dev questions, and the passages that are ranked for them.

  The pool has the gold passages and the hard and other negatives of all
  questions; the passages of the whole pool are ranked for every question.
  Passages in both pool and sub-corpus are encoded once.  Passages with the same
  title and text count as one passage.

  A question's rank is that of its best positive, as in gold top-k; its other
  positives do not count as ahead of it, and are not negatives in the loss.

  Attributes:
    questions: dev questions with a gold passage in the corpus.
    gold: index into `passages` of every question's gold passage, its first
      positive.
    passages: all passages to encode.
    pool: indices into `passages` of the pool, ascending.
    sub_corpus: part of the corpus for top-k; None = no top-k.
    encoder: compiled encoder, called with the current parameters.
    temperature: scores are divided by it in the loss.
    other_positives: for every question, indices into `passages` of its further
      positives; None = no question has any.
  """

  questions: list[records.Question]
  gold: Int[np.ndarray, " questions"]
  passages: list[records.Passage]
  pool: Int[np.ndarray, " pool"]
  sub_corpus: SubCorpus | None
  encoder: encoder_lib.Encoder
  temperature: float
  other_positives: list[Int[np.ndarray, " _"]] | None = None

  @classmethod
  def make(
    cls,
    config: ml_collections.ConfigDict,
    workdir: workdir_lib.Workdir,
    model: retriever_model.Towers,
  ) -> "DevPool | None":
    """Samples pool and sub-corpus; None if no question has a gold passage.

    Raises:
      InputError: the dev set's mined negatives are missing or belong to another
        corpus, or the sub-corpus is too small for the gold passages.
    """
    settings = config.train
    size = setting_rules.sub_corpus_size(config)
    ks = setting_rules.ranks(config) if size else ()
    corpus = prepare.open_passages(workdir)
    copies = same_passages.open_copies(workdir)
    questions, positives, mined = _questions(
      workdir, corpus, copies, settings.dev_questions
    )
    if not questions:
      return None
    gold_rows = np.array([rows[0] for rows in positives], np.int64)
    generator = np.random.default_rng((config.seed, 3))
    others = min(settings.dev_other_negatives * len(questions), len(corpus))
    other_rows = copies.first(
      generator.choice(len(corpus), others, replace=False)
    )
    hard_rows = [rows[: settings.dev_hard_negatives] for rows in mined]
    pool_rows = np.unique(np.concatenate([gold_rows, *hard_rows, other_rows]))
    logging.info(
      "train: dev pool of %d passages for %d questions",
      len(pool_rows),
      len(questions),
    )
    rows, sub_corpus = pool_rows, None
    if size:
      more = copies.first(
        generator.choice(len(corpus), min(size, len(corpus)), replace=False)
      )
      members = sub_corpus_rows(
        gold_rows, mined, np.concatenate([other_rows, more]), size
      )
      rows = np.union1d(pool_rows, members)
      sub_corpus = SubCorpus(
        np.searchsorted(rows, members),
        ks,
        answer_matching.AnswerMatcher(
          match=config_lib.one_of(
            "evaluate.match", config.evaluate.match, answer_matching.MATCHES
          )
        ),
      )
      _log_sub_corpus(len(members), len(rows), len(corpus), questions, ks)
    return cls(
      questions,
      np.searchsorted(rows, gold_rows),
      corpus.take(rows),
      np.searchsorted(rows, pool_rows),
      sub_corpus,
      encoder_lib.sized(model, config.embed, params={}),
      config.model.temperature,
      [
        np.searchsorted(rows, np.intersect1d(own[own != own[0]], rows))
        for own in positives
      ],
    )

  def evaluate(self, params: Any) -> dict[str, Any]:
    """The dev figures with these replicated parameters.

    Returns:
      "dev_loss": mean NLL of the gold passages over the pool;
      "dev_average_rank": of the positives in the pool, from 1; "dev_top1":
      share of them at rank 1 there; "dev_pool": passages in the pool;
      "dev_ranks": the rank of every question there, in order.  With a
      sub-corpus of "dev_topk_passages" passages also, for every k,
      "dev_gold_top<k>": share of the questions with a positive among the first
      k of the sub-corpus, and "dev_answer_top<k>": share with an answer in one
      of those.  A passage that scores the same as a positive, or as the first
      one with an answer, counts as ahead of it.
    """
    encoder = self.encoder.with_params(params)
    questions = encoder.encode_questions(
      [question.question for question in self.questions]
    )
    passages = encoder.encode_passages(self.passages)
    losses, ranks, gold_ranks, answer_ranks = [], [], [], []
    for block in _blocks(len(questions), len(passages)):
      scores = questions[block] @ passages.T / np.float32(self.temperature)
      gold = self.gold[block]
      others = [np.array([], np.int64)] * len(gold)
      if self.other_positives is not None:
        others = self.other_positives[block]
      own = scores[np.arange(len(scores)), gold]
      in_pool = without(scores, others)[:, self.pool]
      losses.append(gold_losses(own, in_pool))
      ranks.append(positive_ranks(scores, gold, others, self.pool))
      if self.sub_corpus is not None:
        members = self.sub_corpus.members
        gold_ranks.append(positive_ranks(scores, gold, others, members))
        answer_ranks += self._answer_ranks(
          self.questions[block], scores[:, members]
        )
    rank = np.concatenate(ranks)
    figures = {
      "dev_loss": float(np.concatenate(losses).mean()),
      "dev_average_rank": float(rank.mean()),
      "dev_top1": float((rank == 1).mean()),
      "dev_pool": len(self.pool),
      RANKS: rank.tolist(),
    }
    if self.sub_corpus is not None:
      figures["dev_topk_passages"] = len(self.sub_corpus.members)
      first_ranks = {"gold": np.concatenate(gold_ranks), "answer": answer_ranks}
      for kind, first in first_ranks.items():
        for k in self.sub_corpus.ks:
          share = float((np.asarray(first) <= k).mean())
          figures[f"dev_{kind}_top{k}"] = share
    return figures

  def _answer_ranks(
    self,
    questions: Sequence[records.Question],
    scores: Float[np.ndarray, "questions members"],
  ) -> list[float]:
    """Rank of the first passage with an answer, from 1; infinity = none."""
    members, matcher = self.sub_corpus.members, self.sub_corpus.matcher
    deepest = self.sub_corpus.ks[-1]
    ranks = []
    for number, (question, row) in enumerate(
      zip(questions, scores, strict=True)
    ):
      places = best_first(row, deepest)
      keys = members[places].tolist()
      texts = [self.passages[key].text for key in keys]
      hits = matcher.hits(question.answers, keys, texts, number)
      if True not in hits:
        ranks.append(np.inf)
        continue
      # Passages with the same score count as ahead, unless they have an answer.
      score = row[places[hits.index(True)]]
      equal = sum(np.array(hits) & (row[places] == score)) - 1
      ranks.append(float((~(row < score)).sum() - equal))
    matcher.warn("dev")
    return ranks


def _questions(
  workdir: workdir_lib.Workdir,
  corpus,
  copies: same_passages.Copies,
  wanted: int,
) -> tuple[list[records.Question], list[np.ndarray], list[np.ndarray]]:
  """The first `wanted` dev questions with a gold passage in the corpus.

  Returns:
    The questions (without their passages); for each the corpus rows of its
    positives in the corpus, the gold passage first; and for each the rows of
    its mined hard negatives, best first.  Copies of a passage all have the row
    of the first one.
  """
  table = prepare.open_questions(workdir, "dev")
  path = workdir.negatives / mined_negatives.FILES["dev"]
  mined = mined_negatives.read(path, len(table))
  questions, positives, hard_rows = [], [], []
  for first, block in table.blocks(_BLOCK):
    rows = corpus.rows_of([p.id for q in block for p in q.positives])
    ends = np.cumsum([len(q.positives) for q in block])[:-1]
    for place, own in enumerate(np.split(copies.first(rows), ends)):
      if not len(own) or own[0] < 0 or len(questions) == wanted:
        continue
      hard = copies.first(corpus.rows_of(mined[first + place]))
      if (hard < 0).any():
        unknown = mined[first + place][int(np.argmax(hard < 0))]
        raise errors.InputError(
          f"{path}, line {first + place + 1}: passage {unknown!r} is not in"
          " the corpus; run `dpr-jax mine --overwrite`"
        )
      question = block[place]
      questions.append(records.Question(question.question, question.answers))
      positives.append(own[own >= 0])
      hard_rows.append(hard)
    if len(questions) == wanted:
      break
  if not questions:
    logging.warning(
      "train: no dev figures: none of the %d dev questions has its gold passage"
      " in the corpus",
      len(table),
    )
  elif len(questions) < min(wanted, len(table)):
    logging.warning(
      "train: dev figures of %d questions instead of %d: the other %d dev"
      " questions do not have their gold passage in the corpus",
      len(questions),
      wanted,
      len(table) - len(questions),
    )
  return questions, positives, hard_rows


def sub_corpus_rows(
  gold: Int[np.ndarray, " questions"],
  mined: Sequence[Int[np.ndarray, " _"]],
  others: Int[np.ndarray, " others"],
  size: int,
) -> Int[np.ndarray, " members"]:
  """Corpus rows of the sub-corpus, ascending and distinct.

  Takes the gold passages first, then the hard negatives of all questions rank
  by rank, then the others, up to `size` rows.

  Args:
    gold: rows of the gold passages; questions may share one.
    mined: rows of every question's hard negatives, best first.
    others: rows to fill up with, in this order.
    size: number of passages wanted.

  Raises:
    InputError: `size` is too small for the gold passages.
  """
  golden = len(np.unique(gold))
  if size < golden:
    raise errors.InputError(
      f"config.train.dev_topk_passages={size}: the {len(gold)} dev questions"
      f" have {golden} gold passages, which must all be in the sub-corpus: set"
      f" it to at least {golden}, or lower config.train.dev_questions"
    )
  ranks = itertools.zip_longest(*mined, fillvalue=-1)
  hard = np.array([row for rank in ranks for row in rank], np.int64)
  wanted = np.concatenate([gold, hard[hard >= 0], others])
  _, first = np.unique(wanted, return_index=True)
  return np.sort(wanted[np.sort(first)[:size]])


def _log_sub_corpus(
  members: int,
  encoded: int,
  corpus: int,
  questions: Sequence[records.Question],
  ks: tuple[int, ...],
) -> None:
  logging.info(
    "train: dev top-k over %d of %d passages; every evaluation encodes %d"
    " passages, with those of the pool",
    members,
    corpus,
    encoded,
  )
  without = sum(not question.answers for question in questions)
  if without:
    logging.warning(
      "train: %d of %d dev questions have no answers: dev_answer_top counts"
      " them as misses",
      without,
      len(questions),
    )
  if members <= ks[-1]:
    logging.warning(
      "train: the sub-corpus has %d passages, all of them are in the top-%d",
      members,
      ks[-1],
    )


def _blocks(questions: int, passages: int) -> Iterator[slice]:
  """Slices of questions whose scores are at most `_SCORES`."""
  size = max(1, _SCORES // passages)
  for first in range(0, questions, size):
    yield slice(first, first + size)


def gold_losses(
  own: Float[np.ndarray, " questions"],
  scores: Float[np.ndarray, "questions passages"],
) -> Float[np.ndarray, " questions"]:
  """Negative log-likelihood of every question's gold passage.

  Args:
    own: score of the gold passage.
    scores: of all passages, the gold passage included.
  """
  highest = scores.max(axis=1)
  total = np.exp(scores - highest[:, None]).sum(axis=1, dtype=np.float64)
  return highest + np.log(total) - own


def gold_rank(
  own: Float[np.ndarray, " questions"],
  scores: Float[np.ndarray, "questions passages"],
) -> Int[np.ndarray, " questions"]:
  """Rank of every question's gold passage, from 1; arguments as above.

  A passage with the same score counts as ahead, and so does one with NaN: a
  collapsed model must not look like the best one.
  """
  return scores.shape[1] - (scores < own[:, None]).sum(axis=1)


def without(
  scores: Float[np.ndarray, "questions passages"],
  others: Sequence[Int[np.ndarray, " _"]],
) -> Float[np.ndarray, "questions passages"]:
  """Scores with -inf in the columns that do not count for a question."""
  if not any(map(len, others)):
    return scores
  scores = scores.copy()
  for row, columns in enumerate(others):
    scores[row, columns] = -np.inf
  return scores


def positive_ranks(
  scores: Float[np.ndarray, "questions passages"],
  gold: Int[np.ndarray, " questions"],
  others: Sequence[Int[np.ndarray, " _"]],
  among: Int[np.ndarray, " members"],
) -> Int[np.ndarray, " questions"]:
  """Rank of every question's best positive among a set of passages, from 1.

  Args:
    scores: scores of all passages.
    gold: column of each question's first positive, one of `among`.
    others: columns of its other positives; they never count as ahead.
    among: columns of the passages to rank, ascending.
  """
  others = [columns[np.isin(columns, among)] for columns in others]
  best = gold.copy()
  for row, columns in enumerate(others):
    if len(columns):
      all_of_them = np.append(gold[row], columns)
      best[row] = all_of_them[np.argmax(scores[row, all_of_them])]
  rest = [
    np.setdiff1d(np.append(gold[row], columns), best[row])
    for row, columns in enumerate(others)
  ]
  own = scores[np.arange(len(scores)), best]
  return gold_rank(own, without(scores, rest)[:, among])


def best_first(
  scores: Float[np.ndarray, " passages"], depth: int
) -> Int[np.ndarray, " best"]:
  """Indices of the `depth` highest scores, best first; ties by index."""
  depth = min(depth, len(scores))
  least = np.partition(scores, len(scores) - depth)[len(scores) - depth]
  best = np.flatnonzero(scores >= least)
  return best[np.argsort(-scores[best], kind="stable")][:depth]
