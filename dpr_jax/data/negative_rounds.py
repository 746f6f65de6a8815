"""Divides a training run into rounds with newly mined negatives.

A run with `config.train.rounds` > 1 has several rounds of equal length.  Round
0 trains on the negatives that were mined before the run;
`training/rounds/<number>/negatives.jsonl.gz` has those that the model mined at
the beginning of a later round, `passage.jsonl.gz` beside it the neighbours of
the gold passages, if `config.train.negatives` names them.
`retrieval.negative_refresh` writes these files, training reads them.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import ml_collections

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import mined_negatives, negative_mixture, source_plans

FILES = {"model": "negatives.jsonl.gz", "passage": "passage.jsonl.gz"}
_COMMAND = "dpr-jax train --overwrite"


def boundaries(steps: int, rounds: int) -> tuple[int, ...]:
  """Number of finished steps at the beginning of each round; the first is 0.

  Raises:
    InputError: fewer than one round, or more than steps.
  """
  config_lib.at_least("train.rounds", rounds, 1)
  if rounds > steps:
    raise errors.InputError(
      f"config.train.rounds={rounds}: the run has only {steps} steps; set"
      f" config.train.rounds={steps} at most, or train for longer"
    )
  return tuple(number * steps // rounds for number in range(rounds))


@dataclasses.dataclass(frozen=True)
class Rounds:
  """The rounds of a run, and how negatives are mined between them.

  Attributes:
    seed: seed of the run.
    questions: number of training questions.
    steps: steps of the whole run.
    starts: finished steps at the beginning of each round; (0,) = one round.
    mining: settings of the mining, `mined_negatives.settings`; {} with one
      round, for which nothing is mined.
    kinds: kinds of negatives that are mined, keys of `FILES`.
  """

  seed: int
  questions: int
  steps: int
  starts: tuple[int, ...]
  mining: dict[str, Any]
  kinds: tuple[str, ...] = ("model",)

  @classmethod
  def of(
    cls, config: ml_collections.ConfigDict, sizes: Sequence[int]
  ) -> "Rounds":
    """The rounds of a run.

    Args:
      config: config of the experiment.
      sizes: number of training questions of each source.

    Raises:
      InputError: a bad number of rounds, or a bad setting of the mining.
    """
    train = config.train
    plan = source_plans.make(config.seed, train, sizes)
    steps = plan.steps(train.epochs, train.max_steps)
    starts = boundaries(steps, train.rounds)
    questions = sum(sizes)
    if len(starts) == 1:
      return cls(config.seed, questions, steps, starts, {})
    mining = mined_negatives.settings(config)
    mixture = negative_mixture.Mixture.parse(
      train.negatives, train.hard_negatives
    )
    kinds = mixture.of_rounds
    return cls(config.seed, questions, steps, starts, mining, kinds)

  def stage(
    self, workdir: workdir_lib.Workdir, number: int
  ) -> workdir_lib.Stage:
    """The stage of a round's negatives: all they depend on but the model.

    Raises:
      InputError: there is no such round, or it is the first.
    """
    if not 0 < number < len(self.starts):
      raise errors.InputError(
        f"config.train.rounds={len(self.starts)}: there is no round"
        f" {number} to mine"
      )
    settings: dict[str, Any] = {
      "seed": self.seed,
      "round": number,
      "step": self.starts[number],
    }
    if self.kinds != ("model",):  # older versions had only this one
      settings["kinds"] = list(self.kinds)
    return workdir_lib.Stage(
      "train",
      folder_of(workdir, number),
      self.mining | settings,
      workdir_lib.dataset_inputs(workdir, "passages", "train"),
    )

  def read(
    self, workdir: workdir_lib.Workdir, number: int, kind: str = "model"
  ) -> list[list[str]]:
    """A round's negatives: passage ids per training question, best first.

    Args:
      workdir: workdir of the run.
      number: number of the round, 1 or more.
      kind: one of `kinds`.

    Raises:
      InputError: the negatives are missing, or of other data, another step or
        other settings.
    """
    stage = self.stage(workdir, number)
    if not stage.manifest.exists():
      raise errors.InputError(
        f"{stage.manifest} is missing: the negatives of round {number} and the"
        f" model that mined them no longer exist; run `{_COMMAND}`"
      )
    try:
      record = workdir_lib.read_record(stage.manifest)
    except errors.InputError as error:
      raise errors.InputError(f"{error}; run `{_COMMAND}`") from error
    wrong = [
      name
      for name, value in stage.inputs.items()
      if record.get("inputs", {}).get(name) != value
    ]
    if record.get("config_hash") != stage.config_hash:
      wrong.append("step or settings")
    if wrong:
      raise errors.InputError(
        f"{stage.folder} has negatives of another run (different"
        f" {', '.join(wrong)}); run `{_COMMAND}`"
      )
    path = stage.folder / FILES[kind]
    return mined_negatives.read(path, self.questions, _COMMAND)


def folder_of(workdir: workdir_lib.Workdir, number: int) -> pathlib.Path:
  """`training/rounds/<number>`."""
  return workdir.training / "rounds" / str(number)
