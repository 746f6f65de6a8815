"""Encoders of every family: as in transformers, and the same however computed.

Torch is an extra (`parity`): without it these tests skip and say so.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpr_jax.core import errors
from dpr_jax.data import records, tokenization
from dpr_jax.models import (
  bert,
  dual_encoder,
  encoder_config,
  hf_weights,
  model_files,
  reader_export,
  reader_model,
  relative_positions,
  span_reader,
  stacked_layers,
)
from tests import families
from tests.models import bert_folders

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
  config, params = bert_folders.load_bert(folder)
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
  config, params = bert_folders.load_bert(folder)
  fresh = bert.init_params(config, jax.random.key(0))
  assert jax.tree.map(np.shape, fresh) == jax.tree.map(np.shape, params)
  assert hf_weights.shapes(config) == jax.tree.map(np.shape, params)


def _small(name):
  """Sizes of three narrow layers, as `families.FAMILIES` names them."""
  return dataclasses.replace(
    encoder_config.FAMILIES[name](),
    vocab_size=40,
    hidden_size=8,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=12,
    max_position_embeddings=16,
    hidden_dropout_prob=0.1,
    attention_probs_dropout_prob=0.1,
    **{"embedding_size": 4} if name == "electra" else {},
  )


# With stacked layers, and without.
WAYS = {
  True: {"chunk_size": 1, "gradient_cache": True},
  False: {"remat": "layer", "chunk_size": 2},
}


@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradients_are_those_of_the_plain_way(name):
  """With dropout; in chunks, recomputed, and with stacked layers."""
  config = _small(name)
  pooling = "mean" if name in ("electra", "roberta") else "cls"
  plain = dual_encoder.DualEncoder(config, pooling=pooling, shared=True)
  tower = bert.init_params(config, jax.random.key(0))
  params = plain.towers(
    jax.tree.map(lambda x: 8 * x if x.ndim == 2 else x, tower)
  )
  generator = np.random.default_rng(0)
  texts = dual_encoder.Texts(
    generator.integers(2, 40, (4, 12)),
    np.arange(12)[None] < np.array([[12], [3], [9], [2]]),
    jax.random.split(jax.random.key(1), 4),
  )
  weights = generator.normal(size=(4, 8)).astype(np.float32)

  def compute(encoder, params):
    def loss(params):
      return jnp.sum(weights * encoder.encode_passages(params, texts))

    return jax.jit(jax.value_and_grad(loss))(params)

  wanted, gradients = compute(plain, params)
  for path, x in jax.tree.leaves_with_path(gradients):
    # Softmax does not depend on what is added to all keys alike.
    keys = "['key']['bias']" in jax.tree_util.keystr(path)
    assert (np.abs(x).max() > 1e-4) != keys, path
  for stacked, settings in WAYS.items():
    encoder = dataclasses.replace(plain, **settings)
    tree = stacked_layers.stack(params, jnp.stack) if stacked else params
    loss, found = compute(encoder, tree)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, atol=2e-4),
      stacked_layers.unstack(found),
      gradients,
    )


@pytest.mark.parametrize("name", NAMES)
def test_position_0_alone_and_fused_parameters(name):
  """The last layer for position 0 alone; products joined before; bfloat16."""
  config = _small(name)
  params = bert.init_params(config, jax.random.key(0))
  params = jax.tree.map(lambda x: 8 * x if x.ndim == 2 else x, params)
  ids = np.random.default_rng(0).integers(2, 40, (3, 12))
  mask = np.arange(12)[None] < np.array([[12], [5], [9]])
  model = bert.Bert(config)
  whole = model.apply({"params": params}, ids, mask)
  for tree in (params, stacked_layers.stack(params, jnp.stack)):
    fused = bert.fuse(tree, True)
    first = model.apply({"params": fused}, ids, mask, first_only=True)
    np.testing.assert_allclose(first, whole[:, :1], atol=1e-5)
  low = bert.Bert(config, jnp.bfloat16).apply({"params": params}, ids, mask)
  assert low.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.float32(low)[mask], whole[mask], atol=0.2)


def test_the_fused_kernel_is_refused_where_it_does_not_compute_the_same():
  with pytest.raises(errors.InputError, match="attention of MPNet: use 'pl"):
    dual_encoder.DualEncoder(_small("mpnet"), attention="fused")
  assert dual_encoder.DualEncoder(_small("roberta"), attention="fused")


@pytest.mark.parametrize(
  ("raw", "message"),
  [
    ({"model_type": "roberta", "pad_token_id": "x"}, "pad_token_id is 'x'"),
    (
      {"model_type": "mpnet", "max_position_embeddings": 2},
      "max_position_embeddings is 2: the first 2",
    ),
    (
      {"model_type": "mpnet", "relative_attention_num_buckets": 6},
      "buckets 6 is not a multiple of 4",
    ),
    ({"model_type": "distilbert", "n_heads": 5}, "768 is not a multiple of"),
    ({"model_type": ["bert"]}, "model_type \\['bert'\\] is not supported"),
    ({"model_type": "electra", "embedding_size": 0}, "embedding_size is '0'"),
  ],
)
def test_unsupported_sizes_are_refused(tmp_path, raw, message):
  (tmp_path / "config.json").write_text(json.dumps(raw))
  with pytest.raises(errors.InputError, match=message):
    bert.BertConfig.read(tmp_path)


def test_buckets_of_relative_positions():
  """As MPNet of transformers, for texts of the greatest length."""
  torch = pytest.importorskip("torch", reason="no torch: extra `parity`")
  mpnet = pytest.importorskip("transformers.models.mpnet.modeling_mpnet")
  places = torch.arange(512)
  wanted = mpnet.MPNetEncoder.relative_position_bucket(
    places[None] - places[:, None]
  )
  found = relative_positions.buckets(32, 512)
  np.testing.assert_array_equal(found, wanted.numpy())
  assert found[0, :3].tolist() == [0, 17, 18]
  assert found[2, :3].tolist() == [2, 1, 0]


def test_a_reader_is_exported_and_read_as_in_transformers(tmp_path):
  """A RoBERTa for questions: ids of a pair, scores, and the same weights."""
  torch = pytest.importorskip("torch", reason="no torch: extra `parity`")
  transformers = pytest.importorskip("transformers")
  families.write("roberta", tmp_path)
  sizes = transformers.RobertaConfig.from_pretrained(tmp_path)
  theirs = transformers.RobertaForQuestionAnswering(sizes).eval()
  theirs.save_pretrained(tmp_path)
  reader = reader_model.from_folder(tmp_path)
  reader_export.export(reader, tmp_path / "out", "question-answering")
  again = transformers.AutoModelForQuestionAnswering.from_pretrained(
    tmp_path / "out"
  ).eval()
  tokenizer = reader.tokenizer
  texts = ["Where was he born?", "He was born in Brunswick in 1777."]
  question, passage = tokenizer.tokenize(texts)
  head, end = tokenizer.head(question.ids, question.ids[:0])
  (window,) = tokenizer.windows(len(head), len(passage.ids))
  row = tokenizer.compose(head, end, passage.ids, window)
  pair = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")(
    *texts, return_tensors="pt"
  )
  assert pair["input_ids"][0].tolist() == row.ids.tolist()
  batch = tokenizer.pad([row], len(row.ids) + 3)
  scores = reader.structure.scores(
    reader.params, span_reader.Rows(**dataclasses.asdict(batch))
  )
  place = slice(row.passage, row.passage + window.count)
  for model in (theirs, again):
    with torch.no_grad():
      wanted = model(**pair).start_logits[0, place].numpy()
    found = np.asarray(scores.start)[0, place]
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE)
  with pytest.raises(errors.InputError, match="DPRReader holds a BERT"):
    reader_export.export(reader, tmp_path / "dpr", "dpr-reader")
