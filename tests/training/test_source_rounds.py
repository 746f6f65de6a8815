"""Training on several sources: weights by round, and after interruptions."""

import copy
import shutil

import jax
import numpy as np
import pytest

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import prepare
from dpr_jax.models import checkpoints
from dpr_jax.retrieval import negative_refresh
from dpr_jax.training import train_retriever
from tests.training import power_cuts

pytestmark = pytest.mark.compiles


def _train(config, where, *weights):
  config = copy.deepcopy(config)
  config.train.source_weights = weights
  train_retriever.train(config, where, refresh=negative_refresh.refresh)


@pytest.fixture
def config(tiny_config, monkeypatch):
  """Two rounds of three steps over sources of 56 and 8 questions."""
  monkeypatch.setattr(
    prepare, "source_sizes", lambda workdir: {"a": 56, "b": 8}
  )
  config = copy.deepcopy(tiny_config)
  config.train.rounds = 2
  config.train.negatives = "bm25:1,model:1"
  config.train.hard_negatives = 2
  config.train.dev_questions = 0
  return config


def test_weights_of_a_later_round_may_change(
  config, fresh_workdir, tmp_path, monkeypatch
):
  """Killed in both rounds, the end is bit-equal to an uninterrupted run's.

  Until the second round begins, its weights are free; those of a round that
  has begun are not.
  """
  whole = workdir_lib.Workdir(tmp_path / "whole")
  shutil.copytree(fresh_workdir.root, whole.root)
  _train(config, whole, 1.0, 2.0, 1.0, 5.0)
  where = fresh_workdir
  for step, weights in ((3, (1.0, 2.0, 1.0, 1.0)), (5, (1.0, 2.0, 1.0, 5.0))):
    with monkeypatch.context() as patch:
      power_cuts.dies_after(step, patch)
      with pytest.raises(RuntimeError, match="power cut"):
        _train(config, where, *weights)
    refused = (1.0, 3.0, *weights[2:])
    if step == 5:  # the second round has begun
      refused = (1.0, 2.0, 1.0, 1.0)
    with pytest.raises(errors.InputError, match="train.source_weights was"):
      _train(config, where, *refused)
  _train(config, where, 1.0, 2.0, 1.0, 5.0)
  found, wanted = (
    checkpoints.load_params(each.training / "checkpoints")
    for each in (where, whole)
  )
  assert found[0] == wanted[0] == 6
  jax.tree.map(np.testing.assert_array_equal, found[1], wanted[1])
  with pytest.raises(errors.InputError, match="train.source_weights was"):
    _train(config, where, 1.0, 2.0, 1.0, 1.0)
