"""`Call`: the facts about a command line that the settings checks need."""

import dataclasses
from typing import Any

from dpr_jax.cli import commands
from dpr_jax.core.workdir import MANIFEST, Workdir


@dataclasses.dataclass(frozen=True)
class Call:
  """One call of the command line.

  Attributes:
    command: name of a stage, "run", "demo", or "bench KIND".
    workdir: the workdir; None = none is given.
    methods: values of `--method`; () = not given.
    model: value of `--model`; "" = not given.
    mines_from: value of `--from` for `mine`, a ranker; "bm25" = not given.
    tunes: whether `--tune` is given.
    cores: number of devices of all processes; 0 = not known yet.
    processes: number of processes; 0 = not known yet.
    typed: keys of the settings that the command line overrides.
  """

  command: str
  workdir: Workdir | None = None
  methods: tuple[str, ...] = ()
  model: str = ""
  mines_from: str = "bm25"
  tunes: bool = False
  cores: int = 0
  processes: int = 1
  typed: frozenset[str] = frozenset()

  @property
  def whole(self) -> bool:
    """True if the call runs all stages, as `run` and `demo` do."""
    return self.command in ("run", "demo")

  @property
  def asked(self) -> frozenset[str]:
    """Names of the stages whose settings this call may read."""
    return frozenset(self._stages)

  @property
  def is_stage(self) -> bool:
    """True for one or all stages, whose input files must exist."""
    return self.whole or bool(commands.BY_NAME[self.command].in_run)

  def is_trained(self, stage: str) -> bool:
    """Whether "train" or "train-reader" is finished in the workdir."""
    if self.workdir is None:
      return False
    where = self.workdir.training if stage == "train" else self.workdir.reader
    return (where / MANIFEST).is_file()

  def stages_of(self, config: Any) -> tuple[str, ...]:
    """Names of the stages that will run, in order.

    For a command that is not a stage: the stages whose settings it reads.
    """
    return commands.stages_of(config) if self.whole else self._stages

  @property
  def _stages(self) -> tuple[str, ...]:
    return commands.BY_NAME[self.command].settings or (self.command,)

  def methods_of(self, config: Any) -> tuple[str, ...]:
    """Names of the retrieval methods that the call will use."""
    methods = tuple(self.methods or config.retrieve.methods)
    reads = "train-reader" in self.stages_of(config)
    if reads and config.reader.train == "results":
      methods = (*methods, config.reader.method)
    return tuple(dict.fromkeys(methods))
