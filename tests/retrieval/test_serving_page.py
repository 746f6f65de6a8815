"""The examples of docs/serving.md run, and find what a product finds."""

import re

import numpy as np
import pytest

from dpr_jax.data import prepare
from dpr_jax.embedding import embed, vector_export, vector_shards
from dpr_jax.inference import encoder as encoder_lib

parquet = pytest.importorskip("pyarrow.parquet", reason="the extra parquet")
ENGINES = {
  "Qdrant": ("qdrant_client", lambda hits: [h.payload["id"] for h in hits]),
  "Milvus": ("pymilvus", lambda hits: [hit["id"] for hit in hits[0]]),
  "LanceDB": ("lancedb", lambda hits: [hit["id"] for hit in hits]),
}


@pytest.fixture(scope="module")
def exported(tiny_config, mined_workdir, tmp_path_factory):
  """Vectors in Parquet, and the start of the page with `batches`."""
  import shutil

  folder = tmp_path_factory.mktemp("serving")
  place = type(mined_workdir)(folder / "w")
  shutil.copytree(mined_workdir.root, place.root)
  embed.embed(tiny_config, place, model="dense-start")
  vectors = vector_shards.open_vectors(place.embeddings("dense-start"))
  passages = prepare.open_passages(place)
  vector_export.export(vectors, "parquet", folder / "out", passages)
  return place, folder / "out", vectors


def _blocks(page: str, title: str) -> str:
  """The Python of a section that begins with a title in bold."""
  part = page.split(f"\n**{title}**")[1].split("\n**")[0].split("\n## ")[0]
  return "\n".join(re.findall(r"```python\n(.*?)```", part, re.DOTALL))


# What the libraries warn about is not ours.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.compiles
@pytest.mark.processes
@pytest.mark.parametrize("title", ENGINES)
def test_an_engine_that_is_filled_by_hand(
  exported, repository, tmp_path, monkeypatch, title
):
  library, ids_of = ENGINES[title]
  pytest.importorskip(library, reason="the extra engines")
  place, out, vectors = exported
  page = (repository / "docs" / "serving.md").read_text()
  start = page.split("\n## Or by hand")[1].split("```python\n")[1]
  start = start.split("```")[0].replace("DIR/*", f"{out}/*")
  folder = place.embeddings("dense-start") / "model"
  start = start.replace('load("W")', f'load("{folder}")')
  assert f'load("{folder}")' in start
  monkeypatch.chdir(tmp_path)
  names = {}
  exec(compile(start, "docs/serving.md", "exec"), names)
  exec(compile(_blocks(page, title), "docs/serving.md", "exec"), names)
  encoder = encoder_lib.Encoder.load(place.root, which="start")
  question = encoder.encode_questions("Where was Einstein born?")[0]
  np.testing.assert_array_equal(names["vectors"][0], question)
  scores = vectors.take(range(len(vectors))) @ question
  best = np.argsort(-scores, kind="stable")[:5]
  found = ids_of(names["hits"])
  every = vectors.ids(range(len(vectors)))
  # Passages whose scores are equal but for rounding may change places.
  there = [scores[every.index(each)] for each in found]
  np.testing.assert_allclose(there, scores[best], rtol=1e-5)
