"""Our side of `bench train`: the step of training, from texts to parameters.

Input: a config and a workdir.  Output: the loss of a step, tokens and FLOPs.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from dpr_jax.benchmarking import training_texts
from dpr_jax.core import devices as devices_lib
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import batches
from dpr_jax.models import flops as flops_lib
from dpr_jax.models import retriever_model
from dpr_jax.training import (
  packed_batches,
  retriever_batches,
  row_counts,
  train_step,
)

_KEYS = ("question_keys", "question_positives", "passage_keys")


class Trainer:
  """The step of `dpr-jax train`, for some rounds.

  Attributes:
    rounds: the batches of the measured rounds.
    learning_rate: learning rate of the last step.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    workdir: workdir_lib.Workdir,
    rounds: int,
  ):
    """Loads the checkpoint; the step compiles at its first run.

    Args:
      config: the experiment.
      workdir: workdir after `prepare` and `mine`.
      rounds: number of rounds.

    Raises:
      InputError: there is no batch that both sides can train on.
    """
    self.model = retriever_model.start(config)
    texts = retriever_batches.make_source(
      config, workdir, self.model, store=False
    )
    self.rounds = training_texts.choose(texts, rounds)
    self._source = texts
    if config.train.packing:
      self._source = _packed(texts, config.train, self.rounds)
    built = train_step.build(config, self.model, texts.steps)
    self._mapped = built.mapped()
    self._state = built.place(0, *built.init(self.model.params))
    self.learning_rate = float(built.schedule(0))

  def step(
    self, round_: training_texts.Round, *, mask_copies: bool = True
  ) -> float:
    """Runs one training step, from texts to new parameters.

    Args:
      round_: the batch; its texts are read from the workdir.
      mask_copies: whether to mask copies of a question's positive among the
        in-batch negatives, as training does.

    Returns:
      The loss before the step.
    """
    batch = self._source[round_.step]
    if not mask_copies:
      for name in {*_KEYS} & {*batch}:
        batch[name] = np.full_like(batch[name], -1)
    self._state, reported = self._mapped(
      self._state, devices_lib.split_over_cores(batch)
    )
    loss = float(reported["loss"])
    self.learning_rate = float(reported["learning_rate"])
    jax.block_until_ready(self._state)
    return loss

  def work(self, round_: training_texts.Round) -> flops_lib.Work:
    """Tokens and FLOPs of a step."""
    sizes, batch = self.model.encoder.config, self._source[round_.step]
    total = flops_lib.Work()
    for kind in packed_batches.KINDS:
      texts = batch[kind]
      if "mask" in texts:
        total += flops_lib.training_work(sizes, [texts["mask"]])
        continue
      tiles = [
        (tile["lengths"], tile["places"].shape[-1]) for tile in texts["tiles"]
      ]
      places = texts["token_ids"].size
      total += flops_lib.packed_training_work(sizes, tiles, places)
    return total

  def first_of_each_shape(self) -> list[int]:
    """Numbers of the first rounds with each batch shape."""
    first: dict[Any, int] = {}
    for number, round_ in enumerate(self.rounds):
      leaves = jax.tree.leaves(self._source[round_.step])
      first.setdefault(tuple(map(np.shape, leaves)), number)
    return list(first.values())


def _packed(
  texts: batches.BatchSource,
  train_config: ml_collections.ConfigDict,
  rounds: Sequence[training_texts.Round],
) -> packed_batches.PackedSource:
  """Packed batches, in rows that hold those of some rounds."""
  source = packed_batches.PackedSource.of(
    dataclasses.replace(texts, tokens=training_texts.BatchTokens(texts)),
    train_config.chunk_size,
    train_config.question_chunk_size,
  )
  steps = [each.step for each in rounds]
  counted = row_counts.of_all(source, range(min(steps), max(steps) + 1))
  shapes = row_counts.StepShapes.of(
    counted, source.rows, train_config.packed_widths
  )
  return dataclasses.replace(source, shapes=shapes)
