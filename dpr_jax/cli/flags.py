"""Flags of the command line: their declarations and their values in a call.

A row of the table of commands lists its flags.  A flag that several commands
share is declared here, and a row may change its help text
(`NAME.saying(...)`).  A flag of a single command is declared in its row:
`Flag("loud", kind=bool, ...)`.
"""

import dataclasses
import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any

from dpr_jax.core import errors
from dpr_jax.core.settings_table import ALL

_BARE = "true"  # value of `--overwrite` without a value (it was a boolean once)


@dataclasses.dataclass(frozen=True)
class Flag:
  """A flag of one command.

  Attributes:
    name: name without dashes.
    help: effect of the flag in this command.
    shown: placeholder of the value in the help; "" = the flag takes no value.
    kind: str, int, bool, tuple (comma-separated items), or "config".
    default: value if the flag is not typed.
    choices: allowed values; None = any.
    alone: value if the flag is typed without one, as in `--json`; None = the
      next word is the value.
    least: smallest allowed value of an integer; None = no limit.
    most: largest number of items of a tuple; None = no limit.
    everywhere: whether every command accepts it, listed in its row or not.
  """

  name: str
  help: str = ""
  shown: str = "VALUE"
  kind: Any = str
  default: Any = None
  choices: tuple[str, ...] | None = None
  alone: str | None = None
  least: int | None = None
  most: int | None = None
  everywhere: bool = False

  def saying(self, text: str, **changes: Any) -> "Flag":
    """The same flag with another help text, or other limits."""
    return dataclasses.replace(self, help=text, **changes)

  def check(self, value: Any) -> None:
    """`InputError` if a value is outside the limits of this command."""
    if self.least is not None and value is not None and value < self.least:
      raise errors.InputError(
        f"--{self.name}={value}: must be at least {self.least}"
      )
    if self.most is not None and value and len(value) > self.most:
      raise errors.InputError(
        f"--{self.name}={','.join(value)}: takes {self.most} here, as in"
        f" --{self.name}={value[0]}"
      )


def switch(
  name: str, text: str = "", default: bool = False, **more: Any
) -> Flag:
  """A boolean flag; `--noname` negates it."""
  return Flag(name, text, "", bool, default, **more)


CONFIG = Flag(
  "config",
  "The experiment: configs/X.py or configs/X.py:variant; default: the"
  " workdir's config.json. To change a setting:"
  " --config.section.key=value.",
  "FILE",
  kind="config",
  everywhere=True,
)
WORKDIR = Flag(
  "workdir",
  "The folder that holds all files of the experiment.",
  "DIR",
  everywhere=True,
)
CPU_DEVICES = Flag(
  "cpu_devices",
  "Emulate N devices on this machine's CPU; 0 = use the machine's devices.",
  "N",
  kind=int,
  default=0,
  least=0,
  everywhere=True,
)
POD = switch(
  "pod",
  "Run on all hosts of a TPU pod: start the same command on every host.",
  everywhere=True,
)
OVERWRITE = Flag(
  "overwrite",
  "Run again even if nothing has changed.",
  "",
  kind=tuple,
  default=(),
  alone=_BARE,
  everywhere=True,
)
OVERWRITE_STAGES = OVERWRITE.saying(
  "Stages to run again even if nothing has changed.", shown="STAGE[,STAGE]"
)
QUIET = switch(
  "quiet",
  "Log only warnings and errors; the command's own output stays.",
  everywhere=True,
)
LOG_JSON = switch(
  "log_json",
  "Write log lines as JSON objects with time, level and message.",
  everywhere=True,
)
QUESTIONS = Flag("questions", shown="FILE")
NAME = Flag("name", "Name of the question set.", "NAME", default="dev")
METHOD = Flag(
  "method",
  "Any of bm25, dense, dense-start, exact, hybrid; default: the config's.",
  "METHOD[,METHOD]",
  kind=tuple,
)
MODEL = Flag(
  "model",
  "The trained towers (dense), or those before training (dense-start);"
  " default: what config.retrieve.methods asks for.",
  choices=("dense", "dense-start"),
)
BACKEND = Flag(
  "backend",
  "Search engine in place of a FAISS index: milvus:URI, qdrant:URI or"
  " lancedb:PATH, with #COLLECTION; default: config.index.backend.",
  "KIND:URI",
)
MATCH = Flag(
  "match",
  "How answers are matched in passages.",
  choices=("string", "regex"),
)
QRELS = Flag("qrels", shown="FILE")
TUNE = switch("tune")
FROM = Flag("from")
VECTORS = Flag("vectors", shown="N", kind=int, default=0)
DIM = Flag(
  "dim", "Dimension of these vectors; default: 768.", "N", kind=int, default=768
)
OUT = Flag("out", "The folder to write.", "DIR")
WHAT = Flag("what", default="model", choices=("model", "embeddings", "reader"))
FORMAT = Flag(
  "format",
  choices=(
    *("hf", "sentence-transformers", "dpr", "tevatron", "onnx", "contriever"),
    *("npy", "parquet", "dpr-reader", "question-answering"),
  ),
)
JSON = Flag("json", "Also write the report to this file.", "FILE")
JSON_ALONE = JSON.saying("Print JSON.", shown="", alone="-")
AGAINST = Flag("against")  # a library or a workdir: each command checks it
REPEATS = Flag(
  "repeats",
  "Number of measured rounds; 0 = the benchmark's own default.",
  "N",
  kind=int,
  default=0,
  least=0,
)

EXPERIMENT = (CONFIG, WORKDIR)
DEVICES = (CPU_DEVICES, POD)
LOG = (QUIET, LOG_JSON)  # flags of every command


class Values(Mapping[str, Any]):
  """The values of all flags of one call, by name.

  Attributes:
    words: words of the command line that are not flags.
  """

  def __init__(self, known: Sequence[Flag], arguments: Sequence[str]):
    """Parses a command line.

    Args:
      known: flags of all commands.
      arguments: command line as in `sys.argv`, with checked settings.

    Raises:
      Exception: any exception of absl or of the config file.
    """
    self._values = _defined(known, arguments)
    self.words = tuple(self._values(list(arguments))[1:])

  def __getitem__(self, name: str) -> Any:
    """The value of a flag; paths are returned as typed."""
    value = self._values[name].value
    return tuple(value) if isinstance(value, list) else value

  def __iter__(self):
    return iter(self._values)

  def __len__(self) -> int:
    return len(self._values)

  def typed(self, name: str) -> bool:
    """True if a flag is on the command line."""
    return bool(self._values[name].present)

  @property
  def config_file(self) -> str:
    """The value of `--config`: a file, perhaps with ":variant"."""
    return self._values["config"].config_filename

  @property
  def typed_settings(self) -> frozenset[str]:
    """Keys of the settings that the command line overrides."""
    if self["config"] is None:
      return frozenset()
    return frozenset(self._values["config"].override_values)

  @property
  def names_checkpoint(self) -> bool:
    """True if the command line names a checkpoint of the towers."""
    return any(
      key.startswith("model.") and key.endswith("checkpoint")
      for key in self.typed_settings
    )

  def overwrites(self, stage: str) -> bool:
    """True if `--overwrite` includes a stage."""
    return stage in self.overwritten or self.overwritten == (_BARE,)

  @property
  def overwritten(self) -> tuple[str, ...]:
    """Stages of `--overwrite`, or only `_BARE`; "false" means none."""
    return tuple(each for each in self["overwrite"] if each != "false")


def _defined(known: Sequence[Flag], arguments: Sequence[str]) -> Any:
  """The flags of one call as absl's `FlagValues`: ours and absl's own."""
  from absl import flags
  from ml_collections import config_flags

  values = flags.FlagValues()
  for flag in _flags_of_absl():
    values[flag.name] = flag
  for flag in known:
    if flag.name in values:
      continue
    if flag.kind == "config":
      config_flags.DEFINE_config_file(
        flag.name,
        None,
        flag.help,
        flag_values=values,
        sys_argv=before_end(arguments),
      )
      continue
    default, more = flag.default, {"flag_values": values}
    if flag is CPU_DEVICES:
      default = int(os.environ.get("DPR_JAX_CPU_DEVICES", "0"))
    if flag.choices is not None:
      define, more = flags.DEFINE_enum, {"enum_values": flag.choices, **more}
    else:
      define = {
        str: flags.DEFINE_string,
        int: flags.DEFINE_integer,
        bool: flags.DEFINE_bool,
        tuple: flags.DEFINE_list,
      }[flag.kind]
    if flag.kind is tuple and default is not None:
      default = list(default)
    define(flag.name, default, help=flag.help, **more)
  return values


def before_end(arguments: Sequence[str]) -> list[str]:
  """The arguments before `--`; all of them without one."""
  return list(itertools.takewhile(lambda each: each != "--", arguments))


def with_values(arguments: Sequence[str], own: Sequence[Flag]) -> list[str]:
  """The command line with values for bare `--overwrite` and `--json`.

  Args:
    arguments: command line as in `sys.argv`.
    own: flags of the command.
  """
  alone = {"--nooverwrite": "--overwrite=", "-nooverwrite": "--overwrite="}
  for flag in own:
    if flag.alone is not None:
      value = f"--{flag.name}={flag.alone}"
      alone |= {f"-{flag.name}": value, f"--{flag.name}": value}
  before = before_end(arguments)
  rest = arguments[len(before) :]
  return [*(alone.get(each, each) for each in before), *rest]


def words(arguments: Sequence[str], known: Sequence[Flag]) -> list[str]:
  """Words that are neither flags nor their values, before any parsing.

  Args:
    arguments: words after `dpr-jax`.
    known: flags of all commands; an unknown flag is assumed to take no value.
  """
  valued = {f.name for f in known if f.kind is not bool and f.alone is None}
  valued |= {f"config.{s.key}" for s in ALL if s.kind is not bool}
  found, skip = [], False
  for argument in before_end(arguments):
    if skip:
      skip = False
    elif argument.startswith("-"):
      skip = argument.lstrip("-") in valued
    else:
      found.append(argument)
  return found


def need_no_value(known: Sequence[Flag]) -> dict[str, bool]:
  """All flags by name, including absl's; True = the flag needs no value."""
  own = {flag.name: flag.kind is bool for flag in known}
  return {flag.name: flag.boolean for flag in _flags_of_absl()} | own


def _flags_of_absl() -> list[Any]:
  """Absl's own flags, such as `--verbosity`, without other libraries'."""
  from absl import app, flags, logging

  del app, logging  # imported for their flags
  modules = flags.FLAGS.flags_by_module_dict().items()
  return [
    flag for name, own in modules if name.startswith("absl.") for flag in own
  ]
