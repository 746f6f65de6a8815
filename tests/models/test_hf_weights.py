"""Hugging Face weights: every name there, none too many, the same numbers."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from dpr_jax.core import errors
from dpr_jax.models import bert, hf_weights, tensor_files
from tests.models import bert_folders

CONFIG = bert.BertConfig(
  vocab_size=60,
  hidden_size=24,
  num_hidden_layers=3,
  num_attention_heads=3,
  intermediate_size=40,
  max_position_embeddings=64,
  hidden_act="gelu",
)


@pytest.fixture
def tensors():
  """A checkpoint's tensors by Hugging Face name."""
  params = bert.init_params(CONFIG, jax.random.key(1))
  return hf_weights.tensors_from_params(params, CONFIG)


def _equal(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


def test_round_trip(tensors):
  """Tensors to parameters and back, bit for bit."""
  params = hf_weights.params_from_tensors(tensors, CONFIG, "here")
  _equal(hf_weights.tensors_from_params(params, CONFIG), tensors)
  wanted = bert.init_params(CONFIG, jax.random.key(0))
  assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, wanted)


def test_prefix_extras_and_old_names(tensors):
  """`bert.`, pooler, position_ids, gamma and beta change nothing."""
  params = hf_weights.params_from_tensors(tensors, CONFIG, "here")
  odd = {
    "bert."
    + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
      "LayerNorm.bias", "LayerNorm.beta"
    ): value
    for name, value in tensors.items()
  }
  odd["bert.embeddings.position_ids"] = np.arange(64)[None]
  odd["bert.pooler.dense.weight"] = np.zeros((24, 24), np.float32)
  odd["cls.predictions.bias"] = np.zeros(60, np.float32)
  _equal(hf_weights.params_from_tensors(odd, CONFIG, "here"), params)


def test_missing_unexpected_and_misshapen_are_named(tensors):
  """All three kinds in one message, with the source."""
  missing = "encoder.layer.1.attention.self.query.weight"
  del tensors[missing]
  tensors["encoder.layer.3.output.dense.bias"] = np.zeros(24, np.float32)
  tensors["embeddings.word_embeddings.weight"] = np.zeros((61, 24), np.float32)
  with pytest.raises(errors.InputError) as caught:
    hf_weights.params_from_tensors(tensors, CONFIG, "some/folder")
  message = str(caught.value)
  assert message.startswith("some/folder does not hold the BERT")
  assert f"missing: {missing}" in message
  assert "unexpected: encoder.layer.3.output.dense.bias" in message
  assert (
    "embeddings.word_embeddings.weight is (61, 24), not (60, 24)" in message
  )


def test_folder(tmp_path, tensors):
  """A folder is loaded; a damaged or missing file is named."""
  with pytest.raises(errors.InputError, match="model.safetensors is missing"):
    tensor_files.read_tensors(tmp_path)
  path = tmp_path / "model.safetensors"
  safetensors.numpy.save_file(tensors, path)
  (tmp_path / "config.json").write_text(
    json.dumps(
      {
        "vocab_size": 60,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "max_position_embeddings": 64,
      }
    )
  )
  config, params = bert_folders.load_bert(tmp_path)
  assert config == CONFIG
  _equal(hf_weights.tensors_from_params(params, config), tensors)
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(errors.InputError, match="model.safetensors is damaged"):
    bert_folders.load_bert(tmp_path)


def test_sharded_folder(tmp_path, tensors):
  """An index and two shards are one checkpoint."""
  names = sorted(tensors)
  halves = {"a.safetensors": names[:20], "b.safetensors": names[20:]}
  for file, some in halves.items():
    part = {name: tensors[name] for name in some}
    safetensors.numpy.save_file(part, tmp_path / file)
  weight_map = {name: file for file, some in halves.items() for name in some}
  (tmp_path / "model.safetensors.index.json").write_text(
    json.dumps({"weight_map": weight_map})
  )
  _equal(tensor_files.read_tensors(tmp_path), tensors)
