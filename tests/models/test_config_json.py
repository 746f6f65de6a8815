"""Values of a config.json, by the type of their field."""

import dataclasses
import json

import pytest

from dpr_jax.core import errors
from dpr_jax.models import config_json


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Some fields of a model's config."""

  num_hidden_layers: int = 2
  hidden_size: int = 8
  dropout: float = 0.1
  hidden_act: str = "gelu"


def _build(tmp_path, **values):
  path = tmp_path / "config.json"
  path.write_text(json.dumps(values))
  return config_json.build(path, config_json.read(path), Sizes)


def test_what_has_no_field_is_left_out(tmp_path):
  found = _build(tmp_path, hidden_size=1, dropout=0, unknown=[1])
  assert found == Sizes(hidden_size=1, dropout=0)
  assert _build(tmp_path, num_hidden_layers=1000).num_hidden_layers == 1000


@pytest.mark.parametrize(
  ("values", "words"),
  [
    ({"hidden_size": 0}, "hidden_size is '0', not a whole number from 1"),
    ({"hidden_size": 2.0}, "hidden_size is '2.0', not a whole number"),
    ({"hidden_size": True}, "hidden_size is 'True', not a whole number"),
    ({"num_hidden_layers": 1001}, "num_hidden_layers is .* from 1 to 1000"),
    ({"dropout": 1.0}, "dropout is '1.0', not a number from 0 to below 1"),
    ({"dropout": -0.1}, "dropout is '-0.1', not a number from 0"),
    ({"hidden_act": 3}, "hidden_act is '3', not a text"),
  ],
)
def test_what_a_field_cannot_be_is_named(tmp_path, values, words):
  with pytest.raises(errors.InputError, match=rf"config\.json: {words}"):
    _build(tmp_path, **values)
