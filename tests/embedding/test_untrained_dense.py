"""The method "dense" of a pretrained model: `data.train=none`."""

import json
import shutil

import numpy as np
import pytest

from dpr_jax.core import errors
from dpr_jax.embedding import embed
from dpr_jax.evaluation import evaluate
from dpr_jax.index import faiss_stage
from dpr_jax.inference import encoder as encoder_lib
from dpr_jax.models import model_settings
from dpr_jax.retrieval import api, retrieve
from dpr_jax.training import train_retriever

pytestmark = pytest.mark.compiles


@pytest.fixture
def config(tiny_config, tiny_checkpoint, tmp_path):
  """A config whose checkpoint can be removed."""
  config = tiny_config.copy_and_resolve_references()
  shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
  config.model.checkpoint = str(tmp_path / "checkpoint")
  config.data.train = "none"
  config.retrieve.methods = ("dense", "exact", "hybrid", "dense-start")
  return config


def test_all_methods(config, fresh_workdir, tmp_path):
  """The files are the same bytes as those of dense-start."""
  where = fresh_workdir
  for model in ("dense", "dense-start"):
    embed.embed(config, where, model=model)
    faiss_stage.index(config, where, model=model)
  shutil.rmtree(tmp_path / "checkpoint")
  retrieve.retrieve(config, where)
  expected = where.results("dev", "dense-start").read_bytes()
  assert where.results("dev", "dense").read_bytes() == expected
  exact = json.loads(where.results("dev", "exact").read_text())
  for hits, wanted in zip(exact, json.loads(expected), strict=True):
    np.testing.assert_allclose(
      [float(hit["score"]) for hit in hits["ctxs"]],
      [float(hit["score"]) for hit in wanted["ctxs"]],
      rtol=1e-5,
    )
  evaluate.evaluate(config, where)
  measured = json.loads(where.evaluation("dev").read_text())
  assert {*config.retrieve.methods} <= {*measured}
  assert measured["dense"] == measured["dense-start"]
  # By the workdir alone.
  best, start = (
    encoder_lib.Encoder.load(where.root, which) for which in ("best", "start")
  )
  assert best.fingerprint == start.fingerprint
  assert best.model.step == 0
  for method in ("dense", "hybrid"):
    (hits,) = api.Retriever.load(where.root, method).search(["a king"], k=3)
    assert len(hits) == 3
  # The same call again, with the stored model alone.
  embed.embed(config, where)


def test_settings_are_those_of_the_vectors(config, fresh_workdir):
  embed.embed(config, fresh_workdir)
  config.model.pooling = "mean"
  with pytest.raises(
    errors.InputError,
    match="config.model.pooling='mean': the vectors in .*passages were made",
  ):
    retrieve.retrieve(config, fresh_workdir, methods=["exact"])
  with pytest.raises(errors.InputError, match="embed with those settings"):
    embed.embed(config, fresh_workdir)
  embed.embed(config, fresh_workdir, overwrite=True)
  stored = model_settings.of_start_in(fresh_workdir.embeddings())
  assert stored["pooling"] == "mean"


def test_a_training_replaces_the_model(config, fresh_workdir):
  """What was trained since is "dense"; the old vectors are refused."""
  where = fresh_workdir
  embed.embed(config, where)
  folder = model_settings.start_folder(where, "dense")
  assert model_settings.is_untrained(where)
  config.data.train = "sample"
  config.train.max_steps, config.train.warmup_steps = 1, 0
  config.train.dev_questions = 0
  train_retriever.train(config, where)
  assert not model_settings.is_untrained(where)
  with pytest.raises(errors.InputError, match="--overwrite"):
    embed.embed(config, where)
  assert folder.is_dir()
  embed.embed(config, where, overwrite=True)
  assert not folder.exists()
  assert encoder_lib.Encoder.load(where.root).model.step == 1
