"""Vectors: in the corpus's order, of one model, whole after a crash."""

import copy
import importlib.util

import jax
import numpy as np
import pytest

import dpr_jax
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import prepare, records
from dpr_jax.embedding import embed, vector_shards
from dpr_jax.inference import encoder as encoder_lib
from dpr_jax.models import dual_encoder, retriever_model

pytestmark = pytest.mark.compiles


@pytest.fixture(scope="module")
def model(tiny_config):
  """The tiny towers as pretrained, questions and passages told apart."""
  model = retriever_model.start(tiny_config)
  model.params["question"] = jax.tree.map(
    lambda x: x + 0.1, model.params["question"]
  )
  return model


def _one_by_one(model, passages):
  vectors = []
  for passage in passages:
    tokens = model.tokenizer.passages([passage])
    texts = dual_encoder.Texts(tokens.ids, tokens.mask)
    vectors.append(model.encoder.encode_passages(model.params, texts)[0])
  return np.stack(vectors)


def test_order_lengths_and_batches_do_not_matter(model):
  """Buckets, a padded last batch and 8 cores give what one text gives."""
  generator = np.random.default_rng(0)
  passages = [
    records.Passage("", "city", "the river " * int(n))
    for n in generator.integers(1, 30, 21)
  ]
  encoder = encoder_lib.Encoder(model, tokens_per_core=48, length_step=16)
  vectors = encoder.encode_passages(passages)
  assert vectors.dtype == np.float32
  np.testing.assert_allclose(vectors, _one_by_one(model, passages), atol=2e-5)
  pairs = [(passage.title, passage.text) for passage in passages]
  np.testing.assert_array_equal(encoder.encode_passages(pairs), vectors)
  assert encoder.encode_passages([]).shape == (0, 32)
  questions = encoder.encode_questions(["city river", "where"])
  assert questions.shape == (2, 32)
  assert np.abs(questions - encoder.encode_passages([("", "city river")])).max()


def test_fingerprint_is_of_weights_and_format(model):
  """Another weight or another text format is another model."""
  import dataclasses

  same = dataclasses.replace(model)
  assert same.fingerprint == model.fingerprint
  other = dataclasses.replace(
    model, tokenizer=dataclasses.replace(model.tokenizer, title="none")
  )
  assert other.fingerprint != model.fingerprint
  changed = jax.tree.map(np.array, model.params)
  changed["passage"]["layer_0"]["query"]["bias"][0] += 1e-6
  assert dataclasses.replace(model, params=changed).fingerprint != (
    model.fingerprint
  )


def _embed(config, place, **options):
  embed.embed(config, place, model="dense-start", **options)
  return vector_shards.open_vectors(place.embeddings("dense-start"))


def test_stage_writes_shards_of_the_whole_corpus(tiny_config, fresh_workdir):
  """Row i is passage i; the manifest says what the contract asks for."""
  opened = _embed(tiny_config, fresh_workdir)
  passages = prepare.open_passages(fresh_workdir)
  model = retriever_model.start(tiny_config)
  manifest = opened.manifest
  assert manifest["model"] == model.fingerprint
  assert (manifest["dim"], manifest["dtype"]) == (32, "float32")
  assert manifest["count"] == len(opened) == 120
  assert [shard["rows"] for shard in manifest["shards"]] == [50, 50, 20]
  assert [shard["first_row"] for shard in manifest["shards"]] == [0, 50, 100]
  folder = fresh_workdir.embeddings("dense-start")
  names = sorted(path.name for path in folder.iterdir())
  shards = [
    f"{kind}-{n:05d}.npy"
    for kind in ("digests", "ids", "vectors")
    for n in range(3)
  ]
  assert names == sorted([*shards, "manifest.json", "model"])
  ids = np.concatenate([np.load(folder / f"ids-{n:05d}.npy") for n in range(3)])
  assert [i.decode() for i in ids] == passages.ids(range(120))
  blocks = list(opened.blocks(40))
  assert [first for first, _ in blocks] == [0, 40, 50, 90, 100]
  rows = [0, 49, 50, 119]
  found = np.concatenate([block for _, block in blocks])[rows]
  np.testing.assert_array_equal(opened.take(rows), found)
  assert opened.ids(rows) == passages.ids(rows)
  np.testing.assert_allclose(
    found, _one_by_one(model, passages.take(rows)), atol=2e-5
  )


def test_interrupted_stage_does_only_what_is_missing(
  tiny_config, fresh_workdir, monkeypatch
):
  """The shards that are there stay, the result is the same bytes."""
  wanted = _embed(tiny_config, fresh_workdir).manifest["files"]
  encoded = []
  encode_rows = embed._encode_rows

  def dies(encoder, tokens, rows, *rest):
    if rows[0] == 50 and not encoded.count(50):
      encoded.append(50)
      raise RuntimeError("power cut")
    encoded.append(int(rows[0]))
    return encode_rows(encoder, tokens, rows, *rest)

  monkeypatch.setattr(embed, "_encode_rows", dies)
  with pytest.raises(RuntimeError, match="power cut"):
    _embed(tiny_config, fresh_workdir, overwrite=True)
  folder = fresh_workdir.embeddings("dense-start")
  with pytest.raises(errors.InputError, match="run `dpr-jax embed`"):
    vector_shards.open_vectors(folder)
  assert _embed(tiny_config, fresh_workdir).manifest["files"] == wanted
  assert encoded == [0, 50, 50, 100]
  before = (folder / "manifest.json").stat().st_mtime_ns
  _embed(tiny_config, fresh_workdir)
  assert (folder / "manifest.json").stat().st_mtime_ns == before


def test_the_backend_is_recorded(tiny_config, fresh_workdir, monkeypatch):
  """Vectors with 8 bits are close; another backend needs --overwrite."""
  for library in ("onnx", "onnxruntime"):
    pytest.importorskip(library, reason=f"no {library}")
  first = _embed(tiny_config, fresh_workdir)
  assert first.manifest["encoder"]["backend"] == "jax"
  assert "backend" not in first.manifest["config"]  # as in older versions
  wanted, files = first.take(range(120)), first.manifest["files"]
  config = copy.deepcopy(tiny_config)
  config.embed.backend = "onnx-int8"
  with pytest.raises(errors.InputError, match="--overwrite discards it"):
    _embed(config, fresh_workdir)
  second = _embed(config, fresh_workdir, overwrite=True)
  manifest = second.manifest
  assert manifest["config"]["backend"] == "onnx-int8"
  assert set(manifest["encoder"]) == {"backend", "onnx", "onnxruntime"}
  assert manifest["model"] == first.manifest["model"]  # questions compare
  assert manifest["files"] != files
  vectors = second.take(range(120))
  cosines = np.sum(wanted * vectors, axis=1) / (
    np.linalg.norm(wanted, axis=1) * np.linalg.norm(vectors, axis=1)
  )
  assert 0.98 < cosines.min() < 1 - 1e-6
  again = _embed(config, fresh_workdir, overwrite=True)
  assert again.manifest["files"] == manifest["files"]
  with pytest.raises(errors.InputError, match="--overwrite discards it"):
    _embed(tiny_config, fresh_workdir)
  find = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util,
    "find_spec",
    lambda name, *rest: None if name == "onnxruntime" else find(name, *rest),
  )
  with pytest.raises(errors.InputError, match="onnxruntime is not installed"):
    _embed(config, fresh_workdir)


def test_another_model_is_refused(tiny_config, fresh_workdir):
  """With the reason, whether done or half done; --overwrite starts anew."""
  _embed(tiny_config, fresh_workdir)
  config = copy.deepcopy(tiny_config)
  config.model.title = "none"
  named = "config.model.title was 'pair', is 'none'"
  with pytest.raises(errors.InputError, match=named) as refused:
    _embed(config, fresh_workdir)
  assert "overwrite" not in str(refused.value)
  for key, value in (("rows_per_shard", 60), ("dtype", "float16")):
    config = copy.deepcopy(tiny_config)
    config.embed[key] = value
    with pytest.raises(errors.InputError, match=f"{key} .*is {value}.*--over"):
      _embed(config, fresh_workdir)
  shards = _embed(config, fresh_workdir, overwrite=True).manifest["shards"]
  assert len(shards) == 3


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_storage_in_16_bits(tiny_config, fresh_workdir, dtype):
  """Half the bytes; what is read is float32 and rounded once."""
  wanted = _embed(tiny_config, fresh_workdir).take(range(120))
  config = copy.deepcopy(tiny_config)
  config.embed.dtype = dtype
  opened = _embed(config, fresh_workdir, overwrite=True)
  assert opened.manifest["dtype"] == dtype
  stored = np.load(opened.folder / "vectors-00000.npy")
  assert stored.dtype == (np.float16 if dtype == "float16" else np.uint16)
  found = opened.take(range(120))
  assert found.dtype == np.float32
  kind = vector_shards.storage(dtype)
  np.testing.assert_array_equal(found, wanted.astype(kind).astype(np.float32))
  _, block = next(opened.blocks(7))
  np.testing.assert_array_equal(block, found[:7])
  config.embed.dtype = "int8"
  with pytest.raises(errors.InputError, match="embed.dtype='int8': must be"):
    _embed(config, fresh_workdir)


def test_rows_that_are_not_there(tiny_config, fresh_workdir):
  """Neither negative nor too large ones are made up."""
  opened = _embed(tiny_config, fresh_workdir)
  for row in (-1, 120):
    with pytest.raises(IndexError, match=f"row {row} of .* rows 0 to 119"):
      opened.take([0, row])


def test_padding_and_widths_are_reported(tiny_config, fresh_workdir):
  """From the shards' own counts."""
  manifest = _embed(tiny_config, fresh_workdir).manifest
  assert len(manifest["widths"]) <= 2
  tokens = sum(part["tokens"] for part in manifest["parts"])
  padded = sum(part["padded_tokens"] for part in manifest["parts"])
  assert manifest["padding_share"] == round(1 - tokens / padded, 4)
  store = workdir_lib.read_manifest(fresh_workdir.tokens, "tokens")
  assert store["tokens"] == tokens
  assert store["passages_per_second"] > 0


def test_a_flipped_bit_is_found(tiny_config, fresh_workdir):
  """Before the vectors are used, and mended by --overwrite."""
  opened = _embed(tiny_config, fresh_workdir)
  path = opened.folder / "vectors-00001.npy"
  data = bytearray(path.read_bytes())
  data[-5] ^= 4
  path.write_bytes(data)
  with pytest.raises(errors.InputError, match="vectors-00001.npy is not the"):
    vector_shards.open_vectors(opened.folder)
  _embed(tiny_config, fresh_workdir)


def test_settings_and_models(tiny_config, fresh_workdir):
  """Unknown models, a missing checkpoint, sizes that cannot be."""
  with pytest.raises(errors.InputError, match="run `dpr-jax train`"):
    embed.embed(tiny_config, fresh_workdir)
  with pytest.raises(errors.InputError, match="'sparse': must be one of"):
    embed.embed(tiny_config, fresh_workdir, model="sparse")
  config = copy.deepcopy(tiny_config)
  config.embed.rows_per_shard = 0
  with pytest.raises(errors.InputError, match="rows_per_shard=0"):
    _embed(config, fresh_workdir)
  config = copy.deepcopy(tiny_config)
  config.model.passage_length = 65
  with pytest.raises(
    errors.InputError, match="passage_length=65.*64 positions"
  ):
    _embed(config, fresh_workdir)


def test_encoder_of_a_folder(tiny_checkpoint, tmp_path):
  """A Hugging Face folder as DPR; a Sentence-Transformers one as it says."""
  import json
  import shutil

  encoder = dpr_jax.Encoder.load(tiny_checkpoint, length_step=64)
  assert encoder.model.encoder.pooling == "cls"
  plain = encoder.encode_passages([("city", "the river"), ("", "the river")])
  np.testing.assert_allclose(
    encoder.encode_questions(["the river"])[0], plain[1], atol=2e-6
  )
  folder = tmp_path / "st"
  shutil.copytree(tiny_checkpoint, folder)
  modules = [
    {"path": "", "type": "sentence_transformers.models.Transformer"},
    {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
  ]
  (folder / "modules.json").write_text(json.dumps(modules))
  (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 20}')
  (folder / "1_Pooling").mkdir()
  pooling = folder / "1_Pooling" / "config.json"
  pooling.write_text(
    '{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": false}'
  )
  encoder = dpr_jax.Encoder.load(folder, length_step=20)
  assert encoder.model.encoder.pooling == "mean"
  assert encoder.model.tokenizer.passage_length == 20
  vectors = encoder.encode_passages([("city", "the river")])
  np.testing.assert_allclose(np.linalg.norm(vectors), 1, rtol=1e-5)
  np.testing.assert_allclose(
    encoder.encode_questions(["city the river"]), vectors, atol=1e-6
  )
  pooling.write_text('{"pooling_mode": "median"}')
  with pytest.raises(errors.InputError, match="median"):
    dpr_jax.Encoder.load(folder)
  (folder / "modules.json").write_text(json.dumps(modules[:1]))
  with pytest.raises(errors.InputError, match="modules in the order Transfor"):
    dpr_jax.Encoder.load(folder)


def test_encoder_in_three_lines(tiny_config, fresh_workdir, tmp_path):
  """`Encoder.load(workdir)`, also from another folder."""
  encoder = dpr_jax.Encoder.load(fresh_workdir.root, which="start")
  assert encoder.encode_questions(["where"]).shape == (1, 32)
  with pytest.raises(errors.InputError, match="which='middle': must be one of"):
    dpr_jax.Encoder.load(fresh_workdir.root, which="middle")
  with pytest.raises(errors.InputError, match="is it a workdir of dpr-jax"):
    dpr_jax.Encoder.load(tmp_path / "nothing")
  with pytest.raises(errors.InputError, match="run `dpr-jax train`"):
    dpr_jax.Encoder.load(workdir_lib.Workdir(fresh_workdir.root).root)
