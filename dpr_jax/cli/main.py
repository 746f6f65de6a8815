"""Entry point of `dpr-jax`: parses the flags and calls one command.

Exit codes: 0 done; 2 bad input, config or flag, with one line on stderr;
1 anything unexpected; 130 / 143 interrupted (SIGINT / SIGTERM), after saving;
141 output pipe closed (`dpr-jax … | head -1`).
"""

import os
import sys
import threading
import time
from collections.abc import Sequence

# Set before transformers is imported: it would advise to install PyTorch.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

from absl import app, flags

from dpr_jax import version
from dpr_jax.cli import (
  commands,
  experiment,
  run_stages,
  settings_hints,
  start,
  streams,
  usage,
)
from dpr_jax.cli import flags as cli_flags
from dpr_jax.cli.invocation import Invocation
from dpr_jax.core import disk_errors, errors, log_lines, multiprocess, signals

_SECONDS_FOR_THREADS = 2.0
_HELP = ("-h", "-help", "--help")


def main() -> None:
  """Console entry point."""
  streams.escape_what_cannot_be_shown()
  # Errors in the flags are already logged in the format that --log_json asks
  # for, so it is looked for before the flags are parsed.
  log_lines.set_up(as_json="--log_json" in cli_flags.before_end(sys.argv))
  code = _ended(sys.argv)
  try:
    code = streams.flush() and (code or streams.CLOSED) or code
  except errors.InputError as error:
    log_lines.failure(error)
    code = code or 2
  if code:
    sys.exit(code)


def _ended(arguments: Sequence[str]) -> object:
  """Runs a command line; returns the exit status, 0 or None = success."""
  try:
    with streams.full_disk_refused():
      answered = _answered(arguments)
    if not answered:
      app.run(_run, argv=list(arguments), flags_parser=_parse)
  except SystemExit as end:
    return end.code
  except BrokenPipeError:
    if not streams.reader_is_gone():
      raise
    return streams.CLOSED
  except errors.InputError as error:
    log_lines.failure(error)
    return 2
  return 0


def _answered(arguments: Sequence[str]) -> bool:
  """Handles `--help`, `--version` and an empty line; True if it did."""
  behind = arguments[1:]
  words = cli_flags.words(behind, commands.FLAGS)
  asked = words[:1] == ["help"]
  if not behind:
    print(usage.usage(), file=sys.stderr)
    _fail("a COMMAND is missing; usage: dpr-jax COMMAND --config=... [flags]")
  if asked or any(each in _HELP for each in cli_flags.before_end(behind)):
    _help(words[asked:])
  elif behind[0] == "--version":
    print(version.__version__)
  else:
    return False
  return True


def _help(words: list[str]) -> None:
  """Prints usage and our flags, not absl's help, which exits with 1."""
  if not words:
    print(usage.help_of_all())
  elif words == ["bench"]:
    print(usage.help_of_bench())
  else:
    try:
      row = usage.find(words)
    except errors.InputError as error:
      _fail(error)
    print(usage.help_of(row))


def _end_at_once(code: int) -> None:
  """Ends the process, waiting at most 2 seconds for its threads.

  After a failed save, threads of Orbax wait for each other for minutes, and
  Python's normal exit would wait for them.
  """
  deadline = time.monotonic() + _SECONDS_FOR_THREADS
  for thread in threading.enumerate():
    if thread is threading.main_thread() or thread.daemon:
      continue
    thread.join(max(0.0, deadline - time.monotonic()))
    if thread.is_alive():
      sys.stdout.flush()
      sys.stderr.flush()
      os._exit(code)
  sys.exit(code)


def _fail(message: object) -> None:
  """Prints one line on stderr and exits with status 2."""
  log_lines.failure(message)
  sys.exit(2)


def _parse(arguments: Sequence[str]) -> Invocation:
  """Parses the flags; any error in them is the user's: exit status 2."""
  try:
    call = invocation(arguments)
  except flags.Error as error:
    # An error in a config file contains a traceback: keep what precedes it and
    # its last line.
    before, traceback, after = str(error).partition("Traceback")
    last = after.strip().rpartition("\n")[2] if traceback else ""
    return _fail(before + last)
  except errors.InputError as error:
    return _fail(error)
  except (KeyError, AttributeError, TypeError, ValueError) as error:
    said = settings_hints.in_a_file(error)
    return _fail(f"in --config or an override of it: {said}")
  except (OSError, ImportError, SyntaxError) as error:
    return _fail(f"--config: {error}")
  flags.FLAGS.mark_as_parsed()  # absl's own; ours are in the invocation
  return call


def invocation(arguments: Sequence[str]) -> Invocation:
  """Parses a command line.

  Args:
    arguments: command line as in `sys.argv`.

  Raises:
    InputError: an unknown command, flag or setting, or a bad value of one.
    Exception: any exception of the config file.
  """
  words = cli_flags.words(arguments[1:], commands.FLAGS)
  row = usage.find(words)
  own = (*row.flags, *commands.EVERYWHERE)
  arguments = cli_flags.with_values(arguments, own)
  known = cli_flags.need_no_value(commands.FLAGS)
  arguments = settings_hints.normalised(arguments, known)
  arguments = experiment.with_stored_config(arguments)
  values = cli_flags.Values(commands.FLAGS, arguments)
  usage.check_words(row, values.words)
  return Invocation(row, values.words[len(row.name.split()) :], values)


def _run(call: Invocation) -> None:
  quiet, as_json = call.flags["quiet"], call.flags["log_json"]
  log_lines.set_up(quiet=quiet, as_json=as_json)
  if quiet or as_json:  # no progress bars, neither ours nor other libraries'
    os.environ["TQDM_DISABLE"] = "1"
  signals.listen()
  try:
    usage.check_flags(call.command, call.flags)
    experiment.check(call)
    start.start(call)
    if call.command.in_run:
      run_stages.one(call)
    else:
      call.command.call(call)
    multiprocess.finish()
  except errors.DiskError as error:
    _fail_of_the_disk(str(error))
  except errors.InputError as error:
    multiprocess.fail(2, str(error))
    _fail(error)
  except FloatingPointError as error:
    multiprocess.fail(1, str(error))
    log_lines.failure(error)
    sys.exit(1)
  except signals.Interrupted as interrupted:
    multiprocess.fail(interrupted.exit_code, str(interrupted))
    log_lines.failure(interrupted)
    sys.exit(interrupted.exit_code)
  except Exception as error:
    if isinstance(error, BrokenPipeError) and streams.reader_is_gone():
      multiprocess.fail(streams.CLOSED, "its output pipe was closed")
      raise
    if line := _refused_by_the_disk(error, call):
      _fail_of_the_disk(line)
    multiprocess.fail_of(error)
    raise


def _fail_of_the_disk(line: str) -> None:
  """As `_fail`, and ends all other processes too."""
  multiprocess.fail(2, line)
  try:
    _fail(line)
  except SystemExit as end:
    _end_at_once(end.code)


def _refused_by_the_disk(error: Exception, call: Invocation) -> str:
  """The message for a disk error that nothing below caught; "" for others."""
  refused = disk_errors.refusal(error)
  if refused is None:
    return ""
  reason, file = refused
  workdir = call.flags["workdir"]
  where = file or (f"--workdir={workdir}" if workdir else "standard output")
  return str(disk_errors.disk_error(where, reason))
