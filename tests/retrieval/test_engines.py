"""Search engines in place of an index of FAISS, in their local modes.

The results are those of FAISS.  Tests of an engine are skipped where it is not
installed; a stand-in shows what is the same for all.
"""

import json

import numpy as np
import pytest

from dpr_jax.core import engine_addresses, errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.evaluation import staleness
from dpr_jax.retrieval import api, engine_clients, engines
from tests.retrieval_world import encode

LIBRARIES = {
  "milvus": "pymilvus",
  "qdrant": "qdrant_client",
  "lancedb": "lancedb",
}


class _Memory:
  """A collection in memory; `store` outlives the connection."""

  store: dict = {}

  def __init__(self, address):
    self._name = str(address)

  def record(self):
    return self.store.get(self._name, {}).get("record")

  def count(self):
    return len(self.store[self._name]["vectors"])

  def create(self, dim, record):
    self.store[self._name] = {"record": record, "vectors": {}, "passages": {}}

  def drop(self):
    del self.store[self._name]

  def add(self, first, passages, vectors):
    there = self.store[self._name]
    for row, vector in enumerate(vectors, first):
      there["vectors"][row] = vector
      there["passages"][row] = passages[row - first]

  def search(self, questions, k):
    there = self.store[self._name]["vectors"]
    found = []
    for question in questions:
      scored = [(float(v @ question), row) for row, v in there.items()]
      best = sorted(scored, reverse=True)[:k]  # ties: the last row first
      found.append(([row for _, row in best], [score for score, _ in best]))
    return found


@pytest.fixture
def memory(monkeypatch):
  """Every engine is `_Memory`."""
  monkeypatch.setattr(_Memory, "store", {})
  monkeypatch.setattr(engine_clients, "connect", _Memory)
  monkeypatch.setattr(engine_clients, "check_there", lambda address: None)
  return _Memory.store


@pytest.mark.parametrize(
  ("text", "model", "expected"),
  [
    (
      "milvus:http://host:19530",
      "dense",
      ("milvus", "http://host:19530", "passages"),
    ),
    (
      "qdrant:https://host:6333#wiki_2018",
      "dense-start",
      ("qdrant", "https://host:6333", "wiki_2018_start"),
    ),
    ("lancedb:/data/lance", "dense", ("lancedb", "/data/lance", "passages")),
  ],
)
def test_addresses(text, model, expected):
  found = engine_addresses.parse(text, model)
  assert (found.kind, found.location, found.collection) == expected
  assert str(found) == "{}:{}#{}".format(*expected)


def test_a_path_is_absolute(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert engine_addresses.parse("milvus:w.db").location == str(
    tmp_path / "w.db"
  )


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("elastic:http://host", "must be one of milvus:URI, qdrant:URI, lancedb"),
    ("milvus", "must be one of"),
    ("milvus:#x", "must be one of"),
    ("milvus:w.db#a-b", "the collection 'a-b' must be letters, digits and _"),
  ],
)
def test_addresses_that_are_refused(text, message):
  with pytest.raises(errors.InputError, match=message):
    engine_addresses.parse(text)


def test_upload_and_its_record(ready, memory):
  ready.config.index.backend = "milvus:/w.db"
  engines.upload(ready.config, ready.workdir)
  there = memory["milvus:/w.db#passages"]
  assert there["record"] == {
    "format": 1,
    "embeddings": workdir_lib.manifest_fingerprint(
      ready.workdir.embeddings(), "embed"
    ),
    "passages": workdir_lib.dataset_inputs(ready.workdir, "passages")[
      "passages"
    ],
    "model": "model-1",
    "model_settings": None,
    "dim": 16,
    "count": 9,
  }
  assert list(there["vectors"]) == list(range(9))
  assert there["passages"][4].id == "p4"
  array = ready.vectors[ready.workdir.embeddings()].array
  np.testing.assert_array_equal(there["vectors"][8], array[8])


def test_results_are_those_of_faiss(ready, memory):
  """Ties too: FAISS's order is that of the rows, the stand-in's is not."""
  methods = ("dense", "dense-start", "hybrid")
  ready.retrieve(methods=methods)
  expected = [
    json.loads(ready.workdir.results("dev", m).read_text()) for m in methods
  ]
  ready.config.index.backend = "qdrant:http://host"
  for model in ("dense", "dense-start"):
    engines.upload(ready.config, ready.workdir, model=model)
  ready.retrieve(methods=methods)
  for method, wanted in zip(methods, expected, strict=True):
    path = ready.workdir.results("dev", method)
    found = json.loads(path.read_text())
    assert _ids(found) == _ids(wanted)
    np.testing.assert_allclose(_scores(found), _scores(wanted), rtol=1e-5)
    record = workdir_lib.read_record(path.with_suffix(".manifest.json"))
    name = "passages" + method.removeprefix("dense").removeprefix("hybrid")
    address = f"qdrant:http://host#{name.replace('-', '_')}"
    assert record["config"]["backend"] == address
    assert "factory" not in record["config"]
    staleness.check_results(ready.workdir, "dev", method, record)
  ready.embed(fingerprint="model-1", array=np.ones((9, 16)))
  record = workdir_lib.read_record(
    ready.workdir.results("dev", "dense").with_suffix(".manifest.json")
  )
  with pytest.raises(errors.InputError, match="changed: embeddings"):
    staleness.check_results(ready.workdir, "dev", "dense", record)


def _ids(results):
  return [[hit["id"] for hit in each["ctxs"]] for each in results]


def _scores(results):
  return [float(hit["score"]) for each in results for hit in each["ctxs"]]


def test_current_is_skipped_and_incomplete_is_filled(ready, memory):
  ready.config.index.backend = "milvus:/w.db"
  engines.upload(ready.config, ready.workdir)
  there = memory["milvus:/w.db#passages"]
  engines.upload(ready.config, ready.workdir)
  assert memory["milvus:/w.db#passages"] is there
  del there["vectors"][3]
  with pytest.raises(errors.InputError, match="has 8 passages instead of 9"):
    ready.retrieve(methods=["dense"])
  engines.upload(ready.config, ready.workdir)
  assert len(memory["milvus:/w.db#passages"]["vectors"]) == 9
  there = memory["milvus:/w.db#passages"]
  engines.upload(ready.config, ready.workdir, overwrite=True)
  assert memory["milvus:/w.db#passages"] is not there


def test_what_is_not_ours_or_of_other_vectors(ready, memory):
  ready.config.index.backend = "milvus:/w.db"
  with pytest.raises(errors.InputError, match="has no collection .*dpr-jax"):
    ready.retrieve(methods=["dense"])
  memory["milvus:/w.db#passages"] = {"record": {}, "vectors": {}}
  for overwrite in (False, True):
    with pytest.raises(errors.InputError, match="not made by dpr-jax: name"):
      engines.upload(ready.config, ready.workdir, overwrite=overwrite)
  with pytest.raises(errors.InputError, match="has no collection of dpr-jax"):
    ready.retrieve(methods=["dense"])
  memory.clear()
  engines.upload(ready.config, ready.workdir)
  ready.embed(array=np.ones((9, 16)))
  with pytest.raises(errors.InputError, match="was made from other vectors"):
    ready.retrieve(methods=["dense"])
  with pytest.raises(errors.InputError, match="other vectors: embeddings .*-"):
    engines.upload(ready.config, ready.workdir)
  engines.upload(ready.config, ready.workdir, overwrite=True)
  ready.retrieve(methods=["dense"])


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("passages", "0" * 64, "not made from the 9 passages"),
    ("model", "model-7", "holds vectors of model model-7, but the questions"),
    ("dim", 4, r"shape \[2, 16\] for passage vectors of width 4"),
    ("count", 8, "has 9 passages instead of 8"),
    ("format", 2, "has no collection of dpr-jax"),
  ],
)
def test_records_that_do_not_fit(ready, memory, key, value, message):
  ready.config.index.backend = "milvus:/w.db"
  engines.upload(ready.config, ready.workdir)
  memory["milvus:/w.db#passages"]["record"][key] = value
  with pytest.raises(errors.InputError, match=message):
    ready.retrieve(methods=["dense"])


def test_a_row_that_the_corpus_does_not_have(ready, memory):
  ready.config.index.backend = "milvus:/w.db"
  engines.upload(ready.config, ready.workdir)
  vectors = memory["milvus:/w.db#passages"]["vectors"]
  vectors[9] = vectors.pop(0)
  with pytest.raises(errors.InputError, match="returned row 9 of 9"):
    ready.retrieve(methods=["dense"])


@pytest.mark.parametrize("kind", LIBRARIES)
def test_a_missing_library_is_named(kind, monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, LIBRARIES[kind], None)
  with pytest.raises(errors.InputError, match=r"needs .*: pip install '"):
    engine_clients.connect(engine_addresses.parse(f"{kind}:/nowhere"))


@pytest.mark.parametrize("kind", LIBRARIES)
def test_asking_makes_no_files(kind, tmp_path):
  address = engine_addresses.parse(f"{kind}:{tmp_path / 'typo'}")
  with pytest.raises(errors.InputError, match="there is no .*typo: run `dpr-"):
    engines.read_record(address)
  assert not list(tmp_path.iterdir())


def test_errors_of_a_library_become_one_line():
  address = engine_addresses.parse("milvus:http://host")
  message = "--backend=milvus:http://host#passages: no route"
  with pytest.raises(errors.InputError, match=message):
    with engine_clients.translated(address):
      raise RuntimeError("no\nroute")


def test_texts_for_milvus_are_cut_between_characters():
  assert engine_clients._cut("é" * 40_000) == "é" * 32_767


@pytest.fixture(params=LIBRARIES)
def local(request, tmp_path):
  """An engine that needs no server."""
  pytest.importorskip(LIBRARIES[request.param], reason="the extra engines")
  if request.param == "milvus":
    pytest.importorskip("milvus_lite", reason="the extra engines")
  return f"{request.param}:{tmp_path / 'engine.db'}"


# What the libraries warn about is not ours.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.compiles
@pytest.mark.processes
def test_an_engine_finds_what_faiss_and_exact_find(ready, local):
  """Also after the engine is opened again."""
  ready.retrieve(methods=["dense", "exact"])
  expected = {
    method: json.loads(ready.workdir.results("dev", method).read_text())
    for method in ("dense", "exact")
  }
  ready.config.index.backend = local
  engines.upload(ready.config, ready.workdir)
  engines.upload(ready.config, ready.workdir)  # current
  engine_clients.open_client.cache_clear()  # as in a new process
  ready.retrieve(methods=["dense"])
  found = json.loads(ready.workdir.results("dev", "dense").read_text())
  for wanted in expected.values():
    assert _ids(found) == _ids(wanted)
    np.testing.assert_allclose(_scores(found), _scores(wanted), rtol=1e-5)
  record = engines.read_record(engine_addresses.parse(local))
  assert (record["count"], record["dim"], record["model"]) == (9, 16, "model-1")
  engines.upload(ready.config, ready.workdir, model="dense-start")
  ready.retrieve(methods=["dense-start", "dense"])  # two collections
  ready.config.fusion.method = "minmax"
  ready.retrieve(methods=["hybrid"], tune=True)  # opens it while it is open
  engines.upload(ready.config, ready.workdir, overwrite=True)
  with pytest.raises(errors.InputError, match="has no collection of dpr-jax"):
    engines.read_record(engine_addresses.parse(f"{local}#other"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.processes
@pytest.mark.parametrize("kind", ["milvus", "qdrant"])
def test_an_engine_that_is_not_there(kind):
  pytest.importorskip(LIBRARIES[kind], reason="the extra engines")
  address = engine_addresses.parse(f"{kind}:http://127.0.0.1:1")
  with pytest.raises(errors.InputError, match="^--backend=.*127.0.0.1:1#pass"):
    engines.read_record(address)


def test_every_kind_of_the_settings_is_tested():
  assert set(LIBRARIES) == set(engine_addresses.KINDS)


def test_from_python(ready, memory):
  """`Retriever.load` takes the backend of the config."""
  ready.config.index.backend = "milvus:/w.db"
  engines.upload(ready.config, ready.workdir)
  loaded = api.Retriever.load(ready.workdir.root, config=ready.config)
  (hits,) = loaded.search("What is the capital of France?", k=3)
  vectors = ready.vectors[ready.workdir.embeddings()].array
  (question,) = encode(["What is the capital of France?"])
  best = np.argsort(-(vectors @ question), kind="stable")[:3]
  assert [hit.id for hit in hits] == [f"p{row}" for row in best]
  assert hits[0].text == ready.passages[int(best[0])].text
