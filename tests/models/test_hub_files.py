"""Repositories on the hub: what is downloaded of them, and what is not."""

import pytest

from dpr_jax.models import checkpoint_sources


@pytest.fixture
def hub(tmp_path, monkeypatch):
  """A stand-in for the hub's client, with the client's own use of patterns."""
  from huggingface_hub import utils

  calls, repository = [], []

  def snapshot_download(name, *, revision, allow_patterns):
    calls.append((name, revision))
    for file in utils.filter_repo_objects(
      repository, allow_patterns=allow_patterns
    ):
      (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
      (tmp_path / file).write_text("{}")
    return str(tmp_path)

  monkeypatch.setattr(
    checkpoint_sources.huggingface_hub, "snapshot_download", snapshot_download
  )

  def download(name, files):
    repository[:] = files.split()
    checkpoint_sources.checkpoint_path(name)
    there = (path for path in tmp_path.rglob("*") if path.is_file())
    return {str(path.relative_to(tmp_path)) for path in there}, calls

  return download


_UNUSED = """onnx/model.onnx onnx/config.json tf_model.h5 rust_model.ot
  flax_model.msgpack openvino/openvino_model.xml model.fp16.safetensors
  pytorch_model.fp16.bin training_args.bin optimizer.pt run.py"""


@pytest.mark.parametrize(
  ("wanted", "unused"),
  [
    ("config.json vocab.txt model.safetensors", "pytorch_model.bin"),
    ("config.json vocab.txt pytorch_model.bin", ""),
    (
      """config.json model.safetensors.index.json tokenizer.json
      model-00001-of-00002.safetensors model-00002-of-00002.safetensors""",
      "pytorch_model.bin.index.json pytorch_model-00001-of-00002.bin",
    ),
    (
      """config.json pytorch_model.bin.index.json sentencepiece.bpe.model
      pytorch_model-00001-of-00002.bin pytorch_model-00002-of-00002.bin""",
      "",
    ),
    (
      """modules.json config_sentence_transformers.json model.safetensors
      sentence_bert_config.json 1_Pooling/config.json config.json
      2_Dense/config.json 2_Dense/pytorch_model.bin 3_Normalize/config.json""",
      "pytorch_model.bin",
    ),
    (
      """modules.json config.json 2_Dense/model.safetensors
      2_Dense/config.json 1_Pooling/config.json pytorch_model.bin""",
      "",
    ),
    (
      """modules.json router_config.json query_0_Transformer/config.json
      query_0_Transformer/model.safetensors query_1_Pooling/config.json
      query_0_Transformer/sentence_bert_config.json query_2_Dense/config.json
      query_2_Dense/model.safetensors document_0_Transformer/tokenizer.json
      document_0_Transformer/model.safetensors""",
      "document_0_Transformer/pytorch_model.bin",
    ),
    (
      """question/config.json question/model.safetensors question/dpr_jax.json
      passage/config.json passage/model.safetensors dpr_jax.json""",
      "",
    ),
    (
      """query_model/config.json query_model/pytorch_model.bin tokenizer.json
      passage_model/config.json passage_model/pytorch_model.bin""",
      "",
    ),
    ("hf_bert_base.cp vocab.txt config.json", ""),
  ],
)
def test_files_from_the_hub(hub, wanted, unused):
  """What layouts need, weights in one format, nothing else."""
  files = f"{wanted} {unused} {_UNUSED}"
  assert hub("hf:some/model", files)[0] == set(wanted.split())


def test_hub_gets_name_and_revision(hub):
  files = "config.json model.safetensors"
  hub("hf:some/model@v2", files)
  _, calls = hub("hf:some/model", files)
  assert calls == [("some/model", "v2"), ("some/model", None)]
