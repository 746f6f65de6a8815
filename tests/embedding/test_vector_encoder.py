"""The question encoder beside imported vectors."""

import json
import shutil

import numpy as np
import pytest

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.embedding import (
  embed,
  vector_encoder,
  vector_export,
  vector_import,
  vector_shards,
)
from dpr_jax.evaluation import evaluate
from dpr_jax.index import faiss_stage
from dpr_jax.models import model_settings
from dpr_jax.retrieval import retrieve

IMPORTED = np.array([[3.0, 4.0], [0.0, 2.0]], np.float32)


@pytest.mark.parametrize(
  ("made", "said"),
  [
    (IMPORTED, None),
    (1.09 * IMPORTED, None),
    (
      np.array([[3.0, 4.0], [2.0, 0.0]], np.float32),
      "passage 'b' has a cosine of 0.000 .* length 2 instead of 2: name",
    ),
    (
      1.2 * IMPORTED,
      "passage '.' has a cosine of 1.000 .* length .* --noverify",
    ),
  ],
)
def test_vectors_are_compared(made, said):
  """By the length of their difference, relative to that of the vector."""
  made = made.astype(np.float32)
  if said is None:
    vector_encoder._compare("x", ["a", "b"], made, IMPORTED)
    return
  with pytest.raises(errors.InputError, match=said):
    vector_encoder._compare("x", ["a", "b"], made, IMPORTED)


@pytest.mark.compiles
def test_a_workdir_of_imported_vectors_is_searched(
  tiny_config, tiny_checkpoint, fresh_workdir, tmp_path
):
  """The results are the same bytes as of vectors embedded here.

  Also without the checkpoint, which is stored in the workdir.
  """
  config = tiny_config.copy_and_resolve_references()
  checkpoint = tmp_path / "checkpoint"
  shutil.copytree(tiny_checkpoint, checkpoint)
  config.model.checkpoint = str(checkpoint)
  other = workdir_lib.Workdir(tmp_path / "other")
  shutil.copytree(fresh_workdir.root, other.root)
  embed.embed(config, fresh_workdir, model="dense-start")
  opened = vector_shards.open_vectors(fresh_workdir.embeddings("dense-start"))
  vector_export.export(opened, "dpr", tmp_path / "out")
  for method in ("dense-start", "exact"):
    with pytest.raises(errors.InputError, match="manifest.json is missing"):
      retrieve.retrieve(config, other, methods=[method])
  vector_import.into_workdir(config, other, tmp_path / "out")
  with pytest.raises(errors.InputError, match="without the model that encodes"):
    retrieve.retrieve(config, other, methods=["exact"])
  vector_import.into_workdir(config, other, tmp_path / "out", named=True)
  before = workdir_lib.manifest_fingerprint(other.embeddings(), "embed")
  config.model.checkpoint = "starter"
  shutil.rmtree(checkpoint)
  faiss_stage.index(config, fresh_workdir, model="dense-start")
  retrieve.retrieve(config, fresh_workdir, methods=["dense-start"])
  faiss_stage.index(config, other)
  retrieve.retrieve(config, other, methods=["dense", "exact"])
  expected = fresh_workdir.results("dev", "dense-start").read_bytes()
  assert other.results("dev", "dense").read_bytes() == expected
  exact = json.loads(other.results("dev", "exact").read_text())
  for hits, wanted in zip(exact, json.loads(expected), strict=True):
    scores = [float(hit["score"]) for hit in hits["ctxs"]]
    theirs = [float(hit["score"]) for hit in wanted["ctxs"]]
    np.testing.assert_allclose(scores, theirs, rtol=1e-5)
  config.retrieve.methods = ("dense", "exact")
  evaluate.evaluate(config, other)
  # Another encoder leaves the index, and makes results out of date.
  record = other.embeddings() / model_settings.FOLDER / "dpr_jax.json"
  workdir_lib.write_record(record, workdir_lib.read_record(record) | {"x": 1})
  assert before == workdir_lib.manifest_fingerprint(other.embeddings(), "embed")
  with pytest.raises(errors.InputError, match="changed: encoder .*again"):
    evaluate.evaluate(config, other)


@pytest.mark.compiles
def test_another_checkpoint_is_refused(tiny_config, fresh_workdir, tmp_path):
  embed.embed(tiny_config, fresh_workdir, model="dense-start")
  folder = fresh_workdir.embeddings("dense-start")
  opened = vector_shards.open_vectors(folder)
  vector_export.export(opened, "npy", tmp_path / "out")
  file = tmp_path / "out" / "vectors-00000.npy"
  np.save(file, -np.load(file))
  (tmp_path / "out" / "dpr_jax.json").unlink()  # which has its sha256
  with pytest.raises(errors.InputError, match="not make the imported .*-1.000"):
    vector_import.into_workdir(
      tiny_config, fresh_workdir, tmp_path / "out", named=True
    )
  assert not vector_encoder.is_stored(fresh_workdir.embeddings())
  vector_import.into_workdir(
    tiny_config, fresh_workdir, tmp_path / "out", named=True, verify=False
  )
  encoder = vector_encoder.load(fresh_workdir.embeddings(), 32)
  assert encoder.dim == 32
  with pytest.raises(errors.InputError, match="width 32, those of .* have 31"):
    vector_encoder.load(fresh_workdir.embeddings(), 31)
