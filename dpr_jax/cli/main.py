"""`dpr-jax STAGE --config=… --workdir=…`: flags in, one command called.

Exit codes: 0 done; 2 bad input, config or flag, with one clear line on stderr;
1 anything unexpected; 130 / 143 interrupted (SIGINT / SIGTERM), after saving.
"""

import logging as py_logging
import os
import pathlib
import sys
import threading
import time
from collections.abc import Sequence

# Before transformers is imported: it would advise to install PyTorch.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

from absl import app, flags, logging

from dpr_jax import version
from dpr_jax.cli import commands, experiment, settings_command, settings_hints
from dpr_jax.cli import flags as cli_flags
from dpr_jax.core import atomic_files, errors, multiprocess, signals
from dpr_jax.core import devices as devices_lib

_SECONDS_FOR_THREADS = 2.0
_WIDE = "xla_cpu_prefer_vector_width"
USAGE = f"""usage: dpr-jax STAGE --config=configs/X.py[:variant] --workdir=DIR
       [--config.section.key=value ...] [--cpu_devices=N] [--overwrite]
--config may be left out where the workdir has one.

STAGE is one of
  {"  ".join(commands.STAGES)}
  run       all of them in order; what is done and unchanged is skipped
  demo      the whole flow on the embedded sample
  plan      compiles for a TPU without one: does it fit, how fast at best?
  ask       answers the questions behind it from a finished workdir, or one per
            line of standard input; --json for programs
  export    the trained towers, or with --what=embeddings the vectors, into
            --out=DIR as --format=hf, sentence-transformers, dpr, tevatron,
            contriever or npy; with --what=reader the reader, as dpr-reader or
            question-answering
  import    with --what=embeddings: vectors in one of those formats, --from=FILE
            or DIR, into --out=DIR as `embed` leaves them
  config    the value of every setting, and where it comes from: default, file,
            workdir or command line; --diff: only what is not the default
  check     is a workdir whole, and does all of it belong together? --deep reads
            the contents too; exit status 2 where it is not
or "bench KIND": how fast, and in how much memory; KIND is one of
  {"  ".join(cli_flags.BENCHES)}
dpr-jax STAGE --help lists its flags, dpr-jax --help all of them."""


def main() -> None:
  """Console entry point."""
  logging.set_verbosity(logging.INFO)
  logging.use_absl_handler()
  logging.get_absl_handler().setFormatter(_Formatter())
  logging.get_absl_handler().addFilter(_is_ours_or_a_warning)
  arguments = sys.argv
  asked = arguments[1:2] == ["help"]
  if asked or any(a in ("-h", "-help", "--help") for a in arguments[1:]):
    _help([a for a in arguments[1 + asked :] if not a.startswith("-")])
    return
  if len(arguments) > 1 and arguments[1] == "--version":
    print(version.__version__)
    return
  app.run(_run, argv=arguments, flags_parser=_parse)


def _is_ours_or_a_warning(record: py_logging.LogRecord) -> bool:
  """Libraries (Orbax, TFDS) are heard from WARNING on."""
  ours = str(pathlib.Path(__file__).parent.parent)
  return record.levelno >= py_logging.WARNING or record.pathname.startswith(
    ours
  )


class _Formatter(logging.PythonFormatter):
  """`12:34:56 message`, with the level where it is not information."""

  def format(self, record):
    """One line, without source positions."""
    clock = time.strftime("%H:%M:%S", time.localtime(record.created))
    level = "" if record.levelname == "INFO" else f"{record.levelname}: "
    return f"{clock} {level}{record.getMessage()}"


def _help(words: list[str]) -> None:
  """Usage and our own flags; absl's would fill a screen and exit with 1.

  Args:
    words: of the command line; of a command, its flags alone.
  """
  command = words[0] if words and words[0] in _known() else ""
  if not command:
    print(USAGE, end="\n\n")
  if command == "bench" and words[1:] and words[1] in cli_flags.BENCHES:
    command += f" {words[1]}"
  print(cli_flags.help_text(command))


def _known() -> tuple[str, ...]:
  return (*commands.STAGES, "run", *commands.OTHERS)


def _end_at_once(code: int) -> None:
  """Ends the process, after all threads or without them.

  When a save has failed, threads of Orbax wait for each other for minutes, and
  Python would wait for them.
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
  """One line on stderr, exit status 2."""
  print(f"dpr-jax: {' '.join(str(message).split())}", file=sys.stderr)
  sys.exit(2)


def _parse(arguments: Sequence[str]) -> list[str]:
  """Parses flags; anything wrong with them is the user's to mend."""
  if arguments[1:2] in (["ask"], ["config"]):  # there --json needs no file
    arguments = ["--json=-" if a == "--json" else a for a in arguments]
  try:
    arguments = settings_command.normalised(cli_flags.with_values(arguments))
    return flags.FLAGS(experiment.with_stored_config(arguments))
  except flags.Error as error:
    # What a config file raises comes with a traceback: keep its two ends.
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


def _run(arguments: list[str]) -> None:
  stage, rest = (arguments + [""])[1], arguments[2:]
  if stage == "bench":
    if len(rest) != 1 or rest[0] not in cli_flags.BENCHES:
      _fail(f"bench needs one KIND: {', '.join(cli_flags.BENCHES)}")
  elif stage != "ask" and len(arguments) != 2:
    _fail(USAGE if len(arguments) < 2 else f"one STAGE only: {arguments[1:]}")
  if stage not in _known():
    near = settings_hints.did_you_mean(settings_hints.closest(stage, _known()))
    _fail(f"unknown stage {stage!r}{near or ': one of ' + ', '.join(_known())}")
  signals.listen()
  try:
    command = f"bench {rest[0]}" if stage == "bench" else stage
    cli_flags.check(command, commands.STAGES)
    experiment.check(command)
    cores = cli_flags.CPU_DEVICES.value or (8 if stage == "demo" else 0)
    if stage != "config":
      _set_up_cores(cores, stage)
    commands.call(stage, rest)
    multiprocess.finish()
  except errors.DiskError as error:
    _fail_of_the_disk(str(error))
  except errors.InputError as error:
    multiprocess.fail(2, str(error))
    _fail(error)
  except FloatingPointError as error:
    multiprocess.fail(1, str(error))
    print(f"dpr-jax: {error}", file=sys.stderr)
    sys.exit(1)
  except signals.Interrupted as interrupted:
    multiprocess.fail(interrupted.exit_code, str(interrupted))
    print(f"dpr-jax: {interrupted}", file=sys.stderr)
    sys.exit(interrupted.exit_code)
  except Exception as error:
    if line := _refused_by_the_disk(error):
      _fail_of_the_disk(line)
    multiprocess.fail_of(error)
    raise


def _fail_of_the_disk(line: str) -> None:
  """As `_fail`, of all processes."""
  multiprocess.fail(2, line)
  try:
    _fail(line)
  except SystemExit as end:
    _end_at_once(end.code)


def _refused_by_the_disk(error: Exception) -> str:
  """The line for what no narrower place has said; "" for other errors."""
  refused = atomic_files.refusal(error)
  if refused is None:
    return ""
  reason, file = refused
  return str(
    atomic_files.disk_error(
      file or f"--workdir={cli_flags.WORKDIR.value}", reason
    )
  )


def _set_up_cores(cpu_devices: int, stage: str) -> None:
  """Emulated cores, and the other processes; before JAX is used."""
  import jax

  if cpu_devices < 0:
    raise errors.InputError(f"--cpu_devices={cpu_devices}: must be positive")
  if cpu_devices:
    xla_flags = os.environ.get("XLA_FLAGS", "")
    if _WIDE not in xla_flags:  # 5 to 8 % faster steps where there is AVX-512
      os.environ["XLA_FLAGS"] = f"{xla_flags} --{_WIDE}=512".strip()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", cpu_devices)
  if not cli_flags.POD.value and _leaves_cores_alone(stage):
    jax.config.update("jax_platforms", "cpu")
  if stage == "plan":
    return
  os.environ["LIBTPU_INIT_ARGS"] = devices_lib.libtpu_arguments()
  multiprocess.start(cli_flags.POD.value)
  try:
    several = jax.process_count() > 1
  except RuntimeError as error:
    raise errors.InputError(
      f"JAX finds no cores: {str(error).splitlines()[0]}; if another process"
      " has the TPU, wait for its end; --cpu_devices=8 takes the CPU"
    ) from error
  if several and stage in ("demo", "bench"):
    raise errors.InputError(f"{stage} is for one process")


def _leaves_cores_alone(stage: str) -> bool:
  """True for what computes nothing on them.

  A process alone can have a TPU: `evaluate` beside a training must not ask.
  """
  return (
    stage in ("plan", "prepare", "evaluate", "export", "import", "check")
    or (stage == "index" and cli_flags.PLAN.value)
    or (stage == "mine" and cli_flags.FROM.value in (None, "bm25"))
  )
