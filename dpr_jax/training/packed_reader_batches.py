"""The reader's batches in packed rows, as a pure function of (seed, step).

Input: `reader_batches.ReaderBatches`, and the shapes of the rows of each step.
Output: batches as `models.packed_texts` describes them.  Every process draws
the inputs of the global batch and deals them to the rows of all devices in the
same way; each composes those of its own rows.  With `sort_batches`, batches are
about as full as one another, so that rows that hold them all are hardly wider.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Int

from dpr_jax.data import packing, reader_batches
from dpr_jax.training import packed_batches, row_counts


@dataclasses.dataclass(frozen=True, eq=False)
class PackedReaderBatches:
  """Random access to packed batches: `source[step]` is this process's share.

  Attributes:
    base: the inputs; `groups` and `length_step` are not read.
    layout: rows of a device.
    shapes: shapes of the rows of each step; None = not known yet, see
      `row_counts`.
  """

  base: reader_batches.ReaderBatches
  layout: packed_batches.Layout
  shapes: row_counts.StepShapes | None = None

  @classmethod
  def of(
    cls, base: reader_batches.ReaderBatches, chunk: int
  ) -> "PackedReaderBatches":
    """The source before its shapes are known.

    Args:
      base: the source of the run's inputs.
      chunk: `config.reader.chunk_size`.

    Raises:
      InputError: the chunk size does not divide the inputs of a device.
    """
    base = dataclasses.replace(base, even=True)
    inputs = base.plan.batch_size * base.passages
    each = inputs // (base.processes * base.cores)
    layout = packed_batches.Layout.of(each, chunk, "reader.chunk_size")
    return cls(base, layout)

  def __len__(self) -> int:
    return self.base.steps

  @property
  def rows(self) -> tuple[int, ...]:
    """Rows of all devices in a step; of one kind of text."""
    return (self.base.cores * self.base.processes * self.layout.rows,)

  def none(self) -> tuple[packing.Counts, ...]:
    """The counts of no step."""
    return (packing.Counts.none(self.layout.slots),)

  def first_of_each_shape(self, steps: range) -> list[int]:
    """See `batches.ShapedSource`."""
    return self.shapes.first_of_each(steps)

  def counted_by_me(self, steps: range) -> range:
    """Those of some steps that this process counts: all processes, all."""
    # Consecutive ones, as questions are dealt to consecutive batches.
    each = -(-len(steps) // self.base.processes)
    return steps[self.base.process * each :][:each]

  def count(self, step: int) -> tuple[tuple[packing.Counts, ...], int]:
    """What the rows must hold in a step, and tokens of the inputs."""
    lengths = reader_batches.lengths_of(self.base.drawn(step))
    return (packing.count(lengths, *self.rows),), int(lengths.sum())

  def __getitem__(self, step: int) -> dict[str, Any]:
    """The batch of a step: inputs in packed rows, device by device.

    Returns:
      `inputs`: `texts`, the fields of `packed_texts.PackedTexts` as a dict
      without dropout keys; `question_ends`, `passages`, `counts` [rows, slots]
      as in `span_reader.PackedRows`; and `starts`, `ends` [inputs, spans] and
      `spans` as in `reader_batches.ReaderBatches`, as are `rows` and `valid`,
      in the order of rows, then slots.
    """
    base = self.base
    drawn = base.drawn(step)
    (shapes,) = self.shapes.of_step(int(step))
    dealt = packing.deal(reader_batches.lengths_of(drawn), *self.rows)
    mine = base.cores * self.layout.rows
    dealt = dealt[base.process * mine :][:mine]
    order: Int[np.ndarray, " inputs"] = dealt.reshape(-1)
    own = [drawn[place] for place in order.tolist()]
    inputs, tokenizer = base.inputs(own), base.data.tokenizer
    parts = tokenizer.parts(inputs, tokenizer.length)
    return {
      "inputs": {
        "texts": packed_batches.pack([one.ids for one in inputs], shapes),
        **{name: part.reshape(dealt.shape) for name, part in parts.items()},
        **base.answers(own),
      },
      "rows": order.astype(np.int32),
      "valid": np.array([one is not None for one in own]),
    }
