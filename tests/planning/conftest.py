"""What the TPU compiler makes of a small model, compiled once."""

import functools
import importlib.util

import numpy as np
import pytest

from dpr_jax.core import config as config_lib
from dpr_jax.planning import chips, text_lengths, tpu_plan


def pytest_report_header() -> str:
  found = importlib.util.find_spec("libtpu") is not None
  return f"TPU compiler: {'libtpu' if found else 'MISSING, plans are skipped'}"


@pytest.fixture(scope="session")
def plan_devices():
  """The devices of a topology, by name."""
  if importlib.util.find_spec("libtpu") is None:
    pytest.skip("libtpu is NOT INSTALLED: pip install 'dpr-jax[tpu]'")
  return functools.cache(
    lambda name: tpu_plan.devices(chips.Topology.parse(name))
  )


@pytest.fixture(scope="session")
def compile_plan(plan_devices):
  """`plan(topology, questions per core, **train settings)` of a small model.

  With `lengths`, (question, passage) tokens, all texts have these and are
  packed.
  """

  @functools.cache
  def compile_plan(
    name, questions, attention="plain", lengths=None, **settings
  ):
    topology = chips.Topology.parse(name)
    config = config_lib.base_config()
    config.model.checkpoint = "random"
    config.model.random_layers, config.model.random_width = 3, 128
    config.model.question_length, config.model.passage_length = 16, 32
    config.train.batch_size = questions * topology.cores
    config.model.attention = attention
    config.train.update(settings)
    config = tpu_plan.resolved(config)
    if lengths is not None:
      histograms = map(np.bincount, lengths)
      lengths = text_lengths.Lengths(*histograms, "here")
    rows = tpu_plan.packed_rows(config, topology, lengths)
    lowered, flops = tpu_plan.lower_train(
      config, plan_devices(name), lengths, rows
    )
    return tpu_plan.compile_step(lowered, topology, flops, quick=True)

  return compile_plan
