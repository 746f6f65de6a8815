"""Flags that mean one thing for a stage and another for `run`."""

import pytest

from dpr_jax.cli import commands, usage
from dpr_jax.cli import main as main_lib
from dpr_jax.core import errors


def parsed(command, *words):
  """The stages that `dpr-jax COMMAND WORDS` does again."""
  call = main_lib.invocation(["dpr-jax", command, *words])
  usage.check_flags(call.command, call.flags)
  return [s for s in commands.STAGES if call.flags.overwrites(s)]


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
def test_what_is_done_again(command, word, stages):
  """A stage does itself again, `run` what is named."""
  assert parsed(command, word) == list(stages)


@pytest.mark.parametrize(
  ("command", "word", "message"),
  [
    ("run", "--overwrite", "--overwrite: name the stages that run runs again"),
    ("demo", "--overwrite", "--overwrite: name the stages that demo runs"),
    ("run", "--overwrite=train,fly", "--overwrite=train,fly: name the stages"),
    (
      "train",
      "--overwrite=mine",
      "--overwrite=mine: train can only run itself",
    ),
  ],
)
def test_what_is_refused(command, word, message):
  """Nothing is done again by a slip."""
  with pytest.raises(errors.InputError, match=message):
    parsed(command, word)


@pytest.mark.parametrize(
  ("line", "value"),
  [
    ("bench train --against=sentence-transformers-cached", None),
    ("bench encode --against=sentence-transformers-onnx-int8", None),
    ("report --against=/some/workdir", "/some/workdir"),
  ],
)
def test_what_to_compare_with_is_checked_by_the_command(line, value):
  """A library that a benchmark names in its help, or a workdir."""
  call = main_lib.invocation(["dpr-jax", *line.split()])
  assert call.flags["against"] == (value or line.partition("=")[2])
