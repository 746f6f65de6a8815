"""Whose files these are: each layout as its own library writes it."""

import logging

import pytest

from dpr_jax.core import errors
from dpr_jax.models import checkpoint_layouts, tower_files
from tests.models import layout_writers

pytestmark = pytest.mark.compiles  # torch and its libraries take seconds


def _names(state):
  """Without the buffers that are not saved."""
  return {n: x for n, x in state.items() if "position_ids" not in n}


def test_bert(tmp_path, caplog):
  """One encoder; nothing is known of its use."""
  caplog.set_level(logging.INFO)
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


def test_contriever(tmp_path):
  """Its folder says only the name of its class."""
  layout_writers.write_bert(tmp_path, architectures=["Contriever"])
  config = (tmp_path / "config.json").read_text()
  config = config.replace('"BertModel"', '"Contriever"')
  (tmp_path / "config.json").write_text(config)
  use = checkpoint_layouts.open_(str(tmp_path)).question.use
  assert use == tower_files.Use("mean", False, title="joined")


def test_no_model(tmp_path):
  with pytest.raises(errors.InputError, match="neither a config.json nor"):
    checkpoint_layouts.open_(str(tmp_path))
  with pytest.raises(errors.InputError, match="there is no such folder"):
    checkpoint_layouts.open_(str(tmp_path / "nowhere"))
