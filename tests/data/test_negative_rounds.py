"""Rounds of a run: equal parts."""

import copy

import pytest

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import negative_rounds


@pytest.mark.parametrize(
  ("steps", "number", "starts"),
  [(6, 1, (0,)), (6, 2, (0, 3)), (7, 3, (0, 2, 4)), (3, 3, (0, 1, 2))],
)
def test_boundaries_are_equal_parts(steps, number, starts):
  assert negative_rounds.boundaries(steps, number) == starts


def test_more_rounds_than_steps_are_refused():
  with pytest.raises(errors.InputError, match="rounds=4: the run has only 3"):
    negative_rounds.boundaries(3, 4)
  with pytest.raises(errors.InputError, match="rounds=0: must be >= 1"):
    negative_rounds.boundaries(3, 0)


def test_rounds_of_a_config(tiny_config):
  """64 questions, 16 a batch: 1.6 epochs are 6.4, so 7 steps."""
  config = copy.deepcopy(tiny_config)
  config.train.max_steps, config.train.epochs = 0, 1.6
  config.train.rounds = 3
  rounds = negative_rounds.Rounds.of(config, [64])
  assert (rounds.steps, rounds.starts) == (7, (0, 2, 4))
  assert rounds.mining["mine"]["keep"] == 5
  config.train.max_steps, config.train.rounds = 9, 1
  config.mine.keep = 0  # nothing is mined within this run
  rounds = negative_rounds.Rounds.of(config, [64])
  assert (rounds.steps, rounds.starts, rounds.mining) == (9, (0,), {})


@pytest.mark.parametrize("number", [-1, 0, 3])
def test_the_first_round_mines_nothing(tmp_path, number):
  """Nor is there a round after the last of three."""
  rounds = negative_rounds.Rounds(0, 64, 9, (0, 3, 6), {})
  with pytest.raises(errors.InputError, match=f"no round {number} to mine"):
    rounds.stage(workdir_lib.Workdir(tmp_path), number)
