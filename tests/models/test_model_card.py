"""Model cards: what they say is true, and their examples run."""

import copy
import re

import huggingface_hub
import numpy as np
import pytest

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.models import export, model_card

BASE_CARD = """---
language: en
license: apache-2.0
datasets: [secret_of_the_base]
---
# Base
"""
EVALUATED = (
  model_card.Evaluated(
    name="dev",
    source="dev.json",
    questions=24,
    values={"top20": 0.75, "gold_top1": 1 / 3, "nDCG@10": 0.5},
  ),
)


def test_the_base_of_a_pair_is_both(tiny_config, tiny_checkpoint):
  """`model.checkpoint` is not read then, so it is not the base."""
  model = copy.deepcopy(tiny_config.model)
  model.checkpoint = "starter"
  model.question_checkpoint = model.passage_checkpoint = str(tiny_checkpoint)
  base = model_card._base_of(model)
  assert (base.name, dict(base.card)) == ("", {})
  assert base.shown == " and ".join(
    2 * [model_card._base(str(tiny_checkpoint)).shown]
  )


@pytest.fixture
def exported(tiny_config, fresh_workdir, tmp_path, monkeypatch):
  """Exports the towers before training to `tmp_path/tower`."""

  def exported(form, shared=False, card=None, evaluated=(), **settings):
    import shutil

    config = copy.deepcopy(tiny_config)
    base = tmp_path / "base"
    if not base.exists():
      shutil.copytree(config.model.checkpoint, base)
    if card:
      (base / "README.md").write_text(card)
    config.model.checkpoint = str(base)
    config.model.shared_towers = shared
    config.model.update(settings)
    monkeypatch.chdir(tmp_path)
    export.export(
      config,
      fresh_workdir,
      form,
      tmp_path / "tower",
      "dense-start",
      evaluated=evaluated,
    )
    return tmp_path / "tower" / "README.md"

  return exported


def test_metadata_is_that_of_the_base_and_of_evaluate(exported, tmp_path):
  path = exported("sentence-transformers", False, BASE_CARD, EVALUATED)
  card = huggingface_hub.ModelCard.load(path)
  data = card.data.to_dict()
  assert data["language"] == "en"
  assert data["license"] == "apache-2.0"
  assert data["library_name"] == "sentence-transformers"
  assert data["pipeline_tag"] == "sentence-similarity"
  assert "dense-passage-retrieval" in data["tags"]
  assert "datasets" not in data  # the base's are not this model's
  assert "base_model" not in data  # a folder has no name on the hub
  (entry,) = data["model-index"]
  assert entry["name"] == "tower"
  (result,) = entry["results"]
  assert result["dataset"] == {"name": "dev", "type": "dev.json"}
  assert [
    (metric["type"], metric["value"]) for metric in result["metrics"]
  ] == [("top20", 0.75), ("gold_top1", 0.333333), ("nDCG@10", 0.5)]
  text = card.text
  assert "a gold passage in the first 1) | 0.3333 |" in text
  assert str(tmp_path) not in path.read_text()
  assert "`base`" in text
  assert "not trained" in text
  # What `prepare` has read; no training without steps.
  assert "| corpus | `sample of dpr-jax` | 120 passages |" in text
  assert "training questions" not in text


def test_nothing_is_invented(exported):
  data = huggingface_hub.ModelCard.load(exported("hf")).data.to_dict()
  assert set(data) == {"library_name", "pipeline_tag", "tags"}
  assert data["library_name"] == "transformers"


def test_a_damaged_card_of_the_base_is_not_used(exported):
  path = exported("hf", card="---\nlicense: [\n---\n")
  assert "license" not in huggingface_hub.ModelCard.load(path).data.to_dict()


def test_names_of_the_hub(exported):
  """A card for a repository loads from there."""
  from dpr_jax.models import card_examples, opened_towers

  exported("hf")
  model = opened_towers.load("tower")
  towers = {"question": "question", "passage": "passage"}
  code = "\n".join(card_examples.examples(model, "hf", towers, "me/model"))
  assert 'Encoder.load("hf:me/model")' in code
  assert 'snapshot_download("me/model")' in code
  assert 'AutoModel.from_pretrained("me/model", subfolder=folder)' in code


@pytest.mark.compiles
@pytest.mark.parametrize(
  ("form", "settings", "blocks"),
  [
    ("sentence-transformers", {"question_prefix": "a city "}, 3),
    ("hf", {"shared": True, "pooling": "mean", "normalize": True}, 3),
    ("dpr", {"title": "joined"}, 2),
    ("tevatron", {"passage_prefix": "the "}, 2),
    ("onnx", {"pooling": "max"}, 1),
  ],
)
def test_its_examples_run(exported, form, settings, blocks):
  """All libraries print the same."""
  if form == "onnx":
    pytest.importorskip("onnx", reason="no onnx")
    pytest.importorskip("onnxruntime", reason="no onnxruntime")
  else:
    pytest.importorskip("torch", reason="no torch")
    pytest.importorskip(
      "sentence_transformers", reason="no sentence-transformers"
    )
  text = exported(form, **settings).read_text()
  codes = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
  if form == "onnx":  # the backend of Sentence-Transformers needs optimum
    assert 'backend="onnx"' in codes.pop(0)
  assert len(codes) == blocks
  vectors = []
  for code in codes:
    compile(code, "card", "exec")
    names = {}
    exec(code, names)
    vectors.append(
      [np.asarray(names[kind]) for kind in ("questions", "passages")]
    )
  for kinds in vectors:
    for first, other in zip(vectors[0], kinds, strict=True):
      assert first.shape == other.shape == (1, 32)
      np.testing.assert_allclose(other, first, atol=1e-5)
  if form == "tevatron":
    assert "--passage_field_separator sep_token" in text


def test_metadata_that_would_change_is_refused(tmp_path):
  text = "---\nlicense: mit\n---\n# A\n"

  class Fixed(huggingface_hub.ModelCard):
    """A card whose text does not follow its metadata."""

    def __str__(self):
      return text

  card = Fixed(text)
  model_card.write(card, tmp_path)
  assert (tmp_path / "README.md").read_text() == text
  card.data.license = "other"
  with pytest.raises(errors.InputError, match="metadata changes"):
    model_card.write(card, tmp_path)


def test_measures_come_from_the_workdir(fresh_workdir, monkeypatch):
  """Of this method only; stale ones are left out, and named."""
  from dpr_jax.evaluation import model_measures, staleness

  folder = fresh_workdir.evaluation("dev").parent
  folder.mkdir()
  workdir_lib.write_json(
    fresh_workdir.evaluation("dev"),
    {"dense": {"top1": 0.5, "judged": 3}, "bm25": {"top1": 0.25}},
  )
  workdir_lib.write_record(
    folder / "dev.manifest.json", {"counts": {"dense_questions": 24}}
  )
  (measured,) = model_measures.of_workdir(fresh_workdir, "dense")
  assert measured.values == {"top1": 0.5}
  assert (measured.name, measured.questions) == ("dev", 24)
  assert model_measures.of_workdir(fresh_workdir, "dense-start") == []

  def stale(*_):
    raise errors.InputError("the towers have changed")

  monkeypatch.setattr(staleness, "check_results", stale)
  assert model_measures.of_workdir(fresh_workdir, "dense") == []
