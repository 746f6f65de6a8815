"""Settings on the command line, as a user meets them.

Each call is a process of its own, and ends before JAX has started.
"""

import json
import resource

import pytest

from dpr_jax.cli import commands, settings_hints
from dpr_jax.cli import flags as cli_flags
from dpr_jax.core import config as config_lib
from dpr_jax.core.settings_table import ALL

SECONDS = 3.0  # of CPU, until the answer


@pytest.fixture
def answer(call, config_file, tmp_path):
  """Calls dpr-jax; its result, and the CPU seconds that it took."""

  def answer(command, *arguments):
    def used():
      usage = resource.getrusage(resource.RUSAGE_CHILDREN)
      return usage.ru_utime + usage.ru_stime

    before = used()
    done = call(
      *command.split(),
      f"--config={config_file}",
      *arguments,
      cwd=tmp_path,
    )
    return done, used() - before

  return answer


@pytest.mark.parametrize(
  ("command", "arguments", "line"),
  [
    (
      "run",
      ["--workdir=w", "--config.train.learning_rate=-1"],
      "dpr-jax: config.train.learning_rate=-1: must be > 0",
    ),
    (
      "train",
      ["--workdir=w", "--batch_size=8"],
      "dpr-jax: unknown flag --batch_size: did you mean"
      " --config.train.batch_size, --config.reader.batch_size or"
      " --batch_sizes?",
    ),
    (
      "run",
      ["--workdri=w"],
      "dpr-jax: unknown flag --workdri: did you mean --workdir?",
    ),
    (
      "run",
      ["--workdir=w", "--cpu_devices=8", "--config.train.batch_size=12"],
      "dpr-jax: config.train.batch_size=12: must be a multiple of the 8"
      " devices",
    ),
    (
      "run",
      ["--workdir=w", "--config.index.factory=Flta"],
      "dpr-jax: config.index.factory='Flta': could not parse index string Flta",
    ),
    (
      "prepare",
      ["--workdir=w", "--config.data.dev=no.json"],
      "dpr-jax: config.data.dev='no.json': there is no such file: give a file",
    ),
    (
      "trian",
      ["--workdir=w"],
      "dpr-jax: unknown command 'trian': did you mean",
    ),
    (
      "index --plan",
      ["--dim=0", "--vectors=9"],
      "dpr-jax: --dim=0: must be >=",
    ),
  ],
)
def test_refused_in_the_first_second(
  answer, tmp_path, command, arguments, line
):
  """Exit status 2, one line, three CPU seconds, no workdir begun."""
  done, seconds = answer(command, *arguments)
  assert done.returncode == 2
  assert done.stderr.splitlines()[-1].startswith(line)
  assert "Traceback" not in done.stderr
  assert seconds < SECONDS
  assert not (tmp_path / "w").exists()


def test_what_counts_for_nothing_is_said(answer):
  """A warning, and the call goes on."""
  done, _ = answer("index --plan --vectors=9", "--config.index.nprobe=16")
  assert done.returncode == 0, done.stderr
  warned = [line for line in done.stderr.splitlines() if "WARNING" in line]
  assert len(warned) == 1
  assert warned[0].endswith(
    "WARNING: config.index.nprobe=16: not read here, only where index.factory"
    " has IVF (config.index.factory is 'Flat')"
  )


def test_config_shows_values_and_where_they_come_from(answer):
  """As JSON, and as text."""
  done, seconds = answer("config --print --json", "--config.seed=7")
  assert done.returncode == 0, done.stderr
  shown = json.loads(done.stdout)
  assert list(shown) == [each.key for each in ALL]
  assert shown["seed"] == {"value": 7, "from": "command line"}
  assert shown["train.batch_size"] == {"value": 16, "from": "config file"}
  assert shown["train.epochs"] == {"value": 40.0, "from": "default"}
  assert seconds < SECONDS
  done, _ = answer("config --diff", "--config.retrieve.methods=bm25,exact")
  lines = [line.split() for line in done.stdout.splitlines()]
  assert ["train.max_steps", "6", "config", "file"] in lines
  methods = ["retrieve.methods", "('bm25',", "'exact')", "command", "line"]
  assert methods in lines
  assert not [line for line in lines if line[-1] == "default"]


def test_config_of_a_workdir(call, tiny_config, tmp_path):
  """What is stored there, without --config; nothing where nothing is."""
  assert call("config", "--diff", f"--workdir={tmp_path}").stdout == ""
  text = json.dumps(config_lib.plain(tiny_config))
  (tmp_path / "config.json").write_text(text)
  typed = "--config.train.max_steps=9"
  done = call("config", "--diff", f"--workdir={tmp_path}", typed)
  assert done.returncode == 0, done.stderr
  origins = {
    line.split()[0]: line.split()[-1] for line in done.stdout.splitlines()
  }
  assert origins["train.batch_size"] == "workdir"
  assert origins["train.max_steps"] == "line"  # command line
  assert "train.epochs" not in origins


def test_flags_that_need_no_value():
  """`--tune run` is a flag and a command, `--name --fly` a flag."""
  line = ["dpr-jax", "--tune", "run", "--name", "--fly"]
  known = cli_flags.need_no_value(commands.FLAGS)
  assert settings_hints.normalised(line, known) == line
  assert cli_flags.words(line[1:], commands.FLAGS) == ["run"]
