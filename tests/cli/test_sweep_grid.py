"""Combinations of settings and seeds: what is read and refused, and names."""

import pytest

from dpr_jax.cli import sweep_grid
from dpr_jax.core import config as config_lib
from dpr_jax.core import errors


@pytest.mark.parametrize(
  ("text", "found"),
  [
    ("", {}),
    (
      "train.learning_rate=1e-5, 2e-5; train.negatives=bm25,random",
      {
        "train.learning_rate": (1e-5, 2e-5),
        "train.negatives": ("bm25", "random"),
      },
    ),
    # As they are typed on the command line.
    ("--config.train.epochs=1", {"train.epochs": (1.0,)}),
    ("train.packing=True,no;", {"train.packing": (True, False)}),
    ("model.normalize=auto,False", {"model.normalize": ("auto", False)}),
    # Values with a comma or an equals sign.
    (
      "train.negatives='bm25:1,random:1',bm25",
      {"train.negatives": ("bm25:1,random:1", "bm25")},
    ),
    (
      'data.dev="a=1;b.json";retrieve.methods=(bm25,dense),["exact"]',
      {
        "data.dev": ("a=1;b.json",),
        "retrieve.methods": (("bm25", "dense"), ("exact",)),
      },
    ),
  ],
)
def test_axes(text, found):
  """Each value has the type of its setting."""
  read = sweep_grid.axes(text)
  assert read == found
  assert list(read) == list(found)
  for key, values in read.items():
    assert [type(v) for v in values] == [type(v) for v in found[key]]


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("train.lr=1", "no setting 'train.lr': did you mean train.learning_rate"),
    ("learning_rate=1", "no setting 'learning_rate': did you mean train.learn"),
    ("train=1", "no setting 'train'"),
    ("train.epochs=1,0", "config.train.epochs=0: must be > 0"),
    ("train.loss=gathered,tile", "did you mean tiled"),
    ("train.epochs", "values are missing: train.epochs=A,B"),
    ("train.epochs=,", "values are missing: train.epochs=A,B"),
    ("train.epochs=1,1.0", "a value is there twice"),
    ("train.epochs=1;train.epochs=2", "names train.epochs twice"),
    ("seed=1,2", "seeds are set by --seeds=N"),
  ],
)
def test_what_is_refused(text, message):
  """In one line, with what to write."""
  with pytest.raises(errors.InputError, match=message):
    sweep_grid.axes(text)


def test_trials():
  """2 x 2 combinations, the last key fastest; two seeds each."""
  config = config_lib.base_config()
  config.seed = 5
  over = sweep_grid.axes("train.epochs=1,2;train.negatives=bm25,random")
  found = sweep_grid.trials(config, over, 2)
  assert [each.name for each in found] == [
    "epochs-1.0_negatives-bm25_seed-5",
    "epochs-1.0_negatives-bm25_seed-6",
    "epochs-1.0_negatives-random_seed-5",
    "epochs-1.0_negatives-random_seed-6",
    "epochs-2.0_negatives-bm25_seed-5",
    "epochs-2.0_negatives-bm25_seed-6",
    "epochs-2.0_negatives-random_seed-5",
    "epochs-2.0_negatives-random_seed-6",
  ]
  last = found[-1]
  assert last.setting == "epochs-2.0_negatives-random"
  assert last.values == {"train.epochs": 2.0, "train.negatives": "random"}
  assert (last.config.train.epochs, last.config.train.negatives) == (
    2.0,
    "random",
  )
  assert (last.seed, last.config.seed) == (6, 6)
  assert config.seed == 5
  assert config.train.negatives == "bm25"
  assert found[0].config.train.epochs == 1.0
  (only,) = sweep_grid.trials(config, {}, 1)
  assert (only.name, only.setting, only.values) == (
    "config_seed-5",
    "config",
    {},
  )
  config.seed = 2**32 - 1
  with pytest.raises(
    errors.InputError, match="--seeds=2: config.seed=42949672"
  ):
    sweep_grid.trials(config, {}, 2)


def test_names_are_of_folders_and_of_their_own():
  """No slash or space; whole keys where names are equal; never the same."""
  name = sweep_grid.name_of
  assert name({"train.negatives": "bm25:1,random:1"}) == (
    "negatives-bm25-1-random-1"
  )
  assert name({"train.batch_size": 8, "reader.batch_size": 4}) == (
    "train.batch_size-8_reader.batch_size-4"
  )
  assert name({"bm25.stemmer": ""}) == "stemmer-none"
  assert name({"model.checkpoint": "/a b/" + "x" * 60}) == (
    "checkpoint-" + "x" * 40
  )
  over = {"train.negatives": ("bm25:1", "bm25,1")}
  names = {
    each.name for each in sweep_grid.trials(config_lib.base_config(), over, 1)
  }
  assert len(names) == 2
