"""Readers that go away, terminals without UTF-8, full disks behind stdout."""

import os
import subprocess
import sys

import pytest

COMMAND = [sys.executable, "-m", "dpr_jax.cli"]
# Prints what no pipe holds, and more than one buffer of Python's.
MUCH = """
import sys
from dpr_jax.cli import main, settings_command
settings_command.show = lambda call: {what}
sys.argv = ["dpr-jax", "config"]
main.main()
"""


@pytest.fixture(params=["", "1"], ids=["buffered", "unbuffered"])
def environment(environment, request):
  """Python writes what is printed at the end, or at once."""
  return environment | {"PYTHONUNBUFFERED": request.param}


def _into_head(command, environment):
  """The exit status and stderr where nobody reads after the first byte."""
  reading, writing = os.pipe()
  with subprocess.Popen(
    command, stdout=writing, stderr=subprocess.PIPE, env=environment
  ) as process:
    os.close(writing)
    os.read(reading, 1)
    os.close(reading)
    stderr = process.communicate(timeout=60)[1]
  return process.returncode, stderr.decode()


@pytest.mark.parametrize(
  "what",
  [
    "[print('x' * 99, flush=True) for _ in range(100_000)]",
    "print('x' * 9_999_999)",
  ],
)
def test_a_reader_that_is_gone_ends_it_quietly(environment, what):
  """As SIGPIPE would: 141, and not a word."""
  code = MUCH.format(what=what)
  ended = _into_head([sys.executable, "-c", code], environment)
  assert ended == (141, "")


def test_a_reader_that_never_was(environment):
  """What was printed is written at the end only."""
  reading, writing = os.pipe()
  os.close(reading)
  done = subprocess.run(
    [*COMMAND, "config", "--print"],
    stdout=writing,
    stderr=subprocess.PIPE,
    env=environment,
    check=False,
  )
  os.close(writing)
  assert (done.returncode, done.stderr) == (141, b"")


def test_an_error_keeps_its_exit_status(environment):
  """Whoever reads the output of `check` or not: 2 where it is refused."""
  code = MUCH.format(what="(sys.stdout.write('x'), sys.exit(2))")
  reading, writing = os.pipe()
  os.close(reading)
  done = subprocess.run(
    [sys.executable, "-c", code],
    stdout=writing,
    stderr=subprocess.PIPE,
    env=environment,
    check=False,
  )
  os.close(writing)
  unbuffered = environment["PYTHONUNBUFFERED"]  # it gets no further than x
  assert (done.returncode, done.stderr) == (141 if unbuffered else 2, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_behind_it(environment):
  with open("/dev/full", "w") as full:
    done = subprocess.run(
      [*COMMAND, "--version"],
      stdout=full,
      stderr=subprocess.PIPE,
      text=True,
      env=environment,
      check=False,
    )
  assert done.returncode == 2
  assert done.stderr == (
    "dpr-jax: standard output cannot be written: No space left on device\n"
  )


@pytest.mark.parametrize(
  "variables", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}]
)
def test_a_terminal_without_utf_8(environment, tmp_path, variables):
  """A letter that it has not is escaped; nothing ends."""
  done = subprocess.run(
    [*COMMAND, "config", "--diff", "--config=c.py"],
    cwd=tmp_path,
    capture_output=True,
    env=environment | variables,
    check=False,
  )
  assert done.returncode == 2
  (tmp_path / "c.py").write_text(
    "from dpr_jax import configuration\n"
    "def get_config(_=''):\n"
    "  config = configuration.base_config()\n"
    "  config.data.dev = '/\u0141\u00f3d\u017a.json'\n"
    "  return config\n",
    encoding="utf-8",
  )
  done = subprocess.run(
    [*COMMAND, "config", "--diff", "--config=c.py"],
    cwd=tmp_path,
    capture_output=True,
    env=environment | variables,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  o = b"\\xf3" if "ascii" in variables.values() else b"\xf3"
  assert b"/\\u0141" + o + b"d\\u017a.json" in done.stdout
