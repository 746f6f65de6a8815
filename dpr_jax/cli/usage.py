"""Usage and help texts, and the search for a command by its name."""

import textwrap
from collections.abc import Sequence

from dpr_jax.cli import commands, settings_hints
from dpr_jax.cli import flags as cli_flags
from dpr_jax.cli.command import Command
from dpr_jax.cli.flags import Flag, Values
from dpr_jax.core import errors

_WIDTH = 80
LINE = (
  "usage: dpr-jax COMMAND --config=configs/X.py[:variant] --workdir=DIR"
  " [--config.section.key=value ...] [flags]"
)


def usage() -> str:
  """The text of `dpr-jax` without arguments: all commands, a sentence each."""
  others = [
    row
    for row in commands.COMMANDS
    if not row.in_run and not row.name.startswith("bench ")
  ]
  stages = [row for row in commands.COMMANDS if row.in_run]
  benches = [row for row in commands.COMMANDS if row.name.startswith("bench ")]
  parts = [
    _wrapped(LINE, "       "),
    "--config may be left out if the workdir has one.",
    "",
    "Stages, in the order of `run`:",
    *map(_row, stages),
    "",
    "Other commands:",
    *map(_row, others),
    *map(_row, benches),
    "",
    "dpr-jax COMMAND --help shows the flags of a command, dpr-jax --help all.",
  ]
  return "\n".join(parts)


def _row(row: Command) -> str:
  lines = textwrap.wrap(f"{row.help}.", _WIDTH - 17)
  first, *more = lines
  return "\n".join([f"  {row.name:<15}{first}", *(" " * 17 + m for m in more)])


def _wrapped(text: str, indent: str) -> str:
  return textwrap.fill(
    text,
    _WIDTH,
    subsequent_indent=indent,
    break_long_words=False,
    break_on_hyphens=False,
  )


def find(words: Sequence[str]) -> Command:
  """The command that a command line names.

  Args:
    words: words of the command line that are not flags.

  Raises:
    InputError: no command, or an unknown one; similar names are suggested.
  """
  first = words[0] if words else ""
  if first == "bench":
    kind, kinds = (*words, "")[1], bench_kinds()
    if kind in kinds:
      return commands.BY_NAME[f"bench {kind}"]
    near = settings_hints.closest(kind, kinds) if kind else []
    raise errors.InputError(
      f"bench needs one KIND: {', '.join(kinds)}"
      f"{settings_hints.did_you_mean(near)}"
    )
  if not first:
    raise errors.InputError(
      f"a COMMAND is missing: one of {', '.join(_first_words())}"
    )
  if first not in commands.BY_NAME:
    names = _first_words()
    near = settings_hints.did_you_mean(settings_hints.closest(first, names))
    raise errors.InputError(
      f"unknown command {first!r}{near or ': one of ' + ', '.join(names)}"
    )
  return commands.BY_NAME[first]


def check_words(row: Command, words: Sequence[str]) -> None:
  """`InputError` if a command line has more words than the command takes."""
  if len(words) > len(row.name.split()) and not row.takes_words:
    raise errors.InputError(f"one COMMAND only: {' '.join(words)}")


def _first_words() -> list[str]:
  names = [row.name.split()[0] for row in commands.COMMANDS]
  return list(dict.fromkeys(names))


def bench_kinds() -> list[str]:
  """Words that may follow `bench`."""
  names = (row.name.split() for row in commands.COMMANDS)
  return [name[1] for name in names if name[0] == "bench"]


def check_flags(row: Command, values: Values) -> None:
  """Refuses flags that a command does not read, and bad values of others.

  Raises:
    InputError: the command line has such a flag or value.
  """
  _check_overwrite(row, values)
  for flag in {x.name: x for x in commands.FLAGS if not x.everywhere}:
    takers = commands.taken_by(flag)
    if values.typed(flag) and row.name not in takers:
      raise errors.InputError(f"--{flag}: only for {_listed(takers)}")
  for flag in (*commands.EVERYWHERE, *row.flags):
    flag.check(values[flag.name])


def _check_overwrite(row: Command, values: Values) -> None:
  value = values.overwritten
  typed = f"--overwrite={','.join(value)}"
  if cli_flags.OVERWRITE_STAGES in row.flags:
    if any(each not in commands.STAGES for each in value):
      bare = values.overwrites("")
      raise errors.InputError(
        f"{'--overwrite' if bare else typed}: name the stages that {row.name}"
        " runs again, as in --overwrite=train,embed: any of"
        f" {', '.join(commands.STAGES)}"
      )
  elif value and not values.overwrites(row.name) or len(value) > 1:
    raise errors.InputError(
      f"{typed}: {row.name} can only run itself again: use --overwrite"
    )


def _listed(names: Sequence[str]) -> str:
  *most, last = names
  return f"{', '.join(most)} and {last}" if most else last


def help_of(row: Command) -> str:
  """A usage line, a sentence, the command's own flags, an example."""
  name = f"dpr-jax {row.name}"
  listed = "\n".join(
    _entry(flag, flag.help) for flag in (*row.flags, *cli_flags.LOG)
  )
  return "\n".join(
    [
      _wrapped(f"usage: {name} {row.usage} [flags]", "       "),
      "",
      _wrapped(f"{row.help}.", ""),
      "",
      "Flags:",
      listed,
      "",
      "Example:",
      _example(f"{name} {row.example}"),
    ]
  )


def _example(line: str) -> str:
  """A call, wrapped with backslashes so that it can be pasted."""
  lines = textwrap.wrap(
    line, _WIDTH - 8, break_long_words=False, break_on_hyphens=False
  )
  return "  " + " \\\n      ".join(lines)


def help_of_bench() -> str:
  """The text of `dpr-jax bench --help`."""
  rows = (row for row in commands.COMMANDS if row.name.startswith("bench "))
  search = commands.BY_NAME["bench search"]
  return "\n".join(
    [
      "usage: dpr-jax bench KIND --config=FILE [flags]",
      "",
      "Measure speed and memory.  KIND is one of",
      *map(_row, rows),
      "",
      "dpr-jax bench KIND --help shows the flags of a kind.",
      "",
      "Example:",
      _example(f"dpr-jax bench search {search.example}"),
    ]
  )


def help_of_all() -> str:
  """The usage, and every flag with the commands that take it."""
  names = sorted({flag.name for flag in commands.FLAGS})
  return usage() + "\n\nFlags:\n" + "\n".join(map(_entry_of_all, names))


def _entry_of_all(name: str) -> str:
  """A flag with its help texts in all commands."""
  meanings: dict[str, list[str]] = {}
  own = [flag for flag in commands.FLAGS if flag.name == name]
  for row in commands.COMMANDS:
    for flag in row.flags:
      if flag.name == name:
        meanings.setdefault(flag.help, []).append(row.name)
  if own[0].everywhere and len(meanings) < 2:
    return _entry(own[0], own[0].help)
  return _entry(
    own[0],
    *(f"{', '.join(takers)}: {text}" for text, takers in meanings.items()),
  )


def _entry(flag: Flag, *texts: str) -> str:
  shown = flag.shown
  if flag.choices and shown == "VALUE":
    shown = "|".join(flag.choices)
    shown = shown if len(shown) < 60 else "VALUE"
  lines = [f"  --{flag.name}{'=' if shown else ''}{shown}"]
  for text in texts:
    lines += textwrap.wrap(
      text,
      _WIDTH,
      initial_indent=" " * 6,
      subsequent_indent=" " * 6,
      break_long_words=False,
      break_on_hyphens=False,
    )
  return "\n".join(lines)
