"""The sources of batches of a run's rounds, as the loop reads them.

Input: the source of the first round, before any text is tokenized.  Output, for
each round: packed batches, whose shapes hold all steps of the round, or padded
ones.  A round has the shapes of the one before if they hold its steps; else the
step is recompiled when the round begins.
"""

import dataclasses
import time
from collections.abc import Sequence

import ml_collections
from absl import logging

from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import batches
from dpr_jax.models import retriever_model
from dpr_jax.training import packed_batches, retriever_batches, row_counts


class RoundSources:
  """Makes the source of each round when the round begins.

  With several processes, all of them must ask for it at the same time.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    workdir: workdir_lib.Workdir,
    model: retriever_model.Towers,
    starts: Sequence[int],
    first: batches.BatchSource,
  ):
    """Reads nothing yet.

    Args:
      config: configuration of the experiment.
      workdir: workdir with data and mined negatives.
      model: towers of the run.
      starts: number of steps done when each round begins.
      first: source of the first round, without tokens.

    Raises:
      InputError: a chunk size does not divide the texts of a device.
    """
    self._config, self._workdir, self._model = config, workdir, model
    self._starts, self._first = tuple(starts), first
    # Of each round: counts of its steps and those before, and its shapes.
    self._counted: dict[
      int, tuple[row_counts.Counted, row_counts.StepShapes]
    ] = {}
    if config.train.packing:
      self._packed(first)

  def source(self, number: int) -> batches.Source:
    """The source of a round, with its shapes and the tokens of its texts."""
    base = self._base(number)
    if not self._config.train.packing:
      return base
    _, shapes = self._shapes(number, base)
    return dataclasses.replace(self._packed(base), shapes=shapes)

  def _packed(self, base: batches.BatchSource) -> packed_batches.PackedSource:
    train = self._config.train
    return packed_batches.PackedSource.of(
      base, train.chunk_size, train.question_chunk_size
    )

  def _base(self, number: int) -> batches.BatchSource:
    """The texts of a round."""
    source = self._first
    if number:
      source = retriever_batches.make_source(
        self._config, self._workdir, self._model, number, store=False
      )
    return retriever_batches.with_tokens(source, self._workdir, self._model)

  def _shapes(
    self, number: int, base: batches.BatchSource
  ) -> tuple[row_counts.Counted, row_counts.StepShapes]:
    """Counts of a round with those before it, and the shapes of its steps.

    A resumed run counts the rounds before, too, so that its shapes are those of
    a run that was not interrupted.
    """
    if number in self._counted:
      return self._counted[number]
    source = self._packed(base)
    ends = (*self._starts[1:], len(source))
    steps = range(self._starts[number], ends[number])
    began = time.monotonic()
    counted = whole = row_counts.of_all(source, steps)
    before = None
    if number:
      earlier, before = self._counted.get(number - 1) or self._shapes(
        number - 1, self._base(number - 1)
      )
      whole = earlier + counted
    most = self._config.train.packed_widths
    shapes = row_counts.StepShapes.of(whole, source.rows, most, before)
    if before is not None and shapes.shapes != before.shapes:
      logging.info(
        "train: the texts of round %d need larger rows than those before: the"
        " step is recompiled",
        number + 1,
      )
    row_counts.log("train", counted, shapes, source.rows, began)
    self._counted[number] = whole, shapes
    return whole, shapes
