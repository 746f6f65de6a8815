"""Towers as other libraries' folders: what is loaded again is the same."""

import numpy as np
import pytest

import dpr_jax
from dpr_jax.core import errors
from dpr_jax.models import export


@pytest.mark.parametrize("form", export.FORMATS)
@pytest.mark.parametrize("shared", [True, False])
def test_exported_towers_encode_the_same(
  tiny_config, fresh_workdir, tmp_path, form, shared
):
  """By our own reader of such folders, and the peers' where they are there."""
  import copy

  from dpr_jax.inference import encoder as encoder_lib
  from dpr_jax.models import retriever_model

  config = copy.deepcopy(tiny_config)
  config.model.shared_towers = shared
  config.model.title = "joined" if form == "sentence-transformers" else "pair"
  out = tmp_path / "out"
  folders = export.export(config, fresh_workdir, form, out, "dense-start")
  names = [out] if shared else [out / "question", out / "passage"]
  assert folders == names
  wanted = encoder_lib.Encoder(retriever_model.start(config), length_step=48)
  found = dpr_jax.Encoder.load(folders[-1], length_step=48)
  texts = [("city", "the river"), ("river", "a city")]
  vectors = wanted.encode_passages(texts)
  np.testing.assert_allclose(found.encode_passages(texts), vectors, atol=1e-6)
  if form == "sentence-transformers":
    library = pytest.importorskip(
      "sentence_transformers", reason="no sentence-transformers"
    )
    model = library.SentenceTransformer(str(folders[-1]), device="cpu")
    theirs = model.encode([" ".join(text) for text in texts])
  else:
    torch = pytest.importorskip("torch", reason="no torch")
    import transformers

    model = transformers.AutoModel.from_pretrained(folders[-1])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[-1])
    titles, bodies = zip(*texts, strict=True)
    batch = tokenizer(
      list(titles), list(bodies), padding=True, return_tensors="pt"
    )
    with torch.no_grad():
      theirs = model(**batch).last_hidden_state[:, 0].numpy()
  np.testing.assert_allclose(theirs, vectors, atol=1e-5)


def test_formats_are_named(tiny_config, fresh_workdir, tmp_path):
  """An unknown one, and a workdir without a checkpoint."""
  with pytest.raises(errors.InputError, match="--format=onnx.*hf or sentence"):
    export.export(tiny_config, fresh_workdir, "onnx", tmp_path / "out")
  with pytest.raises(errors.InputError, match="run `dpr-jax train`"):
    export.export(tiny_config, fresh_workdir, "hf", tmp_path / "out")
