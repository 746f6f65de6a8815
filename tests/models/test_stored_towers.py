"""A workdir is whole: what is trained opens without what it started from."""

import contextlib
import copy
import json
import logging
import os
import pathlib
import shutil
import tempfile

import numpy as np
import pytest

import dpr_jax
from dpr_jax.cli import workdir_check
from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.embedding import embed
from dpr_jax.index import faiss_stage
from dpr_jax.models import model_settings, stored_towers
from dpr_jax.retrieval import retrieve as retrieve_lib
from dpr_jax.training import train_retriever

pytestmark = pytest.mark.compiles

QUESTIONS = ["where is the river", "who was the king"]
PASSAGES = [("city", "the river in the east"), ("", "a king")]


@pytest.fixture(scope="module")
def world(tiny_config, tiny_checkpoint, mined_workdir, tmp_path_factory):
  """A finished workdir, what it gave, and its checkpoint, which is gone.

  The towers are trained with overrides: unit vectors of mean pooling.
  """
  folder = tmp_path_factory.mktemp("whole")
  checkpoint = folder / "bert"
  shutil.copytree(tiny_checkpoint, checkpoint)
  config = copy.deepcopy(tiny_config)
  config.model.checkpoint = str(checkpoint)
  config.model.pooling, config.model.normalize = "mean", True
  config.model.question_prefix = "query: "
  config.train.max_steps, config.train.warmup_steps = 2, 1
  config.train.dev_questions = 0
  place = workdir_lib.Workdir(folder / "w")
  shutil.copytree(mined_workdir.root, place.root)
  workdir_lib.write_json(place.root / "config.json", config_lib.plain(config))
  train_retriever.train(config, place)
  for model in ("dense", "dense-start"):
    embed.embed(config, place, model=model)
    faiss_stage.index(config, place, model=model)
  found = _results(place)
  checkpoint.rename(folder / "gone")
  return config, place, found


def _results(place):
  found = {}
  for which in ("best", "start"):
    encoder = dpr_jax.Encoder.load(place.root, which, length_step=48)
    found[which] = encoder.fingerprint
    found[f"{which} questions"] = encoder.encode_questions(QUESTIONS).tolist()
    found[f"{which} passages"] = encoder.encode_passages(PASSAGES).tolist()
  for method in ("dense", "dense-start", "exact"):
    retriever = dpr_jax.Retriever.load(place.root, method)
    found[method] = retriever.search(QUESTIONS, 3)
  return found


@pytest.fixture
def copied(world, tmp_path):
  """A copy elsewhere, for one test."""
  shutil.copytree(world[1].root, tmp_path / "moved")
  return workdir_lib.Workdir(tmp_path / "moved")


def test_a_moved_workdir_gives_the_same_without_its_checkpoint(world, copied):
  config, _, found = world
  assert not pathlib.Path(config.model.checkpoint).exists()
  assert found["best"] != found["start"]
  np.testing.assert_allclose(
    np.linalg.norm(found["best questions"], axis=1), 1, rtol=1e-5
  )
  assert _results(copied) == found


def test_the_weights_are_read_once(world, monkeypatch):
  """From the training's checkpoint, and from no other."""
  from dpr_jax.models import checkpoints, tensor_files

  read = []
  load = checkpoints.load_params
  monkeypatch.setattr(
    checkpoints, "load_params", lambda *a: read.append("orbax") or load(*a)
  )
  monkeypatch.setattr(
    tensor_files, "read_tensors", lambda *_: read.append("safetensors")
  )
  stored_towers.trained(None, world[1])
  assert read == ["orbax"]


@contextlib.contextmanager
def _nobody():
  """As a user who may only read."""
  os.seteuid(65534)
  try:
    yield
  finally:
    os.seteuid(0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_a_workdir_that_may_only_be_read_opens(world):
  # Not in pytest's folder, which every session closes to others.
  with tempfile.TemporaryDirectory() as folder:
    os.chmod(folder, 0o755)
    copied = workdir_lib.Workdir(pathlib.Path(folder) / "w")
    shutil.copytree(world[1].root, copied.root)
    for path in (copied.root, *copied.root.rglob("*")):
      path.chmod(0o555 if path.is_dir() else 0o444)
    with _nobody():
      with pytest.raises(PermissionError):
        (copied.root / "x").touch()
      assert _results(copied) == world[2]


def test_stages_need_no_checkpoint_either(world, copied):
  """Done again in the copy, `embed` gives the same bytes."""
  config, _, _ = world
  retrieve_lib.retrieve(config, copied, methods=["dense", "dense-start"])
  for model in ("dense", "dense-start"):
    path = copied.embeddings(model) / "vectors-00001.npy"
    before = path.read_bytes()
    path.unlink()
    embed.embed(config, copied, model=model)
    assert path.read_bytes() == before
  with pytest.raises(errors.InputError, match="there is no such folder"):
    embed.embed(config, copied, model="dense-start", overwrite=True)


def test_a_contrary_setting_is_refused_by_its_name(world, copied):
  """All of them in one line, with both values; how to compute is free."""
  config = copy.deepcopy(world[0])
  config.model.pooling, config.model.normalize = "cls", False
  config.model.compute_dtype = "bfloat16"
  line = (
    "config.model.pooling='cls', config.model.normalize=False: the towers in"
    f" {copied.training} were trained with 'mean', True; leave --config out"
  )
  manifest = copied.embeddings() / "manifest.json"
  before = manifest.read_bytes()
  for call in (
    lambda: embed.embed(config, copied),
    lambda: embed.embed(config, copied, overwrite=True),
    lambda: retrieve_lib.retrieve(config, copied, methods=["dense"]),
    lambda: stored_towers.trained(config, copied),
  ):
    with pytest.raises(errors.InputError) as refused:
      call()
    assert line in str(refused.value)
    assert "--overwrite" not in str(refused.value)
  assert manifest.read_bytes() == before
  config.model.pooling, config.model.normalize = "mean", True
  config.model.temperature, config.model.dropout = 0.5, 0.0
  config.model.checkpoint = "elsewhere"
  model = stored_towers.trained(config, copied)
  assert model.fingerprint == world[2]["best"]
  assert model.encoder.dtype == "bfloat16"


@pytest.mark.parametrize(
  ("name", "damage"),
  [
    ("config.json", lambda data: data.replace(b'"gelu"', b'"relu"')),
    ("tokenizer.json", lambda data: data[:-10]),
    ("tokenizer.json", None),
    ("dpr_jax.json", lambda data: data.replace(b'"mean"', b'"cls" ')),
    ("dpr_jax.json", lambda data: data[:50]),
  ],
)
@pytest.mark.parametrize("which", ["best", "start"])
def test_damage_is_named(copied, which, name, damage):
  """By its sha256, before it is used."""
  folder = copied.training / "model"
  if which == "start":
    folder = model_settings.start_folder(copied)
  path = folder / name
  data = path.read_bytes()
  if damage is None:
    path.unlink()
  else:
    assert damage(data) != data
    path.write_bytes(damage(data))
  with pytest.raises(errors.InputError) as refused:
    dpr_jax.Encoder.load(copied.root, which)
  assert str(path) in str(refused.value)
  (wrong,) = [f for f in workdir_check.check(copied) if f.state != "ok"]
  assert wrong.name == folder.relative_to(copied.root).as_posix()
  assert str(path) in wrong.text
  assert f"remove the folder {folder}" in str(refused.value)


def test_damaged_weights_of_dense_start_are_named(copied):
  path = model_settings.start_folder(copied) / "model.safetensors"
  data = bytearray(path.read_bytes())
  data[-100] ^= 1
  path.write_bytes(data)
  with pytest.raises(errors.InputError, match=r"model\.safetensors is damaged"):
    dpr_jax.Encoder.load(copied.root, "start")


@pytest.fixture
def old(world, copied, tmp_path):
  """As an older version has left it, with the checkpoint there again."""
  shutil.copytree(world[1].root.parent / "gone", tmp_path / "bert")
  shutil.rmtree(copied.training / "model")
  shutil.rmtree(model_settings.start_folder(copied))
  checkpoint = str(tmp_path / "bert")
  for path in (copied.training / "manifest.json", copied.root / "config.json"):
    values = json.loads(path.read_text())
    values.get("config", values)["model"]["checkpoint"] = checkpoint
    for key in ("checksum", "dpr_jax"):  # older ones have none
      values.pop(key, None)
    path.write_text(json.dumps(values))
  return copied


def test_a_workdir_of_an_older_version_opens(world, old, caplog):
  """From the checkpoint that its training names, even if config.json errs."""
  path = old.root / "config.json"
  values = json.loads(path.read_text())
  values["model"]["pooling"] = "cls"  # as any call once left its overrides
  path.write_text(json.dumps(values))
  with caplog.at_level(logging.INFO, logger="absl"):
    encoder = dpr_jax.Encoder.load(old.root, length_step=48)
  assert encoder.fingerprint == world[2]["best"]
  assert "was trained by an older version: taking sizes and" in caplog.text
  start = dpr_jax.Encoder.load(old.root, "start")
  assert start.fingerprint == world[2]["start"]
  shutil.rmtree(pathlib.Path(values["model"]["checkpoint"]))
  with pytest.raises(errors.InputError, match="there is no such folder"):
    dpr_jax.Encoder.load(old.root)


def test_embed_keeps_what_an_older_version_has_not(world, old):
  """Nothing is embedded again for it."""
  config = model_settings.of_workdir(old)
  before = (old.embeddings("dense-start") / "manifest.json").read_bytes()
  embed.embed(config, old, model="dense-start")
  after = (old.embeddings("dense-start") / "manifest.json").read_bytes()
  assert after == before
  shutil.rmtree(config.model.checkpoint)
  start = dpr_jax.Encoder.load(old.root, "start")
  assert start.fingerprint == world[2]["start"]


def test_a_forgotten_override_is_not_exported(world, copied, tmp_path):
  """Refused, or right: never [CLS] for a model of means."""
  from dpr_jax.models import export

  out = tmp_path / "out"
  config = copy.deepcopy(world[0])
  config.model.pooling, config.model.normalize = "cls", False
  with pytest.raises(errors.InputError, match="were trained with 'mean', True"):
    export.export(config, copied, "sentence-transformers", out)
  assert not out.exists()
  own = model_settings.of_workdir(copied)
  export.export(own, copied, "sentence-transformers", out)
  routes = json.loads((out / "router_config.json").read_text())["structure"]
  assert routes["document"] == [
    *("document_0_Transformer", "document_1_Pooling", "document_2_Normalize")
  ]
  path = out / "document_1_Pooling" / "config.json"
  pooling = json.loads(path.read_text())
  assert pooling["pooling_mode_mean_tokens"] is True
  assert pooling["pooling_mode_cls_token"] is False
  encoder = dpr_jax.Encoder.load(out, length_step=48)
  assert encoder.model.tokenizer.question_prefix == "query: "
  assert (
    encoder.encode_passages(PASSAGES).tolist() == (world[2]["best passages"])
  )
  # An export of ours is replaced, with a user's file in it it is not.
  export.export(own, copied, "hf", out)
  assert not (out / "router_config.json").exists()
  (out / "notes.md").write_text("mine")
  with pytest.raises(errors.InputError, match=r"notes\.md; move them away"):
    export.export(own, copied, "hf", out)
  assert (out / "notes.md").read_text() == "mine"


def test_only_the_index_that_is_there_is_meant(world, copied):
  """Whatever config.json says; of several, the one that it names."""
  path = copied.root / "config.json"
  values = json.loads(path.read_text())
  values["index"]["factory"] = "HNSW8"
  path.write_text(json.dumps(values))
  found = dpr_jax.Retriever.load(copied.root).search(QUESTIONS, 3)
  assert found == world[2]["dense"]
  other = copy.deepcopy(world[0])
  other.index.factory = "SQ8"
  faiss_stage.index(other, copied)
  with pytest.raises(errors.InputError, match=r"holds Flat, SQ8 but not .*HNS"):
    dpr_jax.Retriever.load(copied.root)
  dpr_jax.Retriever.load(copied.root, factory="SQ8")


def test_other_vectors_are_refused_with_the_settings(world, copied):
  """What differs, old and new; nothing is replaced."""
  path = copied.index("Flat") / "manifest.json"
  manifest = workdir_lib.read_record(path)
  manifest["model"] = "0" * 64
  manifest["model_settings"]["title"] = "joined"
  workdir_lib.write_record(path, manifest)
  named = "config.model.title was 'joined', is 'pair'"
  with pytest.raises(errors.InputError, match=named):
    dpr_jax.Retriever.load(copied.root)
