"""What the benches of batches start from."""

import copy

import pytest


@pytest.fixture
def cell_base(tiny_config, starter_folder):
  """Smallest sizes; the random BERT takes the starter's tokenizer."""
  del starter_folder
  config = copy.deepcopy(tiny_config)
  config.model.random_layers = 1
  config.model.random_width = 16
  config.model.question_length = 8
  config.model.passage_length = 12
  config.train.chunk_size = 2
  config.train.loss_tile = 4
  return config
