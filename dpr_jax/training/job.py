"""What the training loop is given: all that tells a retriever from a reader."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from dpr_jax.data import batches
from dpr_jax.training import checkpoint_selection, train_step


@dataclasses.dataclass(frozen=True)
class Every:
  """How often something is due, in steps; 0 = at the last step alone."""

  log: int
  dev: int
  checkpoint: int

  @classmethod
  def of(cls, settings: ml_collections.ConfigDict) -> "Every":
    """As section `train` or `reader` of a config says."""
    return cls(
      settings.log_every, settings.dev_every, settings.checkpoint_every
    )


@dataclasses.dataclass(frozen=True)
class Round:
  """A part of the run that draws its batches from one source.

  Attributes:
    start: steps done when it begins.
    source: makes its batches' source; called when the round is entered, at its
      start or where a run resumes within it.
    before: called once at its start, with the parameters of that step (on this
      process's devices), by the first process alone; None = nothing.
  """

  start: int
  source: Callable[[], batches.Source]
  before: Callable[[Any], None] | None = None


@dataclasses.dataclass(frozen=True)
class Job:
  """All that tells one training from another.

  Attributes:
    name: of the stage, for messages.
    folder: gets `checkpoints/`, `metrics.jsonl`, `model/` and `profile/`.
    steps: of the whole run.
    rounds: parts of the run in order; the first starts at 0.
    questions: in the global batch.
    passages: in the global batch, for the speed in the metrics.
    built: the train step and its optimizer.
    params: of the pretrained checkpoint, on the host.
    dev: gives the dev figures of replicated parameters; None = no dev rows.
    selection: which checkpoints later stages use.
    store_model: writes what the weights need (sizes, tokenizer) to a folder.
    every: how often rows and checkpoints are written.
    keep: checkpoints kept, besides those selected.
    profile_steps: (first, last) step to trace; () = none.
    step_timeout: seconds until a step counts as stuck, as of
      `multiprocess.watch`.
  """

  name: str
  folder: pathlib.Path
  steps: int
  rounds: tuple[Round, ...]
  questions: int
  passages: int
  built: train_step.Built
  params: Any
  dev: Callable[[Any], Mapping[str, float]] | None
  selection: checkpoint_selection.Selection
  store_model: Callable[[pathlib.Path], None]
  every: Every
  keep: int
  profile_steps: tuple[int, ...] = ()
  step_timeout: float = 0.0
