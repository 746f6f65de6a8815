"""Encoders of every family: as in transformers, and the same however computed.

Torch is an extra (`parity`): without it these tests skip and say so.
"""

import jax
import numpy as np
import pytest

from dpr_jax.data import records, tokenization
from dpr_jax.models import bert, hf_weights, model_files
from tests import families

pytestmark = pytest.mark.compiles

TOLERANCE = 2e-5
NAMES = sorted(families.FAMILIES)


@pytest.fixture(scope="module", params=NAMES)
def folder(request, tmp_path_factory):
  """A small checkpoint that transformers has written."""
  pytest.importorskip("torch", reason="no torch: extra `parity`")
  path = tmp_path_factory.mktemp(request.param)
  families.write(request.param, path)
  return path


def _passages():
  """Passages of many lengths, with and without a title, and an empty one."""
  texts = families.sample_texts()[:6]
  return [
    *(
      records.Passage("", title if number % 3 else "", text[: 25 * number])
      for number, (title, text) in enumerate(texts)
    ),
    records.Passage("", "", texts[0][1]),
  ]


def _batch(folder):
  return tokenization.TextTokenizer(
    tokenization.load_tokenizer(folder), passage_length=60
  ).passages(_passages())


def _theirs(folder, batch, types=None):
  import torch
  import transformers

  model = transformers.AutoModel.from_pretrained(
    str(folder), dtype=torch.float32
  ).eval()
  more = {} if types is None else {"token_type_ids": torch.tensor(types).long()}
  with torch.no_grad():
    return model(
      input_ids=torch.tensor(batch.ids).long(),
      attention_mask=torch.tensor(batch.mask).long(),
      **more,
    ).last_hidden_state.numpy()


def test_token_ids_are_those_of_transformers(folder):
  """Pairs and single texts; the last, cut text ends with the last token."""
  import transformers

  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  ours = tokenization.TextTokenizer(
    tokenization.load_tokenizer(folder), passage_length=60
  )
  passages = _passages()
  for passage, ids in zip(passages, ours.passage_ids(passages), strict=True):
    pair = (passage.title,) if passage.title else ()
    wanted = theirs(*pair, passage.text)["input_ids"]
    if len(wanted) > 60:
      wanted = [*wanted[:59], theirs.sep_token_id]
    assert ids == wanted
    assert ids[0] == theirs.cls_token_id
  assert len(ids) == 60
  assert ours.padding == theirs.pad_token_id


def test_hidden_states_and_files(folder, tmp_path):
  """Padding included; our files of the same weights give the same again."""
  batch = _batch(folder)
  assert len(set(batch.mask.sum(axis=1).tolist())) > 4
  config, params = hf_weights.load_bert(folder)
  ours = np.asarray(
    bert.Bert(config).apply({"params": params}, batch.ids, batch.mask)
  )
  theirs = _theirs(folder, batch)
  assert np.abs(ours - theirs)[batch.mask].max() <= TOLERANCE
  assert np.abs(theirs).max() > 0.5
  backend = tokenization.load_tokenizer(folder)
  model_files.write_sizes(tmp_path, config, backend)
  tensors = hf_weights.tensors_from_params(params, config)
  model_files.write_weights(tmp_path, tensors, 60)
  assert bert.BertConfig.read(tmp_path) == config
  np.testing.assert_array_equal(_theirs(tmp_path, batch), theirs)
  np.testing.assert_array_equal(_batch(tmp_path).ids, batch.ids)


def test_initial_parameters_have_the_checkpoints_shapes(folder):
  config, params = hf_weights.load_bert(folder)
  fresh = bert.init_params(config, jax.random.key(0))
  assert jax.tree.map(np.shape, fresh) == jax.tree.map(np.shape, params)
  assert hf_weights.shapes(config) == jax.tree.map(np.shape, params)
