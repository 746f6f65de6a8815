"""Flags that mean one thing for a stage and another for `run`."""

import pytest
from absl import flags
from absl.testing import flagsaver

from dpr_jax.cli import commands
from dpr_jax.cli import flags as cli_flags
from dpr_jax.core import errors


@pytest.fixture
def parsed():
  """Parses the words behind `dpr-jax COMMAND`, and checks them."""
  with flagsaver.flagsaver():

    def parsed(command, *words):
      words = cli_flags.with_values(["dpr-jax", command, *words])
      flags.FLAGS(words)
      cli_flags.check(command, commands.STAGES)
      return [s for s in commands.STAGES if cli_flags.overwrites(s)]

    yield parsed
    flags.FLAGS.unparse_flags()


@pytest.mark.parametrize(
  ("command", "word", "stages"),
  [
    ("train", "--overwrite", commands.STAGES),
    ("train", "--overwrite=true", commands.STAGES),
    ("train", "--overwrite=train", ("train",)),
    ("train", "--nooverwrite", ()),
    ("train", "--overwrite=false", ()),
    ("run", "--overwrite=train,embed", ("train", "embed")),
    ("run", "--nooverwrite", ()),
    ("demo", "--overwrite=train-reader", ("train-reader",)),
  ],
)
def test_what_is_done_again(parsed, command, word, stages):
  """A stage does itself again, `run` what is named."""
  assert parsed(command, word) == list(stages)


@pytest.mark.parametrize(
  ("command", "word", "message"),
  [
    ("run", "--overwrite", "--overwrite: run does again what is named, as in"),
    ("demo", "--overwrite", "--overwrite: demo does again what is named"),
    ("run", "--overwrite=train,fly", "--overwrite=train,fly: run does again"),
    (
      "train",
      "--overwrite=mine",
      "--overwrite=mine: train can do itself",
    ),
  ],
)
def test_what_is_refused(parsed, command, word, message):
  """Nothing is done again by a slip."""
  with pytest.raises(errors.InputError, match=message):
    parsed(command, word)
