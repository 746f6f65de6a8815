"""Whose files these are: each layout as its own library writes it."""

import dataclasses
import logging

import numpy as np
import pytest

from dpr_jax.core import errors
from dpr_jax.models import checkpoint_layouts, model_files, tower_files
from tests.models import layout_writers

pytestmark = pytest.mark.compiles  # torch and its libraries take seconds


def _names(state):
  """Without the buffers that are not saved."""
  return {n: x for n, x in state.items() if "position_ids" not in n}


def test_bert(tmp_path, caplog):
  """One encoder; nothing is known of its use."""
  caplog.set_level(logging.INFO, logger="absl")
  state = layout_writers.write_bert(tmp_path, "BertForMaskedLM")
  opened = checkpoint_layouts.open_(str(tmp_path))
  assert opened.shared
  assert opened.passage.use == tower_files.Use()
  assert opened.question.folder == tmp_path
  assert opened.question.config.hidden_size == 8
  tensors = opened.question.tensors()
  assert tensors["cls.predictions.bias"].shape == (13,)
  layout_writers.assert_tensors(
    {n: x for n, x in tensors.items() if n.startswith("bert.")},
    {n: x for n, x in _names(state).items() if n.startswith("bert.")},
  )
  assert caplog.messages[-1] == (
    f"checkpoint {tmp_path}: Hugging Face, one encoder; without its heads cls"
  )


@pytest.mark.parametrize(
  "folders", [("question_encoder", "ctx_encoder"), ("one", "another")]
)
def test_dpr_pair(tmp_path, folders):
  """The subfolders of transformers' DPR encoders, by name or by content."""
  states = layout_writers.write_dpr_pair(tmp_path, *folders)
  opened = checkpoint_layouts.open_(str(tmp_path))
  prefixes = ("question_encoder.bert_model.", "ctx_encoder.bert_model.")
  towers = (opened.question, opened.passage)
  for files, state, prefix in zip(towers, states, prefixes, strict=True):
    layout_writers.assert_tensors(files.tensors(), _names(state), prefix)
    assert files.use == tower_files.Use("cls", False, title="pair")
  assert not opened.shared
  single = checkpoint_layouts.open_(str(tmp_path), "passage")
  assert single.shared
  layout_writers.assert_tensors(
    single.question.tensors(), _names(states[1]), prefixes[1]
  )


def test_dpr_projection(tmp_path):
  """The vectors of transformers' encoder, through a dense layer."""
  import dpr_jax

  torch = layout_writers.torch_library()
  import transformers

  layout_writers.write_bert(tmp_path, "DPRContextEncoder", projection_dim=3)
  (layer,) = checkpoint_layouts.open_(str(tmp_path)).passage.use.dense
  assert (layer.kernel.shape, layer.activation) == ((8, 3), "identity")
  model = transformers.DPRContextEncoder.from_pretrained(tmp_path).eval()
  with torch.no_grad():
    # [CLS] a [SEP] b c [SEP]
    theirs = model(torch.tensor([[2, 5, 3, 6, 7, 3]])).pooler_output.numpy()
  ours = dpr_jax.Encoder.load(tmp_path).encode_passages([("a", "b c")])
  np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_dpr_encoder_for_the_other_kind_of_text(tmp_path, caplog):
  layout_writers.write_bert(tmp_path, "DPRContextEncoder")
  assert checkpoint_layouts.open_(str(tmp_path)).shared
  assert "encoder of passages" not in caplog.text
  checkpoint_layouts.open_(str(tmp_path), "question")
  assert f"{tmp_path} is DPR's encoder of passages" in caplog.text


def test_dpr_reader_is_refused(tmp_path):
  layout_writers.write_bert(tmp_path, "DPRReader")
  with pytest.raises(errors.InputError, match="set config.reader.checkpoint"):
    checkpoint_layouts.open_(str(tmp_path))


def test_tevatron(tmp_path):
  """Two subfolders, the tokenizer beside them."""
  states = []
  for seed, folder in enumerate(("query_model", "passage_model")):
    states.append(
      layout_writers.write_bert(tmp_path / folder, "BertModel", seed)
    )
    (tmp_path / folder / "vocab.txt").unlink()
  layout_writers.write_vocabulary(tmp_path)
  opened = checkpoint_layouts.open_(str(tmp_path))
  for files, state in zip(
    (opened.question, opened.passage), states, strict=True
  ):
    layout_writers.assert_tensors(files.tensors(), _names(state))
    assert files.folder == tmp_path
    assert files.use == tower_files.Use("cls", title="joined")
  (tmp_path / "pooler.pt").write_bytes(b"")
  with pytest.raises(errors.InputError, match="pooler.pt: a pooler of Tev"):
    checkpoint_layouts.open_(str(tmp_path))


def test_contriever(tmp_path):
  """Its folder says only the name of its class."""
  layout_writers.write_bert(tmp_path, architectures=["Contriever"])
  config = (tmp_path / "config.json").read_text()
  config = config.replace('"BertModel"', '"Contriever"')
  (tmp_path / "config.json").write_text(config)
  use = checkpoint_layouts.open_(str(tmp_path)).question.use
  assert use == tower_files.Use("mean", False, title="joined")


RECORDED = {
  "pooling": "mean",
  "normalize": True,
  "title": "joined",
  "question_prefix": "query: ",
  "passage_prefix": "passage: ",
  "question_length": 20,
  "passage_length": 30,
}


@pytest.mark.parametrize("layout", ["one", "two", "part", "dpr"])
def test_our_exports(tmp_path, layout):
  """The settings of the training, whatever the files beside them say."""
  folders = {"two": ("question", "passage"), "one": ("", "")}.get(
    layout, ("question_encoder", "ctx_encoder")
  )
  if layout == "dpr":
    states = layout_writers.write_dpr_pair(tmp_path)
  else:
    states = [
      layout_writers.write_bert(tmp_path / folder, seed=seed)
      for seed, folder in enumerate(folders)
    ]
  if layout == "part":  # one folder of two, which has the settings of both
    root = tmp_path / folders[1]
    states = states[1:] * 2
  else:
    root = tmp_path
  if layout == "one":
    states = states[1:] * 2
  model_files.seal(root, model_files.TOWERS, model=RECORDED)
  (root / "README.md").write_text("a card, written by the user")
  opened = checkpoint_layouts.open_(str(root))
  assert opened.layout.startswith("dpr-jax (")
  assert opened.shared == (layout in ("one", "part"))
  use = tower_files.Use("mean", True, length=20, prefix="query: ")
  use = dataclasses.replace(use, title="joined")
  assert opened.question.use == use
  use = dataclasses.replace(use, length=30, prefix="passage: ")
  assert opened.passage.use == use
  prefixes = [""] * 2
  if layout == "dpr":
    prefixes = ["question_encoder.bert_model.", "ctx_encoder.bert_model."]
  towers = (opened.question, opened.passage)
  for files, state, prefix in zip(towers, states, prefixes, strict=True):
    layout_writers.assert_tensors(files.tensors(), _names(state), prefix)
  path = next(root.rglob("model.safetensors"))
  path.write_bytes(path.read_bytes()[:-1] + b"x")
  with pytest.raises(errors.InputError, match="is damaged or was changed"):
    checkpoint_layouts.open_(str(root))


def test_an_exported_reader_is_no_encoder(tmp_path):
  layout_writers.write_bert(tmp_path, "DPRReader")
  model_files.seal(tmp_path, model_files.READER)
  with pytest.raises(errors.InputError, match="describes reader in format 1"):
    checkpoint_layouts.open_(str(tmp_path))


def test_weights_without_their_folder(tmp_path):
  layout_writers.write_bert(tmp_path)
  path = tmp_path / "model.safetensors"
  with pytest.raises(errors.InputError, match=f"give the folder {tmp_path}$"):
    checkpoint_layouts.open_(str(path))


def test_no_model(tmp_path):
  with pytest.raises(errors.InputError, match="neither a config.json nor"):
    checkpoint_layouts.open_(str(tmp_path))
  with pytest.raises(errors.InputError, match="there is no such folder"):
    checkpoint_layouts.open_(str(tmp_path / "nowhere"))
