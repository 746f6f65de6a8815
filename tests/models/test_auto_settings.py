"""What a checkpoint says, what the config says, and what is used."""

import logging

from dpr_jax.core import config as config_lib
from dpr_jax.models import auto_settings, model_settings

SAID = {"pooling": "mean", "normalize": True, "passage_length": 128}


def _resolve(said, positions=512, **changes):
  model = config_lib.base_config().model
  model.update(changes)
  return auto_settings.resolve(model, said, positions=positions, source="X")


def test_a_checkpoint_that_says_nothing_is_used_as_in_dpr():
  """Lengths as far as there are positions."""
  assert _resolve({}) == dict(auto_settings.PLAIN)
  assert _resolve({}, 64)["passage_length"] == 64
  assert _resolve({}, 64)["question_length"] == 32


def test_a_checkpoint_is_followed_without_a_warning(caplog):
  with caplog.at_level(logging.WARNING, logger="absl"):
    found = _resolve(SAID | {"question_prefix": "query: "})
  assert found == {
    "pooling": "mean",
    "normalize": True,
    "title": "pair",
    "question_prefix": "query: ",
    "passage_prefix": "",
    "question_length": 32,
    "passage_length": 128,
  }
  assert not caplog.text


def test_a_contrary_setting_is_used_with_one_warning(caplog):
  """A shorter length and what the checkpoint does not say are no warnings."""
  with caplog.at_level(logging.WARNING, logger="absl"):
    found = _resolve(
      SAID,
      pooling="cls",
      normalize=False,
      title="joined",
      passage_length=64,
      question_length=100,
    )
  assert (found["pooling"], found["normalize"]) == ("cls", False)
  assert (found["passage_length"], found["question_length"]) == (64, 100)
  (record,) = caplog.records
  assert record.getMessage() == (
    "checkpoint X says pooling 'mean', normalize True; used is"
    " config.model.pooling='cls', config.model.normalize=False, as the config"
    " says"
  )
  caplog.clear()
  with caplog.at_level(logging.WARNING, logger="absl"):
    _resolve(SAID, pooling="mean", normalize=True, passage_length=200)
  assert "passage_length 128; used is config.model.passage_length=200" in (
    caplog.text
  )


def test_auto_contradicts_nothing():
  """Whatever was trained: False, 0 and "" are values of their own."""
  there = dict(auto_settings.PLAIN) | {
    "pooling": "mean",
    "shared_towers": False,
  }
  here = config_lib.plain(config_lib.base_config().model)
  keys = model_settings.DECIDING
  assert model_settings.differences(there, here, keys) == {}
  here |= {"normalize": True, "passage_prefix": "p: "}
  assert model_settings.differences(there, here, keys) == {
    "normalize": (False, True),
    "passage_prefix": ("", "p: "),
  }
  assert not auto_settings.is_auto("normalize", False)
  assert not auto_settings.is_auto("question_length", False)
  assert not auto_settings.is_auto("question_prefix", "")
