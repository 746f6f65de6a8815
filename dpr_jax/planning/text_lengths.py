"""Lengths of the texts that a plan assumes, and the rows that they fill.

Input: a workdir's token store, or a JSON file: for "questions" and "passages"
the number of texts of each length in tokens, for example

  {"questions": {"9": 120, "10": 97}, "passages": {"134": 1000}}

Output: mean lengths, and the shapes of packed rows.  These hold all batches of
a training whose texts are drawn from the histograms; batches are dealt to rows
as training deals them (`training.packed_batches`).
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_collections
import numpy as np
from jaxtyping import Int

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import packing, question_tokens, token_store
from dpr_jax.training import packed_batches

KEY = "plan.lengths"
_DRAWN = 2**22  # texts drawn at most; the shapes of more hardly differ


@dataclasses.dataclass(frozen=True)
class Lengths:
  """How many texts have how many tokens.

  Attributes:
    questions: number of questions of each length from 0.
    passages: number of passages of each length from 0.
    source: where the lengths are from, for the report.
  """

  questions: Int[np.ndarray, " question_lengths"]
  passages: Int[np.ndarray, " passage_lengths"]
  source: str

  @property
  def of_kinds(self) -> tuple[np.ndarray, np.ndarray]:
    """The histograms, of `packed_batches.KINDS`."""
    return self.questions, self.passages

  def means(self) -> tuple[float, float]:
    """Mean tokens of a question, and of a passage."""
    questions, passages = (
      mean(histogram, lambda length: length) for histogram in self.of_kinds
    )
    return questions, passages


def mean(
  histogram: Int[np.ndarray, " lengths"], value: Callable[[int], float]
) -> float:
  """Mean of a value over all texts; the value is a function of the length."""
  total = sum(
    int(histogram[length]) * value(length)
    for length in np.flatnonzero(histogram).tolist()
  )
  return total / int(histogram.sum())


def of_config(
  config: ml_collections.ConfigDict,
  limits: tuple[int, int],
  workdir: workdir_lib.Workdir | None = None,
) -> Lengths | None:
  """Lengths from `config.plan.lengths`, or else of a workdir.

  Args:
    config: configuration of the experiment.
    limits: maximum tokens of a question and a passage; longer ones count as
      cut.
    workdir: workdir with token stores; None = there is none.

  Returns:
    None if neither is given.

  Raises:
    InputError: a bad file, or the workdir has no token store of texts that are
      as long as the config's.
  """
  if config.plan.lengths:
    return read(config.plan.lengths, limits)
  return None if workdir is None else of_workdir(workdir, limits)


def of_workdir(
  workdir: workdir_lib.Workdir, limits: tuple[int, int]
) -> Lengths:
  """Lengths of the training questions and the corpus in the token stores.

  Raises:
    InputError: see `of_config`.
  """
  stored = {}
  for kind, folder in (
    ("question", workdir.question_tokens),
    ("passage", workdir.tokens),
  ):
    path = folder / workdir_lib.MANIFEST
    if not path.exists():
      raise errors.InputError(
        f"{path} is missing: `dpr-jax train` with --workdir={workdir.root}"
        f" makes it; or give config.{KEY}=FILE"
      )
    manifest = workdir_lib.read_manifest(folder, token_store.STAGE)
    limit = limits[kind == "passage"]
    length = manifest["config"][f"{kind}_length"]
    if length < limit:
      raise errors.InputError(
        f"{path}: {kind}s are cut to {length} tokens, the config takes {limit}:"
        f" train with these lengths first, or give config.{KEY}=FILE"
      )
    stored[kind] = folder, manifest
  questions = question_tokens.QuestionTokens(*stored["question"], *limits)
  corpus = token_store.TokenStore(*stored["passage"], limits[1])
  return Lengths(
    np.bincount(questions.lengths), corpus.histogram(), str(workdir.root)
  )


def read(path: str, limits: tuple[int, int]) -> Lengths:
  """Reads a JSON file of histograms; limits as in `of_config`.

  Raises:
    InputError: there is no such file, or it has another form.
  """
  try:
    values = workdir_lib.read_json(pathlib.Path(path).expanduser())
  except errors.InputError as error:
    raise errors.InputError(f"config.{KEY}={path!r}: {error}") from error
  if not isinstance(values, Mapping) or set(values) != set(
    packed_batches.KINDS
  ):
    raise errors.InputError(
      f"config.{KEY}={path!r}: must be a JSON object with the keys questions"
      ' and passages, as in {"questions": {"9": 120}, "passages": {"134": 80}}'
    )
  found = []
  for kind, limit in zip(packed_batches.KINDS, limits, strict=True):
    found.append(_histogram(path, kind, values[kind], limit))
  return Lengths(*found, path)


def _histogram(path: str, kind: str, values: Any, limit: int) -> np.ndarray:
  """The counts of one kind of text from a file, longer texts cut."""
  if not isinstance(values, Mapping) or not values:
    raise errors.InputError(
      f"config.{KEY}={path!r}: {kind} must be a JSON object of counts by"
      f' length, as in {{"134": 80}}, not {values!r}'
    )
  counts = np.zeros(limit + 1, np.int64)
  for length, count in values.items():
    if not length.isdecimal() or int(length) < 1:
      raise errors.InputError(
        f"config.{KEY}={path!r}: {kind}: {length!r} must be a length in tokens,"
        " a whole number >= 1"
      )
    if type(count) is not int or count < 1:
      raise errors.InputError(
        f"config.{KEY}={path!r}: {kind}: the count of length {length} is"
        f" {count!r}: must be a whole number >= 1"
      )
    counts[min(int(length), limit)] += count
  return counts


@dataclasses.dataclass(frozen=True)
class Rows:
  """The packed rows of a training.

  Attributes:
    layouts: rows of a device, of `packed_batches.KINDS`.
    shapes: shapes of these rows.
    batches: number of drawn batches that they hold.
  """

  layouts: tuple[packed_batches.Layout, ...]
  shapes: tuple[packing.Shapes, ...]
  batches: int

  def places(self, devices: int) -> int:
    """Places of a global batch."""
    return devices * sum(
      layout.rows * shapes.width
      for layout, shapes in zip(self.layouts, self.shapes, strict=True)
    )


def rows_of(
  config: ml_collections.ConfigDict,
  lengths: Lengths,
  devices: int,
  processes: int,
  steps: int,
) -> Rows:
  """The rows that hold all batches of a training on these devices.

  Args:
    config: configuration of the experiment; its seed is that of the draws.
    lengths: histograms that texts are drawn from, with replacement.
    devices: number of devices of all processes; it divides the batch.
    processes: number of processes.
    steps: number of steps of the training.

  Raises:
    InputError: a chunk size does not divide the texts of a device.
  """
  train = config.train
  layouts = packed_batches.layouts(
    train.batch_size // devices,
    1 + train.hard_negatives,
    train.chunk_size,
    train.question_chunk_size,
  )
  each = train.batch_size * (2 + train.hard_negatives)
  steps = max(1, min(steps, _DRAWN // each))
  parts = processes
  if packed_batches.are_dealt_together(each, processes, train.mask_answers):
    parts = 1
  shapes = []
  for layout, drawn in zip(
    layouts, _draws(config.seed, lengths, steps * parts), strict=True
  ):
    counts = packing.Counts.none(layout.slots)
    rows = layout.rows * devices // parts
    for texts in drawn(rows * layout.slots):
      counts |= packing.count(texts, rows)
    shapes.append(packing.Shapes.of(counts))
  return Rows(layouts, tuple(shapes), steps)


def _draws(
  seed: int, lengths: Lengths, times: int
) -> list[Callable[[int], Iterator[np.ndarray]]]:
  """Per kind a function: from a number of texts to lengths of random ones."""

  def draw(number: int, histogram: np.ndarray, texts: int):
    random = np.random.default_rng((seed, number))
    # Inverse transform: the text of each random rank.
    ends = histogram.cumsum()
    for _ in range(times):
      ranks = random.integers(ends[-1], size=texts)
      yield np.searchsorted(ends, ranks, side="right")

  return [
    lambda texts, number=number, histogram=histogram: draw(
      number, histogram, texts
    )
    for number, histogram in enumerate(lengths.of_kinds)
  ]


def figures(
  config: ml_collections.ConfigDict,
  limits: tuple[int, int],
  devices: int,
  lengths: Lengths | None,
  rows: Rows | None,
) -> dict[str, Any]:
  """What is assumed of the texts of a train step, and the places they take.

  Args:
    config: configuration of the experiment.
    limits: maximum tokens of a question and a passage.
    devices: number of devices.
    lengths: lengths of the texts; None = not known.
    rows: rows of packed texts; None = padded.

  Returns:
    "source" (of the lengths; "" = full length), and if the lengths are known
    "question_tokens" and "passage_tokens" (means), "useful_tokens" and "places"
    (of a global batch), "places_ratio" (of both), and of packed rows "batches"
    (drawn) and "rows" (per kind those of a device, their width, and [texts,
    length] of their tiles).
  """
  if lengths is None:
    return {"source": ""}
  questions = config.train.batch_size
  passages = questions * (1 + config.train.hard_negatives)
  each = lengths.means()
  useful = questions * each[0] + passages * each[1]
  places = questions * limits[0] + passages * limits[1]
  found: dict[str, Any] = {}
  if rows is not None:
    places = rows.places(devices)
    found["batches"] = rows.batches
    found["rows"] = {
      kind: {
        "rows": layout.rows,
        "width": shapes.width,
        "tiles": [[tile.slots, tile.length] for tile in shapes.tiles],
      }
      for kind, layout, shapes in zip(
        packed_batches.KINDS, rows.layouts, rows.shapes, strict=True
      )
    }
  return {
    "source": lengths.source,
    "question_tokens": each[0],
    "passage_tokens": each[1],
    "useful_tokens": useful,
    "places": places,
    "places_ratio": places / useful,
    **found,
  }
