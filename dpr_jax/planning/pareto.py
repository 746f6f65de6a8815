"""`dpr-jax plan --pareto`: batch x remat x chunk that fit, with their speed.

Tried are the config's questions per device, half of them, twice and four times
as many, with each kind of rematerialisation, and with the gradient cache with
chunks of texts; all else is as the config says.
"""

import dataclasses
from collections.abc import Callable, Iterable

import ml_collections

from dpr_jax.models import bert
from dpr_jax.planning import chips, text_lengths, tpu_plan

_TIMES = (0.5, 1, 2, 4)  # the config's questions per device
_CHUNKS = (32, 64, 128)  # texts


@dataclasses.dataclass(frozen=True)
class Choice:
  """Settings of section `train` to try.

  Attributes:
    questions: questions per device.
    remat: `train.remat`.
    chunk: `train.chunk_size` with the gradient cache; 0 = no cache, all texts
      of a device at once.
  """

  questions: int
  remat: str
  chunk: int


@dataclasses.dataclass(frozen=True)
class Outcome:
  """A choice that fits.

  Attributes:
    choice: the choice.
    memory: bytes per device.
    questions_per_second: over all devices, at the roofline.
  """

  choice: Choice
  memory: int
  questions_per_second: float

  def beats(self, other: "Outcome") -> bool:
    """Whether batch and speed are no smaller, and one is larger."""
    ours, theirs = (
      (each.choice.questions, each.questions_per_second)
      for each in (self, other)
    )
    return ours != theirs and all(
      a >= b for a, b in zip(ours, theirs, strict=True)
    )


def choices(questions: int) -> list[Choice]:
  """What is tried, from few questions to many.

  Args:
    questions: questions per device of the config.
  """
  batches = sorted({max(1, int(questions * times)) for times in _TIMES})
  ways = [(remat, 0) for remat in bert.REMATS]
  ways += [("none", chunk) for chunk in _CHUNKS]
  return [
    Choice(batch, remat, chunk)
    for remat, chunk in ways
    for batch in batches
    if not chunk or (batch > chunk and batch % chunk == 0)
  ]


def tried(
  every: Iterable[Choice], compiled: Callable[[Choice], tpu_plan.Step]
) -> list[tuple[Choice, tpu_plan.Step]]:
  """Compiles the choices in order; those that fit, with their steps.

  With the same remat and chunk, more questions than did not fit are not tried.
  """
  too_many, found = set(), []
  for choice in every:
    way = choice.remat, choice.chunk
    if way in too_many:
      continue
    step = compiled(choice)
    if step.fits:
      found.append((choice, step))
    else:
      too_many.add(way)
  return found


def outcomes(
  config: ml_collections.ConfigDict,
  topology: chips.Topology,
  *,
  lengths: text_lengths.Lengths | None = None,
  quick: bool = True,
  say: Callable[[str], None] = lambda line: None,
) -> list[Outcome]:
  """The choices that fit; takes minutes for each that is tried.

  Args:
    config: the experiment.
    topology: TPU slice to plan for.
    lengths: lengths of the texts; None = full length.
    quick: see `tpu_plan.compile_step`.
    say: function that is called with progress messages.
  """
  config = tpu_plan.resolved(config)
  on = tpu_plan.devices(topology)

  def compiled(choice: Choice) -> tpu_plan.Step:
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
      changed.train.batch_size = choice.questions * topology.cores
      changed.train.remat = choice.remat
      changed.train.chunk_size = choice.chunk
      changed.train.question_chunk_size = 0
      changed.train.gradient_cache = choice.chunk > 0
    step, _ = tpu_plan.compile_train(
      changed, topology, on, lengths, quick=quick
    )
    say(f"{_named(choice)}: {step.said()}")
    return step

  questions = max(1, config.train.batch_size // topology.cores)
  return [
    Outcome(
      choice,
      step.memory["total"],
      choice.questions * topology.cores / step.seconds["step"],
    )
    for choice, step in tried(choices(questions), compiled)
  ]


def table(found: list[Outcome], topology: chips.Topology) -> str:
  """The text of outcomes, the fastest first; "*" = none beats it."""
  lines = [
    f"{topology.name}: what fits, the fastest first; * = no other has as many"
    " questions and is as fast"
  ]
  for each in sorted(found, key=lambda one: -one.questions_per_second):
    best = not any(other.beats(each) for other in found)
    lines.append(
      f"{'*' if best else ' '} {_named(each.choice)}:"
      f" {each.questions_per_second:,.0f} questions/s,"
      f" {each.memory / 2**30:.2f} GiB"
    )
  return "\n".join(lines)


def _named(choice: Choice) -> str:
  cache = f"gradient cache, chunks of {choice.chunk}"
  return (
    f"{choice.questions} per device, remat {choice.remat}"
    f", {cache if choice.chunk else 'no cache'}"
  )
