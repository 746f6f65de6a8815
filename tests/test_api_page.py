"""docs/api.md says what is there, and its examples run."""

import concurrent.futures
import dataclasses
import pickle
import re
import shutil

import numpy as np
import pytest

import dpr_jax

NAMES = ("Answerer", "Encoder", "Hit", "InputError", "Reply", "Retriever")
# For stages, and for whoever reads the code: they may change.
INTERNAL = {
  "Encoder": {
    *("backend", "collect", "compiles", "independent", "programs", "stream"),
    *("tiles", "widths", "with_params"),
  },
  "InputError": {"add_note", "args", "with_traceback"},
  "Hit": {"count", "index"},  # of every tuple
}


@pytest.fixture(scope="module")
def page(repository):
  return (repository / "docs" / "api.md").read_text()


def _section(page, title):
  return page.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_every_public_name_is_described(page):
  assert set(dpr_jax.__all__) == {*NAMES, "__version__", "configuration"}
  for name in NAMES:
    assert re.search(rf"^## {name}$|`{name}", page, re.MULTILINE)
    assert getattr(dpr_jax, name).__name__ == name
  with pytest.raises(AttributeError, match="no attribute 'Reader'"):
    _ = dpr_jax.Reader


@pytest.mark.parametrize("name", ["Answerer", "Encoder", "Retriever"])
def test_every_method_is_described(page, name):
  """A new one belongs on the page, or among the internal ones."""
  public = {each for each in dir(getattr(dpr_jax, name)) if each[0] != "_"}
  text = _section(page, name)
  if name == "Encoder":
    text += _section(page, "Calls")
  described = set(re.findall(r"`(?:[A-Z]\w+)?\.(\w+)", text)) & (
    public | {"fingerprint"}
  )
  assert described | INTERNAL.get(name, set()) == public
  assert not described & INTERNAL.get(name, set())


def test_every_field_is_described(page):
  rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| `", page, re.MULTILINE)
  described = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
  fields = [each.name for each in dataclasses.fields(dpr_jax.Reply)]
  assert described == [*dpr_jax.Hit._fields, *fields]


@pytest.fixture(scope="module")
def here(flow, tmp_path_factory):
  """A folder with the workdir `W`."""
  folder = tmp_path_factory.mktemp("api")
  shutil.copytree(flow.after("evaluate") / "w", folder / "W")
  return folder


def test_the_examples_run(page, here, monkeypatch, capsys):
  monkeypatch.chdir(here)
  blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
  assert len(blocks) == 6
  names = {}
  for block in blocks:
    exec(compile(block, "docs/api.md", "exec"), names)
  assert set(NAMES) <= names.keys()
  assert capsys.readouterr().out.startswith("where is Ulm\n  ")


def test_nothing_asked(here):
  encoder = dpr_jax.Encoder.load(here / "W")
  for vectors in (encoder.encode_questions([]), encoder.encode_passages([])):
    assert vectors.shape == (0, encoder.dim)
    assert vectors.dtype == np.float32
  assert dpr_jax.Retriever.load(here / "W", "bm25").search([]) == []


def test_a_trained_encoder_is_copied(here):
  """By `pickle`, as to another process."""
  encoder = dpr_jax.Encoder.load(here / "W")
  copied = pickle.loads(pickle.dumps(encoder))
  assert copied.fingerprint == encoder.fingerprint
  questions = ["where is the sea", "who was the king"]
  np.testing.assert_array_equal(
    copied.encode_query(questions), encoder.encode_questions(questions)
  )
  passages = [("city", "the river"), ("", "the sea")]
  np.testing.assert_array_equal(
    copied.encode_document(passages), encoder.encode_passages(passages)
  )


@pytest.mark.parametrize("method", ["bm25", "dense", "exact"])
def test_several_threads_search(here, method):
  """At once, the first compilation included, they find what one finds."""
  questions = [f"where is the {word}" for word in "sea city tree king".split()]
  wanted = [
    hits
    for retriever in [dpr_jax.Retriever.load(here / "W", method)]
    for question in questions
    for hits in retriever.search(question, k=3)
  ]
  retriever = dpr_jax.Retriever.load(here / "W", method)
  with concurrent.futures.ThreadPoolExecutor(8) as threads:
    found = list(
      threads.map(lambda q: retriever.search(q, k=3)[0], questions * 8)
    )
  assert found == wanted * 8


def test_several_threads_ask(here):
  answerer = dpr_jax.Answerer.load(here / "W", "bm25", k=3)
  questions = ["where is the sea", "who was the king"]

  def ask(question):
    return dataclasses.replace(answerer.ask(question), seconds={})

  wanted = [ask(question) for question in questions]
  with concurrent.futures.ThreadPoolExecutor(4) as threads:
    assert list(threads.map(ask, questions * 4)) == wanted * 4


def test_a_vector_depends_on_its_text(here):
  encoder = dpr_jax.Encoder.load(here / "W")
  texts = ["where is the sea", "who", "a much longer question about the king"]
  together = encoder.encode_questions(texts)
  alone = np.concatenate([encoder.encode_questions([each]) for each in texts])
  np.testing.assert_allclose(together, alone, atol=2e-6 * np.abs(alone).max())
