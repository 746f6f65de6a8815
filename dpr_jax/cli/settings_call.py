"""What a command is about to do, as far as settings depend on it."""

import dataclasses
from typing import Any

from dpr_jax.cli.command import WITH_READER
from dpr_jax.cli.commands import BY_NAME
from dpr_jax.core.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class Call:
  """One call of the command line.

  Attributes:
    command: a stage, "run", or "bench KIND".
    workdir: None where there is none.
    methods: of `--method`.
    model: of `--model`, "" without it.
    mines_from: of `--from`, as `mine` reads it.
    tunes: `--tune`.
    cores: of `--cpu_devices`, 0 = not known here.
    processes: that work together, 0 = not known here.
    typed: keys of the settings on the command line.
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
    """True where all stages follow each other."""
    return self.command in ("run", "demo")

  @property
  def asked(self) -> frozenset[str]:
    """Stages whose settings this call might read."""
    return frozenset(self._stages)

  @property
  def is_stage(self) -> bool:
    """True for a stage or all of them: what they need must be there."""
    return self.whole or bool(BY_NAME[self.command].in_run)

  def stages_of(self, config: Any) -> tuple[str, ...]:
    """The stages that will be done, in order; of others, what they read."""
    if not self.whole or config.reader.train:
      return self._stages
    return tuple(
      name for name in self._stages if BY_NAME[name].in_run != WITH_READER
    )

  @property
  def _stages(self) -> tuple[str, ...]:
    return BY_NAME[self.command].settings or (self.command,)

  def methods_of(self, config: Any) -> tuple[str, ...]:
    """Methods of retrieval that will be used."""
    methods = tuple(self.methods or config.retrieve.methods)
    reads = "train-reader" in self.stages_of(config)
    if reads and config.reader.train == "results":
      methods = (*methods, config.reader.method)
    return tuple(dict.fromkeys(methods))
