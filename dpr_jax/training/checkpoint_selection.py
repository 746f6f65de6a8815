"""Which checkpoint later stages use: the last, the best, or a mean of several.

The best is by a metric of the dev rows (`config.train.best_metric`); the mean
is over the parameters of the last `config.train.average_checkpoints`.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_collections

from dpr_jax.core import errors, setting_rules
from dpr_jax.training import validation


@dataclasses.dataclass
class Selection:
  """The rule, and the best dev row so far.

  Attributes:
    metric: name of a dev metric, "" = none.
    average: checkpoints averaged, 1 = none.
    best_step: of the best dev row, 0 before there is one.
    best_value: the metric there.
  """

  metric: str
  average: int
  best_step: int = 0
  best_value: float = 0.0

  @classmethod
  def of(cls, config: ml_collections.ConfigDict) -> "Selection":
    """The rule of `config.train`.

    Raises:
      InputError: a metric that this config does not give, or both rules.
    """
    return cls(*setting_rules.selection(config))

  def check(self, has_dev: bool) -> None:
    """`InputError` where a best metric is wanted and nothing gives it."""
    if self.metric and not has_dev:
      raise errors.InputError(
        f"config.train.best_metric={self.metric!r}: no dev question has its"
        " gold passage in the corpus, so there is no such metric"
      )

  def recall(
    self, rows: Iterable[Mapping[str, Any]], saved: Sequence[int]
  ) -> None:
    """Finds the best again among the rows of a run that is resumed."""
    for row in rows:
      if row["step"] in saved and self.metric in row:
        self.is_best(row)

  def is_best(self, row: Mapping[str, Any]) -> bool:
    """Notes a dev row; True where it is better than all before."""
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
    """The checkpoints to use, of those that there are, and why.

    Until there is a best one, the newest is used.
    """
    saved = sorted(set(saved))
    if self.metric and self.best_step in saved:
      why = {"why": f"best {self.metric}", "value": self.best_value}
      return [self.best_step], why
    if self.average > 1:
      return saved[-self.average :], {"why": "mean of the last"}
    return saved[-1:], {"why": "the last"}
