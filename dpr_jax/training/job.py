"""Input of the training loop: all that differs between retriever and reader."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from dpr_jax.data import batches
from dpr_jax.training import checkpoint_selection, train_step


@dataclasses.dataclass(frozen=True)
class Every:
  """Intervals in steps; 0 = at the last step only.

  Attributes:
    log: between rows of `metrics.jsonl`.
    dev: between evaluations on dev.
    checkpoint: between checkpoints.
  """

  log: int
  dev: int
  checkpoint: int

  @classmethod
  def of(cls, settings: ml_collections.ConfigDict) -> "Every":
    """The intervals in section `train` or `reader` of a config."""
    return cls(
      settings.log_every, settings.dev_every, settings.checkpoint_every
    )


@dataclasses.dataclass(frozen=True)
class Round:
  """A part of the run whose batches come from one source.

  Attributes:
    start: number of steps done when the round begins.
    source: function that makes the source of batches; called by all processes
      at the same time when the round begins, or when a run resumes within it.
    before: function called once before the round's first step, in the first
      process only, with the current parameters (on this process's devices);
      None = nothing to do.
    restarts: after `before`, the state becomes that of a new run.
  """

  start: int
  source: Callable[[], batches.Source]
  before: Callable[[Any], None] | None = None
  restarts: bool = False


@dataclasses.dataclass(frozen=True)
class Job:
  """Everything that the loop needs to know about a training run.

  Attributes:
    name: name of the stage, for messages.
    folder: output folder, for `checkpoints/`, `metrics.jsonl`, `model/` and
      `profile/`.
    steps: number of steps of the whole run.
    rounds: parts of the run in order; the first starts at 0.
    questions: questions in the global batch.
    passages: passages in the global batch, for the speed in the metrics.
    built: train step and optimizer.
    params: parameters of the pretrained checkpoint, on the host.
    dev: function from replicated parameters to the dev figures; None = no dev
      rows.
    selection: rule for the checkpoints that later stages use.
    store_model: function that writes model sizes and tokenizer to a folder.
    every: intervals of rows and checkpoints.
    keep: number of checkpoints kept, besides the selected ones.
    profile_steps: (first, last) step to trace; () = none.
    flops: function from this process's batch to the FLOPs of its texts without
      padding; None = not reported.
    peak_flops: FLOPs per second of one device at best; None = not known.
    step_timeout: seconds after which a step counts as stuck; see
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
  flops: Callable[[Mapping[str, Any]], int] | None = None
  peak_flops: float | None = None
  step_timeout: float = 0.0
