"""Chooses which retrieved passages may be hard negatives of a question.

Input: the ranked rows of questions with their scores, and the score of each
question's best positive.  Output: which ranks pass the filters of section
`mine`, and which of the passages that remain are kept.  Whether a passage
contains an answer is not known here.
"""

import dataclasses
from collections.abc import Sequence

import ml_collections
import numpy as np
from jaxtyping import Bool, Float, Int

from dpr_jax.data import mined_negatives, same_passages

_DRAW = 7  # part of the seed, which keeps these draws independent of others


@dataclasses.dataclass(frozen=True)
class Hits:
  """Retrieved passages of questions.

  Attributes:
    rows: rows of the corpus, best first; -1 = no hit.
    scores: their scores, not descending if another score ranked them.
    positives: score of each question's best positive; nan = not known.
  """

  rows: Int[np.ndarray, "questions hits"]
  scores: Float[np.ndarray, "questions hits"]
  positives: Float[np.ndarray, " questions"]

  def part(self, first: int, end: int) -> "Hits":
    """Those of some consecutive questions."""
    return Hits(
      self.rows[first:end], self.scores[first:end], self.positives[first:end]
    )


def best_of(scores: Sequence[np.ndarray]) -> Float[np.ndarray, " lists"]:
  """The largest score of each list; nan for an empty one."""
  return np.array(
    [max(each) if len(each) else np.nan for each in scores], np.float32
  )


@dataclasses.dataclass(frozen=True)
class Filters:
  """The filters of section `mine`.

  Attributes:
    keep: largest number of hard negatives per question.
    range_min: number of best ranks that are left out.
    max_score: largest score; None = any.
    min_score: smallest score; None = any.
    absolute_margin: smallest distance below the positive's score; None = any.
    relative_margin: the same as a share of the positive's score.
    sampling: "top", "random" or "score".
    seed: seed of the draws.
  """

  keep: int
  range_min: int = 0
  max_score: float | None = None
  min_score: float | None = None
  absolute_margin: float | None = None
  relative_margin: float | None = None
  sampling: str = "top"
  seed: int = 0

  @classmethod
  def of(cls, config: ml_collections.ConfigDict) -> "Filters":
    """The filters of a config."""
    mine = config.mine
    number = mined_negatives.number
    return cls(
      keep=int(mine.keep),
      range_min=int(mine.range_min),
      max_score=number(mine.max_score),
      min_score=number(mine.min_score),
      absolute_margin=number(mine.absolute_margin),
      relative_margin=number(mine.relative_margin),
      sampling=mine.sampling,
      seed=int(config.seed),
    )

  def passed(self, hits: Hits) -> Bool[np.ndarray, "questions hits"]:
    """Which ranks pass; a margin has no effect where no positive is scored.

    The margins are those of sentence-transformers' `mine_hard_negatives` where
    the positive's score is not negative: score <= positive - absolute_margin,
    and score <= positive * (1 - relative_margin).  That product would be above
    a negative score, so the margin is a share of its size.
    """
    scores = hits.scores.astype(np.float64)
    passed = hits.rows >= 0
    passed[:, : self.range_min] = False
    if self.max_score is not None:
      passed &= scores <= self.max_score
    if self.min_score is not None:
      passed &= scores >= self.min_score
    positives = hits.positives.astype(np.float64)[:, None]
    margins = (
      self.absolute_margin,
      None
      if self.relative_margin is None
      else self.relative_margin * np.abs(positives),
    )
    for margin in margins:
      if margin is not None:
        passed &= (scores <= positives - margin) | np.isnan(positives)
    return passed

  def draw(
    self, question: str, scores: Float[np.ndarray, " negatives"]
  ) -> Int[np.ndarray, " kept"]:
    """Places of the hard negatives that are kept, in order.

    A draw depends on the seed and the question's text only.  By score, chances
    are proportional to exp(score / s), with the standard deviation s of these
    scores, so that they do not depend on the ranker's scale.

    Args:
      question: text of the question.
      scores: of its hard negatives, in the order of their ranks.
    """
    count = len(scores)
    if self.sampling == "top" or count <= self.keep:
      return np.arange(min(count, self.keep))
    key = (self.seed, _DRAW, same_passages.text_digest(question))
    generator = np.random.default_rng(key)
    if self.sampling == "random":
      drawn = generator.choice(count, self.keep, replace=False)
    else:
      # The largest of score / s + Gumbel noise: draws without replacement.
      values = scores.astype(np.float64)
      noisy = values / (values.std() or 1.0) + generator.gumbel(size=count)
      drawn = np.argsort(-noisy, kind="stable")[: self.keep]
    return np.sort(drawn)
