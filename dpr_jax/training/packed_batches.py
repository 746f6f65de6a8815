"""Training batches of packed rows, as a pure function of (seed, step, process).

Input: a `batches.BatchSource` with the tokens of the run, and the shapes of the
rows of each step.  Output: batches as `models.packed_texts` describes them.
The lengths of all texts of a global batch are known to every process, so all of
them deal its texts to the rows of all devices in the same way, and each makes
its own rows.  The loss does not depend on the order: every question has the
index of its positive, which may be on another device or process.

For very large batches, looking up a global batch in every process would cost
more than it saves: then every process deals the texts of its own questions
(`DEALT_TOGETHER`).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Integer

from dpr_jax.core import errors
from dpr_jax.data import batches, other_positives, packing, run_texts
from dpr_jax.models import packed_texts
from dpr_jax.training import row_counts

# Questions and passages of a global batch that are dealt to the devices of all
# processes.  More are dealt within each process: then the fullest row of any
# process is hardly longer, and a step's batch takes less of a CPU.
DEALT_TOGETHER = 65_536
KINDS = ("questions", "passages")


@dataclasses.dataclass(frozen=True)
class Layout:
  """Rows of a kind of text in a batch.

  Attributes:
    rows: rows of a device; a row is what the device encodes at once.
    slots: texts of a row.
  """

  rows: int
  slots: int

  @classmethod
  def of(cls, texts: int, chunk: int, key: str) -> "Layout":
    """The rows of a device.

    Args:
      texts: texts of a device.
      chunk: texts of a row; 0 = all.
      key: full name of the setting `chunk`, for messages.

    Raises:
      InputError: `chunk` does not divide `texts`.
    """
    if not chunk or chunk >= texts:
      return cls(1, texts)
    if texts % chunk:
      raise errors.InputError(
        f"config.{key}={chunk} does not divide the {texts} texts of a"
        " device: choose a divisor, or 0 for all at once"
      )
    return cls(texts // chunk, chunk)


def layouts(
  questions: int, passages: int, chunk: int, question_chunk: int
) -> tuple[Layout, ...]:
  """Rows of a device, of `KINDS`.

  Args:
    questions: questions of a device.
    passages: passages of a question.
    chunk: `config.train.chunk_size`.
    question_chunk: `config.train.question_chunk_size`.

  Raises:
    InputError: a chunk size does not divide the texts of a device.
  """
  name = "question_chunk_size" if question_chunk else "chunk_size"
  asked = Layout.of(questions, question_chunk or chunk, f"train.{name}")
  return asked, Layout.of(questions * passages, chunk, "train.chunk_size")


def are_dealt_together(texts: int, processes: int, masks: bool) -> bool:
  """Whether texts are dealt to the devices of all processes.

  Args:
    texts: questions and passages of a global batch.
    processes: number of processes.
    masks: whether batches mask answers, for which the order of all passages
      must be known.
  """
  return processes == 1 or masks or texts <= DEALT_TOGETHER


@dataclasses.dataclass(frozen=True)
class _Dealt:
  """A batch, or a process's part of it, dealt to rows.

  Attributes:
    first: row of the global batch of its first question.
    indexes: question of each row.
    keys: key of each passage.
    texts: text number of each passage, see `run_texts`.
    questions: index of the question in each row and slot.
    passages: index of the passage in each row and slot.
  """

  first: int
  indexes: Int[np.ndarray, " questions"]
  keys: Int[np.ndarray, " passages"]
  texts: Int[np.ndarray, " passages"]
  questions: Int[np.ndarray, "question_rows question_slots"]
  passages: Int[np.ndarray, "passage_rows passage_slots"]


@dataclasses.dataclass(frozen=True)
class PackedSource:
  """Random access to packed batches: `source[step]` is this process's share.

  Attributes:
    base: the questions and their passages; with `tokens`.
    layouts: rows of a device, of `KINDS`.
    shapes: shapes of the rows of each step, of `KINDS`; None = not known yet,
      see `row_counts`.
  """

  base: batches.BatchSource
  layouts: tuple[Layout, ...]
  shapes: row_counts.StepShapes | None = None

  @classmethod
  def of(
    cls, base: batches.BatchSource, chunk: int, question_chunk: int
  ) -> "PackedSource":
    """The source before its shapes are known.

    Args:
      base: the source of the run's texts.
      chunk: `config.train.chunk_size`.
      question_chunk: `config.train.question_chunk_size`.

    Raises:
      InputError: a chunk size does not divide the texts of a device.
    """
    questions = base.plan.batch_size // (base.processes * base.cores)
    each = base.sampler.per_question
    return cls(base, layouts(questions, each, chunk, question_chunk))

  def __len__(self) -> int:
    return self.base.steps

  @property
  def together(self) -> bool:
    """Whether texts are dealt to the devices of all processes."""
    base = self.base
    texts = base.plan.batch_size * (1 + base.sampler.per_question)
    masks = base.answer_rows is not None
    return are_dealt_together(texts, base.processes, masks)

  def counted_by_me(self, steps: range) -> range:
    """Those of some steps that this process counts: all processes, all."""
    if self.together:
      return steps[self.base.process :: self.base.processes]
    return steps

  def none(self) -> tuple[packing.Counts, ...]:
    """The counts of no step, of `KINDS`."""
    return tuple(packing.Counts.none(each.slots) for each in self.layouts)

  def count(self, step: int) -> tuple[tuple[packing.Counts, ...], int]:
    """What the rows must hold in a step, of `KINDS`; tokens of the texts.

    The tokens are those of both kinds, in what is dealt together.
    """
    _, indexes, _, texts = self._part(step)
    lengths = self._lengths(indexes, texts)
    counts = tuple(map(packing.count, lengths, self._dealt_rows()))
    return counts, sum(int(each.sum()) for each in lengths)

  @property
  def rows(self) -> tuple[int, ...]:
    """Rows of all devices in a step, of `KINDS`."""
    devices = self.base.cores * self.base.processes
    return tuple(devices * layout.rows for layout in self.layouts)

  def first_of_each_shape(self, steps: range) -> list[int]:
    """See `batches.ShapedSource`."""
    return self.shapes.first_of_each(steps)

  def _dealt_rows(self) -> tuple[int, ...]:
    """Rows that texts are dealt to, of `KINDS`."""
    parts = 1 if self.together else self.base.processes
    return tuple(rows // parts for rows in self.rows)

  def _part(self, step: int) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """What is dealt: its first row, questions, and passages' keys and texts."""
    base = self.base
    indexes, epochs = base.plan.rows(int(step))
    first = 0
    if not self.together:
      share = base.plan.batch_size // base.processes
      first = base.process * share
      own = slice(first, first + share)
      indexes, epochs = indexes[own], epochs[own]
    keys, texts = base.tokens.passages_of_batch(base.sampler, indexes, epochs)
    return first, indexes, keys.reshape(-1), texts.reshape(-1)

  def _lengths(
    self, indexes: np.ndarray, texts: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of questions, and of passages."""
    tokens = self.base.tokens
    return tokens.question_lengths(indexes), tokens.passage_lengths(texts)

  def _dealt(self, step: int) -> _Dealt:
    first, indexes, keys, texts = self._part(step)
    lengths = self._lengths(indexes, texts)
    tables = map(packing.deal, lengths, self._dealt_rows())
    return _Dealt(first, indexes, keys, texts, *tables)

  def _mine(self, table: np.ndarray, layout: Layout) -> np.ndarray:
    """This process's rows."""
    if not self.together:
      return table
    rows = self.base.cores * layout.rows
    return table[self.base.process * rows :][:rows]

  def __getitem__(self, step: int) -> dict[str, Any]:
    """The batch of a step: texts in packed rows, device by device.

    Returns:
      `questions`, `passages`: the fields of `packed_texts.PackedTexts`, without
      dropout keys, as dicts.  The other arrays are those of
      `batches.BatchSource`, in the order of rows, then slots.
    """
    base, dealt = self.base, self._dealt(step)
    shapes = self.shapes.of_step(int(step))
    each = base.sampler.per_question
    asked = self._mine(dealt.questions, self.layouts[0])
    read = self._mine(dealt.passages, self.layouts[1])
    order, passages = asked.reshape(-1), read.reshape(-1)
    places = np.empty(dealt.passages.size, np.int64)
    places[dealt.passages.reshape(-1)] = np.arange(dealt.passages.size)
    # Place in the global batch of every passage of a question.
    own = dealt.first * each + places.reshape(-1, each)[order]
    labels = own[:, 0]
    rows = dealt.first + order
    batch = {
      "questions": pack(
        [base.tokens.question(i) for i in dealt.indexes[order].tolist()],
        shapes[0],
      ),
      "passages": pack(
        [base.tokens.passage(i) for i in dealt.texts[passages].tolist()],
        shapes[1],
      ),
      "question_rows": rows.astype(np.int32),
      "question_keys": dealt.keys[each * order].astype(np.int32),
      "labels": labels.astype(np.int32),
      "passage_rows": (dealt.first * each + passages).astype(np.int32),
      "passage_valid": dealt.texts[passages] != run_texts.NONE,
      "passage_keys": dealt.keys[passages].astype(np.int32),
    }
    if base.positive_columns:
      batch["question_positives"] = other_positives.table(
        base.sampler,
        base.positive_columns,
        *base.plan.rows(int(step)),
        rows,
        batch["question_keys"],
      )
    if base.answer_rows is not None:
      batch["excluded"] = base.answer_rows.excluded(
        dealt.indexes[order],
        dealt.keys[dealt.passages.reshape(-1)].astype(np.int32),
        labels,
      )
    if base.teacher_scores is not None:
      batch |= base.teacher_scores.columns(
        dealt.indexes[order], dealt.keys.reshape(-1, each)[order], own
      )
    return batch


def pack(
  ids: Sequence[Integer[np.ndarray, " _"]], shapes: packing.Shapes
) -> dict[str, Any]:
  """Texts in rows, as a dict of the fields of `packed_texts.PackedTexts`.

  Args:
    ids: token ids of each text, in the order of rows, then slots.
    shapes: shapes of the rows.
  """
  packed = packed_texts.pack(
    [
      ids[first : first + shapes.slots]
      for first in range(0, len(ids), shapes.slots)
    ],
    shapes.width,
    [(tile.slots, tile.length) for tile in shapes.tiles],
  )
  return {
    "token_ids": packed.token_ids,
    "positions": packed.positions,
    "slots": packed.slots,
    "sources": packed.sources,
    "tiles": tuple(
      {"places": tile.places, "lengths": tile.lengths} for tile in packed.tiles
    ),
  }
