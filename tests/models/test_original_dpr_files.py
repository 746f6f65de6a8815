"""Checkpoints of the original DPR, as its code calls `torch.save`."""

import collections
import logging

import pytest

from dpr_jax.core import errors
from dpr_jax.models import (
  checkpoint_layouts,
  checkpoint_sources,
  original_dpr_files,
  reader_model,
  tower_files,
)
from tests.models import layout_writers

pytestmark = pytest.mark.compiles  # torch takes seconds

SETTINGS = {
  "do_lower_case": True,
  "pretrained_model_cfg": "bert-base-uncased",
  "encoder_model_type": "hf_bert",
  "pretrained_file": None,
  "projection_dim": 0,
  "sequence_length": 30,
}
SIZES = layout_writers.SIZES | {"hidden_size": 128}


def _model(seed):
  torch = layout_writers.torch_library()
  import transformers

  torch.manual_seed(seed)
  return transformers.BertModel(transformers.BertConfig(**SIZES))


def _write(path, settings=SETTINGS, projection=0, legacy=False, **parts):
  """A checkpoint with the optimizer's state; its model_dict is returned."""
  torch = layout_writers.torch_library()
  model = torch.nn.ModuleDict(
    parts or {"question_model": _model(0), "ctx_model": _model(1)}
  )
  if projection:
    for name in model:
      model[name].encode_proj = torch.nn.Linear(128, projection)
  optimizer = torch.optim.AdamW(model.parameters())
  sum(p.sum() for p in model.parameters()).backward()
  optimizer.step()
  state = {
    "model_dict": model.state_dict(),
    "optimizer_dict": optimizer.state_dict(),
    "scheduler_dict": {"last_epoch": 3},
    "offset": 0,
    "epoch": 2,
    "encoder_params": settings,
  }
  path.parent.mkdir(parents=True, exist_ok=True)
  torch.save(
    collections.OrderedDict(state),
    path,
    _use_new_zipfile_serialization=not legacy,
  )
  return {
    name: value.numpy()
    for name, value in model.state_dict().items()
    if "position_ids" not in name
  }


@pytest.fixture
def starter(tmp_path, monkeypatch):
  """A stand-in for the starter's folder."""
  folder = tmp_path / "starter"
  layout_writers.write_vocabulary(folder)
  monkeypatch.setattr(
    checkpoint_sources, "checkpoint_folder", lambda name: folder
  )
  return folder


@pytest.mark.parametrize("legacy", [False, True])
def test_both_towers(tmp_path, starter, caplog, legacy):
  """Sizes by the tensors, the tokenizer of bert-base-uncased."""
  caplog.set_level(logging.INFO, logger="absl")
  path = tmp_path / "run" / "dpr_biencoder.2"
  state = _write(path, legacy=legacy)
  for name in (path, path.parent):
    opened = checkpoint_layouts.open_(str(name))
    assert opened.layout == "original DPR"
    assert not opened.shared
    for files, prefix in (
      (opened.question, "question_model."),
      (opened.passage, "ctx_model."),
    ):
      tensors = files.tensors()
      layout_writers.assert_tensors(tensors, state, prefix)
      assert files.folder == starter
      assert files.use == tower_files.Use("cls", False, length=30, title="pair")
      assert files.heads == ("pooler",)
      config = files.config
      assert (config.num_hidden_layers, config.num_attention_heads) == (1, 2)
      assert (config.hidden_size, config.intermediate_size) == (128, 16)
      assert (config.vocab_size, config.max_position_embeddings) == (13, 40)
  assert "2 attention heads of 64, because" in caplog.text


def test_sizes_and_tokenizer_beside_the_file(tmp_path):
  """They are preferred; the number of heads is then the file's."""
  path = tmp_path / "hf_bert_base.cp"
  _write(path, SETTINGS | {"sequence_length": 256})
  layout_writers.write_vocabulary(tmp_path)
  sizes = SIZES | {"model_type": "bert", "num_attention_heads": 4}
  layout_writers.write_json(tmp_path / "config.json", sizes)
  opened = checkpoint_layouts.open_(str(tmp_path))
  assert opened.passage.folder == tmp_path
  assert opened.passage.config.num_attention_heads == 4
  assert opened.passage.use.length == 40  # as many as there are positions


def test_projection(tmp_path, starter):
  """`encode_proj` is a dense layer on the pooled vector."""
  state = _write(tmp_path / "a.cp", projection=5)
  opened = checkpoint_layouts.open_(str(tmp_path / "a.cp"))
  (layer,) = opened.passage.use.dense
  weight = state["ctx_model.encode_proj.weight"]
  assert layer.activation == "identity"
  assert layer.kernel.tolist() == weight.T.tolist()
  assert layer.bias.tolist() == state["ctx_model.encode_proj.bias"].tolist()
  assert "encode_proj.weight" not in opened.passage.tensors()


def test_settings_of_omegaconf(tmp_path, starter):
  """Newer versions of DPR save an object of omegaconf."""
  omegaconf = pytest.importorskip(
    "omegaconf", reason="no omegaconf: `pip install omegaconf`"
  )
  settings = {"encoder": omegaconf.OmegaConf.create(SETTINGS)}
  _write(tmp_path / "a.cp", settings | {"do_lower_case": True})
  opened = checkpoint_layouts.open_(str(tmp_path / "a.cp"))
  assert opened.question.use.length == 30
  assert opened.question.folder == starter


def test_reader(tmp_path):
  """Refused as an encoder, and read as a reader, by transformers' names."""
  torch = layout_writers.torch_library()
  heads = {
    "qa_outputs": torch.nn.Linear(128, 2),
    "qa_classifier": torch.nn.Linear(128, 1),
  }
  path = tmp_path / "hf_bert_reader.cp"
  layout_writers.write_vocabulary(tmp_path)
  layout_writers.write_json(
    tmp_path / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer"}
  )
  state = _write(path, encoder=_model(0), **heads)
  with pytest.raises(errors.InputError, match="set config.reader.checkpoint"):
    checkpoint_layouts.open_(str(path))
  assert original_dpr_files.reader_in(path) == path
  assert original_dpr_files.reader_in(tmp_path) == path
  files = original_dpr_files.read_reader(path)
  expected = {
    f"span_predictor.{name}": value
    for name, value in state.items()
    if name.startswith("qa_")
  } | {
    f"span_predictor.encoder.bert_model.{name.removeprefix('encoder.')}": value
    for name, value in state.items()
    if name.startswith("encoder.")
  }
  layout_writers.assert_tensors(files.tensors(), expected)
  assert files.folder == tmp_path
  reader = reader_model.from_folder(path)
  assert reader.ranks
  assert reader.tokenizer.layout == "dpr"
  for ours, theirs in (("span", "qa_outputs"), ("rank", "qa_classifier")):
    kernel = reader.params[ours]["kernel"]
    assert kernel.T.tolist() == state[f"{theirs}.weight"].tolist()
  _write(path)
  assert original_dpr_files.reader_in(path) is None
  with pytest.raises(errors.InputError, match="holds no reader of DPR"):
    original_dpr_files.read_reader(path)


def test_refusals(tmp_path):
  """What is missing is named, and where to put it."""
  torch = layout_writers.torch_library()
  path = tmp_path / "a.cp"
  _write(path, SETTINGS | {"pretrained_model_cfg": "xlm-roberta-base"})
  with pytest.raises(errors.InputError) as caught:
    checkpoint_layouts.open_(str(path))
  assert str(caught.value) == (
    f"{path} has no tokenizer, and was trained from 'xlm-roberta-base': copy"
    " tokenizer.json, or vocab.txt and config.json, of that model into"
    f" {tmp_path}"
  )
  torch.save({"weights": torch.ones(1)}, path)
  with pytest.raises(errors.InputError, match="a.cp has no model_dict"):
    checkpoint_layouts.open_(str(path))
  torch.save({"model_dict": {"roberta.x": torch.ones(1)}}, path)
  with pytest.raises(errors.InputError, match="in its model_dict, only robert"):
    checkpoint_layouts.open_(str(path))
  _write(tmp_path / "b.cp")
  with pytest.raises(errors.InputError, match="2 checkpoints of DPR, a.cp to"):
    checkpoint_layouts.open_(str(tmp_path))
  (tmp_path / "b.cp").write_bytes(b"no checkpoint")
  with pytest.raises(errors.InputError, match="b.cp cannot be read: it is not"):
    checkpoint_layouts.open_(str(tmp_path / "b.cp"))
