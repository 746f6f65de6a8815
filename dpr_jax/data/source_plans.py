"""Plans batches of several sources: how often, and which ones together.

Input: the number of questions of each source, their weights, and the seed.
Output: a `batches.Plan`, which maps a step to questions: a pure function of
(seed, step), whatever the number of devices.

Each source is an endless stream of permutations of its questions ("passes").
An epoch takes weight * questions from every stream: all questions of a source
of weight 2 twice, and another half of those of a source of weight 0.5.  No
question is dropped, and its negatives are drawn again in every pass.

Rounds may have weights of their own.  Every round has a plan, for all steps,
and uses its steps of it: at the start of a round the streams are read on from
another place, so the passes underway are not completed.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
from absl import logging
from jaxtyping import Int

from dpr_jax.core import setting_rules
from dpr_jax.data import batches

# Parts of the seeds: of a pass, of the order of sources.  See
# `negative_sampling` for the others.
_PASS, _SOURCES = 8, 9


@dataclasses.dataclass(frozen=True)
class Share:
  """A source of questions.

  Attributes:
    first: index of its first question.
    questions: number of its questions.
    drawn: number of questions that an epoch takes from it.
  """

  first: int
  questions: int
  drawn: int


@dataclasses.dataclass(frozen=True)
class MixedPlan(batches.Plan):
  """Questions of all sources together; `questions` is the size of an epoch.

  Attributes:
    shares: the sources, in the order of the data.
  """

  shares: tuple[Share, ...] = ()

  def rows(self, step: int) -> tuple[np.ndarray, np.ndarray]:
    """(question indexes, passes) of each global row of a step."""
    places = np.arange(self.batch_size, dtype=np.int64)
    places += step * self.batch_size
    epochs, places = np.divmod(places, self.questions)
    slots = np.empty_like(places)
    for epoch in np.unique(epochs):
      chosen = epochs == epoch
      order = _order((self.seed, 1, int(epoch)), self.questions)
      slots[chosen] = order[places[chosen]]
    ends = np.cumsum([share.drawn for share in self.shares])
    sources = np.searchsorted(ends, slots, side="right")
    indexes, passes = np.empty_like(slots), np.empty_like(slots)
    for number, share in enumerate(self.shares):
      own = sources == number
      start = ends[number] - share.drawn
      stream = epochs[own] * share.drawn + slots[own] - start
      indexes[own], passes[own] = self._stream(number, stream)
    return indexes, passes

  def _stream(
    self, number: int, places: Int[np.ndarray, " places"]
  ) -> tuple[np.ndarray, np.ndarray]:
    """(question indexes, passes) at some places of a source's stream."""
    share = self.shares[number]
    passes, places = np.divmod(places, share.questions)
    indexes = np.empty_like(places)
    for one in np.unique(passes):
      chosen = passes == one
      order = _order((self.seed, _PASS, number, int(one)), share.questions)
      indexes[chosen] = order[places[chosen]] + share.first
    return indexes, passes


@dataclasses.dataclass(frozen=True)
class OneSourcePlan(MixedPlan):
  """As `MixedPlan`, but a batch has questions of a single source.

  The batches of an epoch are divided among the sources by what the epoch takes
  from each, at least one per source; their order is drawn for every epoch.
  """

  @property
  def batches(self) -> tuple[int, ...]:
    """Batches of each source in an epoch, by the largest remainders."""
    total = max(-(-self.questions // self.batch_size), len(self.shares))
    exact = [s.drawn * total / self.questions for s in self.shares]
    counts = [max(1, int(each)) for each in exact]
    while sum(counts) != total:
      sign = 1 if sum(counts) < total else -1
      rest = [sign * (e - c) for e, c in zip(exact, counts, strict=True)]
      if sign < 0:  # a source keeps at least one batch
        pairs = zip(rest, counts, strict=True)
        rest = [r if count > 1 else -np.inf for r, count in pairs]
      counts[int(np.argmax(rest))] += sign
    return tuple(counts)

  def rows(self, step: int) -> tuple[np.ndarray, np.ndarray]:
    """(question indexes, passes) of each global row of a step."""
    counts = self.batches
    epoch, place = divmod(step, sum(counts))
    generator = np.random.default_rng((self.seed, _SOURCES, epoch))
    order = generator.permutation(np.repeat(np.arange(len(counts)), counts))
    number = int(order[place])
    before = epoch * counts[number] + int((order[:place] == number).sum())
    places = np.arange(self.batch_size, dtype=np.int64)
    return self._stream(number, before * self.batch_size + places)


@functools.lru_cache(maxsize=8)
def _order(seed: tuple[int, ...], count: int) -> Int[np.ndarray, " count"]:
  return np.random.default_rng(seed).permutation(count)


def make(
  seed: int,
  train: Mapping[str, Any] | ml_collections.ConfigDict,
  sizes: Sequence[int],
  number: int = 0,
) -> batches.Plan:
  """The plan of a run, or of a round; the first one's epochs count.

  Args:
    seed: seed of the run.
    train: section `train` of a config; older ones lack the weights.
    sizes: number of questions of each source.
    number: number of the round, from 0.

  Raises:
    InputError: another number of weights than of sources, or several sources
      are needed.
  """
  weights = setting_rules.weights_of_round(train, len(sizes), number)
  one_source = train.get("one_source_batches", False)
  batch_size = max(1, train["batch_size"])
  drawn = setting_rules.questions_per_source(sizes, weights, one_source)
  if tuple(drawn) == tuple(sizes) and not one_source:
    return batches.Plan(seed, sum(sizes), batch_size)
  firsts = np.cumsum([0, *sizes[:-1]]).tolist()
  shares = map(Share, firsts, sizes, drawn)
  kind = OneSourcePlan if one_source else MixedPlan
  return kind(seed, sum(drawn), batch_size, tuple(shares))


def log(plan: batches.Plan, names: Sequence[str]) -> None:
  """Logs what an epoch takes from each source.

  Args:
    plan: plan of a run.
    names: names of the sources.
  """
  if not isinstance(plan, MixedPlan):
    return
  alone = isinstance(plan, OneSourcePlan)
  for number, share in enumerate(plan.shares):
    logging.info(
      "train: source %s: %d questions, %s per epoch",
      names[number],
      share.questions,
      f"{plan.batches[number]} batches" if alone else f"{share.drawn} drawn",
    )
    if alone and share.questions < plan.batch_size:
      logging.warning(
        "train: source %s has %d questions, fewer than train.batch_size=%d: its"
        " batches have questions several times",
        names[number],
        share.questions,
        plan.batch_size,
      )
