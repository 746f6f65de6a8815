"""Our BERT against transformers on torch: the same hidden states.

Torch is an extra (`parity`): without it these tests skip and say so.
"""

import csv
import gzip
import itertools
from importlib import resources as importlib_resources

import numpy as np
import pytest

from dpr_jax.core import config as config_lib
from dpr_jax.data import dpr_files, records, tokenization
from dpr_jax.inference import encoder as encoder_lib
from dpr_jax.models import bert, retriever_model
from tests.models import bert_folders

pytestmark = pytest.mark.compiles

torch = pytest.importorskip("torch", reason="no torch: extra `parity`")
transformers = pytest.importorskip("transformers")

TOLERANCE = 2e-5


def _sample() -> list[records.Passage]:
  path = importlib_resources.files("dpr_jax.data.sample") / "passages.tsv"
  with path.open(encoding="utf-8", newline="") as file:
    rows = csv.DictReader(file, delimiter="\t")
    return [
      records.Passage(row["id"], row["title"], row["text"])
      for row in itertools.islice(rows, 12)
    ]


def _batch(folder, passages) -> tokenization.TokenBatch:
  tokenizer = tokenization.TextTokenizer(
    tokenization.load_tokenizer(folder), passage_length=256
  )
  short = [
    records.Passage("", "", passage.text[: 20 * (number + 1)])
    for number, passage in enumerate(passages)
  ]
  return tokenizer.passages([*passages, *short])


def _compare(ours, theirs, mask):
  difference = np.abs(np.asarray(ours) - theirs)[mask]
  assert difference.max() <= TOLERANCE
  assert np.abs(theirs).max() > 0.5


def _theirs(model, batch):
  model.eval()
  with torch.no_grad():
    return model(
      input_ids=torch.tensor(batch.ids, dtype=torch.long),
      attention_mask=torch.tensor(batch.mask, dtype=torch.long),
    ).last_hidden_state.numpy()


@pytest.mark.parametrize("source", ["sample", "wikipedia"])
def test_starter(starter_folder, source, request):
  """The starter checkpoint, passages of mixed lengths, padding included."""
  if source == "sample":
    passages = _sample()
  else:
    path = request.getfixturevalue("data_folder") / "nq" / "psgs_w100.tsv.gz"
    assert gzip.open(path).read(2)
    every = itertools.islice(dpr_files.read_passages(path), 0, 6000, 500)
    passages = list(every)
  batch = _batch(starter_folder, passages)
  assert len(set(batch.mask.sum(axis=1).tolist())) > 6
  config, params = bert_folders.load_bert(starter_folder)
  ours = bert.Bert(config).apply({"params": params}, batch.ids, batch.mask)
  model = transformers.BertModel.from_pretrained(
    str(starter_folder), add_pooling_layer=False, dtype=torch.float32
  )
  _compare(ours, _theirs(model, batch), batch.mask)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_random_bert_of_other_sizes(tmp_path, starter_folder, activation):
  """A BERT that transformers makes and saves is loaded and agrees."""
  torch.manual_seed(0)
  model = transformers.BertModel(
    transformers.BertConfig(
      hidden_size=80,
      num_hidden_layers=3,
      num_attention_heads=5,
      intermediate_size=144,
      hidden_act=activation,
      initializer_range=0.1,
    )
  )
  model.save_pretrained(tmp_path, safe_serialization=True)
  batch = _batch(starter_folder, _sample())
  config, params = bert_folders.load_bert(tmp_path)
  assert config.hidden_act == activation
  ours = bert.Bert(config).apply({"params": params}, batch.ids, batch.mask)
  _compare(ours, _theirs(model, batch), batch.mask)


def test_random_bert_with_token_types(tmp_path, starter_folder):
  """Segments, as a reader uses them."""
  torch.manual_seed(1)
  model = transformers.BertModel(
    transformers.BertConfig(
      hidden_size=48,
      num_hidden_layers=2,
      num_attention_heads=4,
      intermediate_size=96,
      initializer_range=0.2,
    )
  )
  model.save_pretrained(tmp_path, safe_serialization=True)
  batch = _batch(starter_folder, _sample())
  types = (np.cumsum(batch.ids == 102, axis=1) > 0).astype(np.int32)
  config, params = bert_folders.load_bert(tmp_path)
  ours = bert.Bert(config).apply(
    {"params": params}, batch.ids, batch.mask, types
  )
  model.eval()
  with torch.no_grad():
    theirs = model(
      input_ids=torch.tensor(batch.ids, dtype=torch.long),
      attention_mask=torch.tensor(batch.mask, dtype=torch.long),
      token_type_ids=torch.tensor(types, dtype=torch.long),
    ).last_hidden_state.numpy()
  _compare(ours, theirs, batch.mask)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_padding_that_is_not_token_0(tmp_path, pooling):
  """Ids with padding and vectors, of a tokenizer whose [PAD] is number 3."""
  words = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", *"abcdefgh", "##a"]
  (tmp_path / "vocab.txt").write_text("\n".join(words))
  torch.manual_seed(3)
  model = transformers.BertModel(
    transformers.BertConfig(
      vocab_size=len(words),
      pad_token_id=3,
      hidden_size=32,
      num_hidden_layers=2,
      num_attention_heads=4,
      intermediate_size=48,
      initializer_range=0.2,
    ),
    add_pooling_layer=False,
  )
  model.save_pretrained(tmp_path, safe_serialization=True)
  theirs = transformers.BertTokenizerFast(str(tmp_path / "vocab.txt"))
  theirs.save_pretrained(tmp_path)
  texts = ["a b c d e f g h", "aa b", "c", ""]
  tokens = theirs(texts, padding="max_length", max_length=12)
  batch = tokenization.TextTokenizer(
    tokenization.load_tokenizer(tmp_path), passage_length=12
  ).passages([records.Passage("", "", text) for text in texts])
  assert tokens["input_ids"][2] == [1, words.index("c"), 2, *[3] * 9]
  assert batch.ids.tolist() == tokens["input_ids"]
  assert batch.mask.tolist() == tokens["attention_mask"]
  hidden = _theirs(model, batch)
  mask = batch.mask[..., None]
  wanted = hidden[:, 0]
  if pooling == "mean":
    wanted = (hidden * mask).sum(axis=1) / mask.sum(axis=1)
  config = config_lib.base_config()
  config.model.checkpoint = str(tmp_path)
  config.model.pooling = pooling
  config.model.question_length = 12
  towers = retriever_model.start(config)
  found = encoder_lib.Encoder(towers, length_step=12).encode_questions(texts)
  np.testing.assert_allclose(found, wanted, atol=TOLERANCE)
