"""The reader's batches as a pure function of (seed, step, process).

`batches.Plan` maps rows to questions; the positive, window and negatives of a
question depend only on (seed, epoch, question).  The inputs of a process are
sorted by length and dealt to its devices, and each group is padded to its own
length; this does not change the loss, because every input has the index of its
question.  With `sort_batches` the questions of several consecutive batches are
sorted by length first, so that the inputs of a batch have similar lengths.
`training/packed_reader_batches.py` packs the same inputs; then these questions
are dealt so that all batches have about as many tokens.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from dpr_jax.data import (
  batches,
  packing,
  reader_examples,
  reader_tokenization,
)

NOTHING = reader_tokenization.ReaderInput(  # a missing negative
  np.zeros(1, np.int32), 1, 1, reader_tokenization.Window(0, 0)
)


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
  """One passage of one question in a batch, before its input is composed.

  Attributes:
    row: row of the passage in the store.
    head: token ids before the passage.
    question_end: see `reader_tokenization.ReaderInput`.
    window: tokens of the passage that are read.
    length: tokens of the input.
    spans: positions (first, last) of the answers in the input; () = a negative.
  """

  row: int
  head: Int[np.ndarray, " head"]
  question_end: int
  window: reader_tokenization.Window
  length: int
  spans: reader_examples.Spans = ()


@dataclasses.dataclass(frozen=True, eq=False)
class ReaderBatches:
  """Random access to batches: `source[step]` is this process's share.

  Attributes:
    plan: maps global rows to questions.
    steps: number of batches.
    data: the examples.
    passages: passages per question: a positive and the negatives.
    spans: maximum number of answers in a positive.
    groups: maximum number of length groups.
    length_step: padded lengths are multiples of it; 0 = always the tokenizer's
      length.
    sort_batches: number of batches whose questions are sorted together, or
      dealt; 1 = neither.
    even: the questions of `sort_batches` batches are not sorted, but dealt.
    cores: devices of this process.
    process: index of this process.
    processes: number of processes.
  """

  plan: batches.Plan
  steps: int
  data: reader_examples.Examples
  passages: int = 24
  spans: int = 10
  groups: int = 1
  length_step: int = 0
  sort_batches: int = 1
  even: bool = False
  cores: int = 1
  process: int = 0
  processes: int = 1
  _block: dict[int, list] = dataclasses.field(
    default_factory=dict, init=False, repr=False
  )

  def __len__(self) -> int:
    return self.steps

  def __getitem__(self, step: int) -> dict[str, Any]:
    """The batch of a step.

    Returns:
      `inputs`: a tuple of groups with the arrays of `ReaderBatch`, and per
      input `starts`, `ends` [inputs, spans] (positions of the answers, padded
      with 0) and `spans` (their number).  In the order of the groups' rows,
      device by device: `rows` (question's row in the global batch * passages +
      number; number 0 is the positive) and `valid` (False = padding).
    """
    pairs = self._questions(int(step))
    share = self.plan.batch_size // self.processes
    if not self.length_step:  # else the lengths in all processes set the shapes
      pairs = pairs[self.process * share : (self.process + 1) * share]
    flat = [one for pair in pairs for one in self.draw(*pair)]
    count = share * self.passages
    lengths = lengths_of(flat)
    # [processes, inputs], or [1, inputs] where only this process's are drawn.
    shares = lengths.reshape(-1, count)
    each = count // self.cores
    parts = np.array_split(np.arange(each), min(self.groups, each))
    sizes = [len(part) for part in parts]
    starts = np.cumsum([0, *(size * self.cores for size in sizes)])
    widths = self._widths(shares, starts)
    own = self.process if len(shares) > 1 else 0
    mine = flat[own * count : (own + 1) * count]
    order = np.argsort(-shares[own], kind="stable")
    groups, rows = [], []
    for first, end, width in zip(starts[:-1], starts[1:], widths, strict=True):
      # [devices, rows of the group]: as in `batches`, a device's places are
      # consecutive once the groups are joined.
      dealt = order[first:end].reshape(self.cores, -1)
      groups.append(self._group([mine[i] for i in dealt.reshape(-1)], width))
      rows.append(dealt)
    places = np.concatenate(rows, axis=1).reshape(-1)
    return {
      "inputs": tuple(groups),
      "rows": (self.process * count + places).astype(np.int32),
      "valid": np.array([mine[place] is not None for place in places]),
    }

  def _widths(
    self, shares: Int[np.ndarray, "processes inputs"], starts: np.ndarray
  ) -> list[int]:
    """Padded length of every group, the same in all processes.

    The longest input of a group in any process decides: inputs are sorted in
    descending order, so it is the first one of the group.
    """
    limit = self.data.tokenizer.length
    if not self.length_step:
      return [limit] * (len(starts) - 1)
    descending = -np.sort(-shares, axis=1)
    longest = descending[:, starts[:-1]].max(axis=0)
    steps = -(-longest // self.length_step)
    return np.minimum(steps * self.length_step, limit).tolist()

  def _group(
    self, drawn: list[Choice | None], width: int
  ) -> dict[str, np.ndarray]:
    batch = self.data.tokenizer.pad(self.inputs(drawn), width)
    return {
      **{
        field.name: getattr(batch, field.name)
        for field in dataclasses.fields(batch)
      },
      **self.answers(drawn),
    }

  def inputs(
    self, drawn: Sequence[Choice | None]
  ) -> list[reader_tokenization.ReaderInput]:
    """The composed inputs; `NOTHING` for a missing negative."""
    store, tokenizer = self.data.passages, self.data.tokenizer
    return [
      NOTHING
      if one is None
      else tokenizer.compose(
        one.head, one.question_end, store.ids(one.row), one.window
      )
      for one in drawn
    ]

  def answers(self, drawn: Sequence[Choice | None]) -> dict[str, np.ndarray]:
    """`starts`, `ends` [inputs, spans] and `spans` of a batch, as int32."""
    places = np.zeros((2, len(drawn), self.spans), np.int32)
    spans = [() if one is None else one.spans for one in drawn]
    for row, some in enumerate(spans):
      if some:
        places[:, row, : len(some)] = np.array(some).T
    counts = np.array([len(some) for some in spans], np.int32)
    return {"starts": places[0], "ends": places[1], "spans": counts}

  def drawn(self, step: int) -> list[Choice | None]:
    """What is read in the global batch of a step, in the order of its rows."""
    return [
      one for pair in self._questions(int(step)) for one in self.draw(*pair)
    ]

  def draw(self, question: int, epoch: int) -> list[Choice | None]:
    """What is read with a question in an epoch, the positive first.

    The positive is read in a window that holds one of its answers, negatives in
    their first window.  None = a missing negative.
    """
    example = self.data.examples[question]
    generator = np.random.default_rng((self.plan.seed, 5, epoch, question))
    positive = example.positives[generator.integers(len(example.positives))]
    head, end, windows = self._read(example, positive.row)
    windows = [w for w in windows if any(map(w.holds, positive.spans))]
    window = windows[generator.integers(len(windows))]
    # From tokens of the passage to positions in the input.
    shift = len(head) - window.first
    spans = tuple(
      (first + shift, last + shift)
      for first, last in positive.spans
      if window.holds((first, last))
    )
    size = self.data.tokenizer.composed_length
    length = size(len(head), window)
    drawn: list[Choice | None] = [
      Choice(positive.row, head, end, window, length, spans)
    ]
    wanted = self.passages - 1
    some = generator.permutation(len(example.negatives))[:wanted]
    for row in example.negatives[some].tolist():
      head, end, (window, *_) = self._read(example, row)
      length = size(len(head), window)
      drawn.append(Choice(row, head, end, window, length))
    return drawn + [None] * (self.passages - len(drawn))

  def _read(
    self, example: reader_examples.Example, row: int
  ) -> tuple[np.ndarray, int, list[reader_tokenization.Window]]:
    """Ids before a passage, end of the question in them, and the windows."""
    store, tokenizer = self.data.passages, self.data.tokenizer
    head, end = tokenizer.head(example.question, store.title(row))
    return head, end, tokenizer.windows(len(head), len(store.ids(row)))

  def _questions(self, step: int) -> list[tuple[int, int]]:
    """(question, epoch) of every row of the global batch of a step."""
    if self.sort_batches == 1:
      indexes, epochs = self.plan.rows(step)
      return list(zip(indexes.tolist(), epochs.tolist(), strict=True))
    first = step // self.sort_batches * self.sort_batches
    if first not in self._block:
      self._block.clear()
      self._block[first] = self._sorted(first)
    return self._block[first][step - first]

  def _sorted(self, first: int) -> list[list[tuple[int, int]]]:
    """`sort_batches` batches from `first` on, sorted by length or dealt.

    The batches come in random order, so that lengths do not rise with the step.
    """
    last = min(first + self.sort_batches, self.steps)
    pairs = []
    for step in range(first, last):
      indexes, epochs = self.plan.rows(step)
      pairs += zip(indexes.tolist(), epochs.tolist(), strict=True)
    lengths = [lengths_of(self.draw(*pair)) for pair in pairs]
    if self.even:
      sums = np.array([some.sum() for some in lengths])
      order = packing.deal(sums, last - first)
    else:
      longest = [some.max() for some in lengths]
      order = np.argsort(longest, kind="stable").reshape(last - first, -1)
    generator = np.random.default_rng((self.plan.seed, 7, first))
    return [
      [pairs[i] for i in order[batch]]
      for batch in generator.permutation(last - first)
    ]


def lengths_of(drawn: Sequence[Choice | None]) -> Int[np.ndarray, " inputs"]:
  """Tokens of each input; 1 for a missing negative."""
  return np.array([1 if one is None else one.length for one in drawn], np.int64)
