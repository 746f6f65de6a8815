"""Weights of a folder: every file that transformers writes, or wrote."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from dpr_jax.core import errors
from dpr_jax.models import tensor_files
from tests.models import layout_writers

pytestmark = pytest.mark.compiles  # torch takes seconds


def _state(folder):
  state = layout_writers.write_bert(folder)
  return {n: x for n, x in state.items() if "position_ids" not in n}


def _save_as_torch(folder, names=("pytorch_model.bin",)):
  """Replaces model.safetensors; with several files, by shards and index."""
  torch = layout_writers.torch_library()
  tensors = safetensors.numpy.load_file(folder / "model.safetensors")
  (folder / "model.safetensors").unlink()
  weight_map = {}
  for number, name in enumerate(names):
    part = sorted(tensors)[number :: len(names)]
    state = {key: torch.from_numpy(tensors[key]) for key in part}
    torch.save(state, folder / name)
    weight_map |= dict.fromkeys(part, name)
  if len(names) > 1:
    layout_writers.write_json(
      folder / "pytorch_model.bin.index.json", {"weight_map": weight_map}
    )


@pytest.mark.parametrize(
  "names",
  [
    ("pytorch_model.bin",),
    ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"),
  ],
)
def test_torch_files(tmp_path, names):
  state = _state(tmp_path)
  _save_as_torch(tmp_path, names)
  layout_writers.assert_tensors(tensor_files.read_tensors(tmp_path), state)
  assert sorted(tensor_files.tensor_names(tmp_path)) == sorted(state)
  (tmp_path / names[-1]).unlink()
  with pytest.raises(errors.InputError, match="is missing: a checkpoint"):
    tensor_files.tensor_names(tmp_path)


def test_shards_of_transformers(tmp_path):
  """As save_pretrained writes them, in files of 1 kB."""
  layout_writers.torch_library()
  import transformers

  state = _state(tmp_path / "whole")
  model = transformers.BertModel.from_pretrained(tmp_path / "whole")
  model.save_pretrained(tmp_path / "parts", max_shard_size="1KB")
  assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 3
  tensors = tensor_files.read_tensors(tmp_path / "parts")
  layout_writers.assert_tensors(tensors, state)


def test_safetensors_first(tmp_path):
  state = _state(tmp_path)
  (tmp_path / "pytorch_model.bin").write_bytes(b"of an older commit")
  layout_writers.assert_tensors(tensor_files.read_tensors(tmp_path), state)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision(tmp_path, dtype):
  """16 bits stay 16 bits; their values are exact in float32."""
  array = np.array([1.5, -3.0, 0.1]).astype(dtype)
  path = tmp_path / "model.safetensors"
  safetensors.numpy.save_file({"x": array}, path)
  read = tensor_files.read_tensors(tmp_path)["x"]
  assert read.dtype == dtype
  np.testing.assert_array_equal(
    read.astype(np.float32), array.astype(np.float32)
  )


def test_refusals(tmp_path):
  """One line that names the file and the fix."""
  torch = layout_writers.torch_library()
  path = tmp_path / "pytorch_model.bin"
  for content, message in (
    (b"", "not a whole file of torch.save"),
    (b"PK\x03\x04", "truncated"),
  ):
    path.write_bytes(content)
    with pytest.raises(errors.InputError, match=message) as caught:
      tensor_files.read_tensors(tmp_path)
    assert str(caught.value).startswith(f"{path} cannot be read: ")
    assert "convert it to model.safetensors" in str(caught.value)
  for value in ([torch.ones(1)], {"model": {"x": torch.ones(1)}}, {}):
    torch.save(value, path)
    with pytest.raises(errors.InputError, match="does not map names to tensor"):
      tensor_files.tensor_names(tmp_path)
  path.unlink()
  index = tmp_path / "pytorch_model.bin.index.json"
  index.write_text(json.dumps({"weight_map": {"a": "../b.bin"}}))
  with pytest.raises(errors.InputError, match="to files in its folder"):
    tensor_files.read_tensors(tmp_path)


def test_heads():
  names = ["bert.pooler.dense.bias", "bert.encoder.layer.0.x", "cls.bias"]
  assert tensor_files.heads_among(names) == ("cls", "pooler")
  assert tensor_files.heads_among(["encoder.layer.0.x"]) == ()
