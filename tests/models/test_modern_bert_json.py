"""The `config.json` of a ModernBERT, of transformers 4 and 5."""

import json

import pytest

from dpr_jax.core import errors
from dpr_jax.models import encoder_config

SIZES = {"model_type": "modernbert", "num_hidden_layers": 4}


def _read(folder, **values):
  (folder / "config.json").write_text(json.dumps(SIZES | values))
  return encoder_config.BertConfig.read(folder)


def test_both_versions_are_read(tmp_path):
  old = _read(
    tmp_path,
    global_attn_every_n_layers=2,
    global_rope_theta=80000.0,
    local_rope_theta=None,
    hidden_activation="gelu",
    norm_eps=1e-6,
    attention_dropout=0.25,
  )
  assert old.global_attn_every_n_layers == 2
  assert (old.global_rope_theta, old.local_rope_theta) == (80000, 80000)
  assert (old.layer_norm_eps, old.attention_probs_dropout_prob) == (1e-6, 0.25)
  new = _read(
    tmp_path,
    layer_types=[
      *("full_attention", "sliding_attention"),
      *("full_attention", "sliding_attention"),
    ],
    rope_parameters={
      "full_attention": {"rope_type": "default", "rope_theta": 80000.0},
      "sliding_attention": {"rope_type": "default", "rope_theta": 80000.0},
    },
    norm_eps=1e-6,
    attention_dropout=0.25,
  )
  assert new == old
  plain = _read(tmp_path)
  assert plain.global_attn_every_n_layers == 3
  assert (plain.global_rope_theta, plain.local_rope_theta) == (160000, 10000)
  (tmp_path / "config.json").write_text(json.dumps(new.to_json()))
  assert encoder_config.BertConfig.read(tmp_path) == new


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"norm_bias": True}, "norm_bias 'True': a ModernBERT with biases"),
    ({"mlp_dropout": 0.1}, "embedding_dropout.*equal to mlp_dropout"),
    ({"layer_types": ["sliding_attention"]}, "layer_types"),
    ({"layer_types": "full_attention"}, "layer_types"),
    (
      {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}},
      "rope_parameters.*only the rope_type 'default'",
    ),
    ({"rope_scaling": {"factor": 2}}, "rope_scaling"),
    ({"global_rope_theta": 0.5}, "global_rope_theta is '0.5', not a whole"),
    ({"hidden_size": 36}, "heads of width 3"),
  ],
)
def test_unsupported_parts_are_refused(tmp_path, values, message):
  with pytest.raises(errors.InputError, match=message):
    _read(tmp_path, **values)
