"""Selects the checkpoint for later stages: the last, the best, or a mean.

The best one has the best `config.train.best_metric` among the dev rows; the
mean is over the parameters of the last `config.train.average_checkpoints`.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_collections

from dpr_jax.core import errors, setting_rules
from dpr_jax.training import validation


@dataclasses.dataclass
class Selection:
  """The rule of selection, and the best dev row so far.

  Attributes:
    metric: name of a dev metric; "" = none, use the last checkpoint.
    average: number of checkpoints averaged; 1 = no averaging.
    starts: steps done when the parameters started again; checkpoints of before
      and after are not averaged.
    best_step: step of the best dev row; 0 = there is none yet.
    best_value: its value of the metric.
  """

  metric: str
  average: int
  starts: tuple[int, ...] = ()
  best_step: int = 0
  best_value: float = 0.0

  @classmethod
  def of(cls, config: ml_collections.ConfigDict) -> "Selection":
    """The rule of `config.train`.

    Raises:
      InputError: the dev rows of this config do not have the metric, or both a
        metric and averaging are set.
    """
    return cls(*setting_rules.selection(config))

  def check(self, has_dev: bool, blend: str = "none") -> None:
    """Raises `InputError` if there are no dev rows to choose by.

    Args:
      has_dev: the run has dev rows.
      blend: `config.train.blend`.
    """
    for key, value, none in (
      ("best_metric", self.metric, ""),
      ("blend", blend, "none"),
    ):
      if value != none and not has_dev:
        raise errors.InputError(
          f"config.train.{key}={value!r}: no dev question has its gold passage"
          " in the corpus, so there are no dev metrics: set"
          f" config.train.{key}={none!r} or check config.data.dev"
        )

  def recall(
    self, rows: Iterable[Mapping[str, Any]], saved: Sequence[int]
  ) -> None:
    """Restores the best dev row of a resumed run.

    Args:
      rows: of `metrics.jsonl`.
      saved: steps with a checkpoint; rows of other steps do not count.
    """
    for row in rows:
      if row["step"] in saved and self.metric in row:
        self.is_best(row)

  def is_best(self, row: Mapping[str, Any]) -> bool:
    """Updates the best with a dev row; True if it is better than all before."""
    if not self.metric:
      return False
    value = row[self.metric]
    if self.metric in validation.LOWER_IS_BETTER:
      better = value < self.best_value
    else:
      better = value > self.best_value
    if self.best_step and not better:
      return False
    self.best_step, self.best_value = row["step"], value
    return True

  def steps(self, saved: Iterable[int]) -> tuple[list[int], dict[str, Any]]:
    """The checkpoints to use, and the reason for the manifest.

    Without a dev row yet, the newest one is used.

    Args:
      saved: steps with a checkpoint, in any order.
    """
    saved = sorted(set(saved))
    if self.metric and self.best_step in saved:
      why = {"why": f"best {self.metric}", "value": self.best_value}
      return [self.best_step], why
    if self.average > 1:
      begins = [start for start in self.starts if start < saved[-1]]
      saved = [step for step in saved if step > max(begins, default=-1)]
      return saved[-self.average :], {"why": "mean of the last"}
    return saved[-1:], {"why": "the last"}
