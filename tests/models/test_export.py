"""Towers as other libraries' folders: what is loaded again is the same."""

import copy
import dataclasses

import jax
import numpy as np
import pytest

import dpr_jax
from dpr_jax.core import errors
from dpr_jax.data import records
from dpr_jax.models import (
  dual_encoder,
  export,
  model_files,
  retriever_model,
  stored_towers,
)

LONG = " ".join(["the river of a city"] * 20)
PASSAGES = [
  ("city", "the river"),
  ("", "a city"),
  ("river", LONG),
  ("", LONG),
  (LONG, "a city"),
]
QUESTIONS = ["the river", "a city of", LONG]
BOTH = pytest.mark.parametrize("shared", [True, False])


@pytest.fixture
def two_towers(tiny_config, fresh_workdir, monkeypatch):
  """Exports towers before training whose weights differ, as after it."""

  def two_towers(form, out, shared, int8=False, **settings):
    config = copy.deepcopy(tiny_config)
    config.model.shared_towers = shared
    config.model.update(settings)
    model = retriever_model.start(config)
    if not shared:
      params = dict(model.params)
      params["question"] = jax.tree.map(lambda x: 0.9 * x, params["question"])
      model = dataclasses.replace(model, params=params)
    monkeypatch.setattr(
      stored_towers, "before_training", lambda *_, **__: model
    )
    more = {"int8": True} if int8 else {}
    folders = export.export(
      config, fresh_workdir, form, out, "dense-start", **more
    )
    return model, folders

  return two_towers


def vectors(model):
  """Vectors of all texts: (questions, passages)."""
  passages = [records.Passage(str(i), *row) for i, row in enumerate(PASSAGES)]
  batches = (
    model.tokenizer.questions(QUESTIONS),
    model.tokenizer.passages(passages),
  )
  encoder = model.encoder
  return tuple(
    np.asarray(encode(model.params, dual_encoder.Texts(batch.ids, batch.mask)))
    for encode, batch in zip(
      (encoder.encode_questions, encoder.encode_passages), batches, strict=True
    )
  )


def close(found, wanted, tolerance=1e-6):
  for ours, theirs in zip(wanted, found, strict=True):
    np.testing.assert_allclose(theirs, ours, atol=tolerance, rtol=0)


def joined(model, title, text):
  """As the model card says."""
  between = {"pair": " [SEP] ", "joined": " "}[model.tokenizer.title]
  return title + between + text if title else text


@BOTH
@pytest.mark.parametrize(
  ("form", "settings"),
  [
    ("hf", {"pooling": "mean", "normalize": True, "title": "joined"}),
    ("dpr", {}),
    ("sentence-transformers", {"passage_prefix": "the ", "normalize": True}),
    ("tevatron", {"question_prefix": "a city "}),
  ],
)
def test_an_export_is_loaded_again(
  two_towers, tmp_path, form, shared, settings
):
  """Bit by bit: weights, structure, tokenizer and all settings of both towers.

  Those of one tower alone are an encoder of both kinds of text.
  """
  out = tmp_path / "out"
  model, folders = two_towers(form, out, shared, **settings)
  loaded = dpr_jax.Encoder.load(out)
  if form == "dpr" and shared:  # its classes are two
    assert loaded.settings == model.settings | {"shared_towers": False}
    ours = model.params["shared"]
    for params in loaded.model.params.values():
      jax.tree.map(np.testing.assert_array_equal, params, ours)
  else:
    assert loaded.settings == model.settings
    assert loaded.fingerprint == model.fingerprint
  record = model_files.read(out, "towers", "")
  assert record["model"] == model.settings
  assert record["format_name"] == form
  if form != "sentence-transformers":
    (alone,) = dpr_jax.Encoder.load(folders[-1]).model.params.values()
    ours = model.params["shared" if shared else "passage"]
    jax.tree.map(np.testing.assert_array_equal, alone, ours)


def test_an_export_is_a_checkpoint(two_towers, tiny_config, tmp_path):
  """Training goes on from both towers; a card may be changed, weights not."""
  out = tmp_path / "out"
  model, _ = two_towers("sentence-transformers", out, False)
  (out / "README.md").write_text("# Mine\n")
  config = copy.deepcopy(tiny_config)
  config.model.checkpoint = str(out)
  again = retriever_model.start(config)
  assert again.settings == model.settings
  jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
  path = out / "query_0_Transformer" / "config.json"
  path.write_text(path.read_text() + " ")
  with pytest.raises(errors.InputError, match="query_0.*was changed"):
    retriever_model.start(config)


@pytest.mark.parametrize(
  ("form", "shared", "title"),
  [
    ("hf", True, "joined"),
    ("hf", False, "pair"),
    ("dpr", True, "pair"),
    ("dpr", False, "pair"),
    ("tevatron", False, "pair"),
  ],
)
def test_transformers_loads_it(two_towers, tmp_path, form, shared, title):
  torch = pytest.importorskip("torch", reason="no torch")
  import transformers

  model, folders = two_towers(form, tmp_path / "out", shared, title=title)
  kinds = [transformers.AutoModel] * 2
  if form == "dpr":
    kinds = [transformers.DPRQuestionEncoder, transformers.DPRContextEncoder]
  texts = QUESTIONS, [joined(model, *passage) for passage in PASSAGES]
  theirs = []
  for kind, folder, rows, length in zip(
    kinds, [folders[0], folders[-1]], texts, (16, 48), strict=True
  ):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(
      rows,
      padding=True,
      truncation=True,
      max_length=length,
      return_tensors="pt",
    )
    assert list(batch) == ["input_ids", "attention_mask"]
    with torch.no_grad():
      output = kind.from_pretrained(folder)(**batch)
    if form == "dpr":
      theirs.append(output.pooler_output.numpy())
    else:
      theirs.append(output.last_hidden_state[:, 0].numpy())
  close(theirs, vectors(model), 1e-5)
  if form == "dpr":
    config = transformers.AutoConfig.from_pretrained(folders[0])
    assert (config.model_type, config.projection_dim) == ("dpr", 0)
    assert config.architectures == ["DPRQuestionEncoder"]


@BOTH
@pytest.mark.parametrize(
  "settings",
  [
    {},
    {"pooling": "mean", "normalize": True, "title": "joined"},
    {"question_prefix": "a city ", "passage_prefix": "the "},
  ],
)
def test_sentence_transformers_loads_it(two_towers, tmp_path, shared, settings):
  library = pytest.importorskip(
    "sentence_transformers", reason="no sentence-transformers"
  )
  out = tmp_path / "out"
  model, folders = two_towers("sentence-transformers", out, shared, **settings)
  wanted = vectors(model)
  theirs = library.SentenceTransformer(str(out), device="cpu")
  normal = settings.get("normalize", False)
  assert theirs.similarity_fn_name == ("cosine" if normal else "dot")
  passages = [joined(model, *passage) for passage in PASSAGES]
  found = theirs.encode_document(passages)
  close([found], wanted[1:])
  if shared:  # one length for both, as the card says
    assert folders == [out]
    theirs.max_seq_length = 16
  else:
    assert [path.name for path in folders] == [
      *("query_0_Transformer", "document_0_Transformer")
    ]
  close([theirs.encode_query(QUESTIONS)], wanted[:1])


def test_what_a_format_cannot_express(two_towers, tmp_path):
  with pytest.raises(errors.InputError, match="dpr: .*by mean pooling"):
    two_towers("dpr", tmp_path / "out", False, pooling="mean")
  with pytest.raises(errors.InputError, match="dpr: .*unit vectors by cls"):
    two_towers("dpr", tmp_path / "out", True, normalize=True)
  with pytest.raises(errors.InputError, match="tevatron: .*of two towers"):
    two_towers("tevatron", tmp_path / "out", False, pooling="mean")
  with pytest.raises(errors.InputError, match="--int8: needs --format=onnx"):
    two_towers("hf", tmp_path / "out", False, int8=True)
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["hf", "dpr", "tevatron"])
def test_prefixes_that_are_not_pooled_are_refused(tiny_config, tmp_path, form):
  model = retriever_model.start(tiny_config)
  encoder = dataclasses.replace(model.encoder, passage_skip=2)
  model = dataclasses.replace(model, encoder=encoder)
  with pytest.raises(errors.InputError, match=f"{form}: .*do not pool their p"):
    export.FORMATS[form](model, tmp_path)


def test_formats_are_named(tiny_config, fresh_workdir, tmp_path):
  """An unknown one, and a workdir without a checkpoint."""
  with pytest.raises(errors.InputError, match="--format=npy.*hf, dpr, sent"):
    export.export(tiny_config, fresh_workdir, "npy", tmp_path / "out")
  with pytest.raises(errors.InputError, match="run `dpr-jax train`"):
    export.export(tiny_config, fresh_workdir, "hf", tmp_path / "out")
