"""Towers of any checkpoint: what they compute is what its library computes."""

import numpy as np
import pytest

import dpr_jax
from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.models import pooling_layers, retriever_model, tower_sources
from tests.models import layout_writers as writers

pytestmark = pytest.mark.compiles

QUESTIONS = ["a b c", "e", "d d a b c e " * 20]
PASSAGES = ["b c", "a", "c e d b " * 30]
PROMPTS = {"query": "query: ", "document": "passage: "}
THEIRS = {"mean_sqrt_len": "mean_sqrt_len_tokens"}


def _modules(pooling, include_prompt=True, seed=0):
  """Transformer, Pooling, two Dense and Normalize of their library."""
  torch = writers.torch_library()
  modules = pytest.importorskip(
    "sentence_transformers.sentence_transformer.modules",
    reason="no sentence-transformers 5: extra `parity`",
  )
  torch.manual_seed(seed)
  return [
    modules.Pooling(
      8,
      pooling_mode=THEIRS.get(pooling, pooling),
      include_prompt=include_prompt,
    ),
    modules.Dense(8, 6),
    modules.Dense(6, 5, bias=False, activation_function=torch.nn.Identity()),
    modules.Normalize(),
  ], modules


def _save(folder, pooling, include_prompt):
  (folder / "bert").mkdir(parents=True)
  writers.write_bert(folder / "bert", initializer_range=0.5)
  rest, modules = _modules(pooling, include_prompt)
  transformer = modules.Transformer(str(folder / "bert"), max_seq_length=24)
  return writers.save_modules(
    folder / "st", [transformer, *rest], prompts=PROMPTS, device="cpu"
  )


@pytest.mark.parametrize(
  ("pooling", "include_prompt"),
  [(name, True) for name in pooling_layers.POOLINGS]
  + [("cls", False), ("mean", False), ("lasttoken", False)],
)
def test_sentence_transformers(tmp_path, pooling, include_prompt):
  """Prompts, dense layers, long texts; the same through both doors."""
  theirs = _save(tmp_path, pooling, include_prompt)
  wanted = [
    theirs.encode(QUESTIONS, prompt_name="query"),
    theirs.encode(PASSAGES, prompt_name="document"),
  ]
  folder = tmp_path / "st"
  loaded = dpr_jax.Encoder.load(folder, length_step=24)
  assert loaded.dim == 5
  assert loaded.settings == {
    "pooling": pooling,
    "normalize": True,
    "shared_towers": True,
    "title": "joined",
    "question_prefix": "query: ",
    "passage_prefix": "passage: ",
    "question_length": 24,
    "passage_length": 24,
  }
  config = config_lib.base_config()
  config.model.checkpoint = str(folder)
  config.model.shared_towers = True
  towers = retriever_model.start(config)
  assert towers.fingerprint == loaded.fingerprint
  for found, theirs in zip(
    (loaded.encode_questions(QUESTIONS), loaded.encode_passages(PASSAGES)),
    wanted,
    strict=True,
  ):
    np.testing.assert_allclose(found, theirs, atol=2e-6)


def test_settings_can_be_overridden(tmp_path):
  """Of a plain BERT, whose settings are DPR's; of a pair of folders."""
  first = writers.write_bert(tmp_path / "a", initializer_range=0.5)
  writers.write_bert(tmp_path / "b", seed=1, initializer_range=0.5)
  assert first
  plain = dpr_jax.Encoder.load(tmp_path / "a", length_step=40)
  assert plain.settings["pooling"] == "cls"
  assert plain.settings["question_length"] == 32
  assert plain.settings["passage_length"] == 40  # of 40 positions
  changed = dpr_jax.Encoder.load(
    tmp_path / "a",
    pooling="mean",
    normalize=True,
    title="joined",
    question_prefix="query: ",
    passage_length=20,
    length_step=40,
  )
  assert changed.settings["passage_length"] == 20
  vectors = changed.encode_questions(["a b"])
  np.testing.assert_allclose(np.linalg.norm(vectors), 1, rtol=1e-6)
  again = dpr_jax.Encoder.load(
    tmp_path / "a", pooling="mean", normalize=True, length_step=40
  )
  np.testing.assert_array_equal(again.encode_questions(["query: a b"]), vectors)
  pair = dpr_jax.Encoder.load(
    question=tmp_path / "b", passage=tmp_path / "a", length_step=40
  )
  np.testing.assert_allclose(
    pair.encode_passages(["a b"]), plain.encode_passages(["a b"]), atol=1e-6
  )
  other = dpr_jax.Encoder.load(tmp_path / "b", length_step=40)
  np.testing.assert_allclose(
    pair.encode_questions(["a b"]), other.encode_questions(["a b"]), atol=1e-6
  )


def test_pairs_that_do_not_fit_are_refused(tmp_path):
  """Both are named, and what differs."""
  writers.write_bert(tmp_path / "a")
  writers.write_bert(tmp_path / "wide", hidden_size=16)
  writers.write_bert(tmp_path / "words")
  words = (tmp_path / "words" / "vocab.txt").read_text()
  (tmp_path / "words" / "vocab.txt").write_text(words.replace("b", "z"))
  pair = (tmp_path / "a", tmp_path / "wide")
  with pytest.raises(errors.InputError, match="hidden_size is 8 and 16") as e:
    dpr_jax.Encoder.load(pair)
  assert all(str(folder) in str(e.value) for folder in pair)
  with pytest.raises(errors.InputError, match="different tokenizers"):
    dpr_jax.Encoder.load((tmp_path / "a", tmp_path / "words"))
  with pytest.raises(errors.InputError, match="passage=None"):
    dpr_jax.Encoder.load(question=tmp_path / "a")
  with pytest.raises(errors.InputError, match="give either a folder"):
    dpr_jax.Encoder.load(tmp_path / "a", question=tmp_path / "a")
  model = config_lib.base_config().model
  model.question_checkpoint = str(tmp_path / "a")
  with pytest.raises(errors.InputError, match="set config.model.passage_check"):
    tower_sources.of_model(model, 0)
  model.passage_checkpoint = str(tmp_path / "a")
  model.shared_towers = True
  with pytest.raises(errors.InputError, match="are two encoders"):
    tower_sources.of_model(model, 0)


def test_two_encoders_cannot_be_shared(tmp_path):
  """A folder of DPR's pair, with `shared_towers`."""
  writers.write_dpr_pair(tmp_path)
  model = config_lib.base_config().model
  model.checkpoint = str(tmp_path)
  source = tower_sources.of_model(model, 0)
  first, second = source.trees()
  table = "word_embeddings"
  assert (first[table]["embedding"] != second[table]["embedding"]).any()
  model.shared_towers = True
  with pytest.raises(errors.InputError, match="has two different encoders"):
    source.resolved(model)


def test_a_reader_starts_from_the_encoder_of_passages(tmp_path):
  """Without the dense layers of its vectors."""
  _, passage = writers.write_dpr_pair(tmp_path)
  model = config_lib.base_config().model
  sizes, tower, backend = tower_sources.passage_tower(str(tmp_path), model, 0)
  assert sizes.hidden_size == 8
  assert backend.token_to_id("[SEP]") == 3
  name = "ctx_encoder.bert_model.embeddings.word_embeddings.weight"
  np.testing.assert_array_equal(
    tower["word_embeddings"]["embedding"], passage[name]
  )
  theirs = _save(tmp_path / "x", "mean", True)
  assert theirs
  _, tower, _ = tower_sources.passage_tower(str(tmp_path / "x/st"), model, 0)
  assert not [key for key in tower if key.startswith("dense")]
