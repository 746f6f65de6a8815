"""The reader's batches in packed rows, as a pure function of (seed, step).

Input: `reader_batches.ReaderBatches`, and the shapes of the rows.  Output:
batches as `models.packed_texts` describes them.  Every process draws the inputs
of the global batch and deals them to the rows of all devices in the same way;
each composes those of its own rows.  With `sort_batches`, batches are about as
full as one another, so that rows that hold them all are hardly wider.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Int

from dpr_jax.data import packing, reader_batches
from dpr_jax.training import packed_batches


@dataclasses.dataclass(frozen=True, eq=False)
class PackedReaderBatches:
  """Random access to packed batches: `source[step]` is this process's share.

  Attributes:
    base: the inputs; `groups` and `length_step` are not read.
    layout: rows of a device.
    shapes: shapes of a row; None = not known yet, see `count`.
  """

  base: reader_batches.ReaderBatches
  layout: packed_batches.Layout
  shapes: packing.Shapes | None = None

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

  def with_shapes(
    self, counts: Iterable[packing.Counts]
  ) -> "PackedReaderBatches":
    """The source with the shapes that hold these counts."""
    (shapes,) = map(packing.Shapes.of, counts)
    return dataclasses.replace(self, shapes=shapes)

  def __len__(self) -> int:
    return self.base.steps

  @property
  def _rows(self) -> int:
    """Rows of all devices."""
    return self.base.cores * self.base.processes * self.layout.rows

  def counted_by_me(self, steps: range) -> range:
    """Those of some steps that this process counts: all processes, all."""
    # Consecutive ones, as questions are dealt to consecutive batches.
    each = -(-len(steps) // self.base.processes)
    return steps[self.base.process * each :][:each]

  def count(
    self, steps: Iterable[int]
  ) -> tuple[tuple[packing.Counts, ...], int]:
    """What the rows must hold in some steps, and tokens of the inputs."""
    counts, tokens = packing.Counts.none(self.layout.slots), 0
    for step in steps:
      lengths = reader_batches.lengths_of(self.base.drawn(step))
      counts |= packing.count(lengths, self._rows)
      tokens += int(lengths.sum())
    return (counts,), tokens

  def places(self) -> int:
    """Places of a global batch."""
    return self._rows * self.shapes.width

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
    dealt = packing.deal(reader_batches.lengths_of(drawn), self._rows)
    mine = base.cores * self.layout.rows
    dealt = dealt[base.process * mine :][:mine]
    order: Int[np.ndarray, " inputs"] = dealt.reshape(-1)
    own = [drawn[place] for place in order.tolist()]
    inputs, tokenizer = base.inputs(own), base.data.tokenizer
    parts = tokenizer.parts(inputs, tokenizer.length)
    return {
      "inputs": {
        "texts": packed_batches.pack([one.ids for one in inputs], self.shapes),
        **{name: part.reshape(dealt.shape) for name, part in parts.items()},
        **base.answers(own),
      },
      "rows": order.astype(np.int32),
      "valid": np.array([one is not None for one in own]),
    }
