"""Readers of Hugging Face's, in and out: the same scores on torch.

Torch is an extra (`parity`): without it the comparisons skip and say so.
"""

import copy
import json
import shutil

import jax
import numpy as np
import pytest

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.models import reader_export, reader_model, span_reader

TOLERANCE = 2e-5
FIELDS = ("ids", "lengths", "question_ends", "passages", "counts")
PASSAGES = (
  ("Ulm", "The city was the birthplace of Albert Einstein."),
  ("", "A river, in the east."),
)


def _torch_model(kind, folder):
  """A random reader of transformers', saved into a folder."""
  torch = pytest.importorskip("torch", reason="no torch: extra `parity`")
  import transformers

  torch.manual_seed(0)
  config = json.loads((folder / "config.json").read_text())
  sizes = {key: value for key, value in config.items() if key != "model_type"}
  sizes |= {"initializer_range": 0.2}
  if kind == "dpr-reader":
    model = transformers.DPRReader(transformers.DPRConfig(**sizes))
  else:
    model = transformers.BertForQuestionAnswering(
      transformers.BertConfig(**sizes)
    )
  return torch, model.eval()


def _batch(reader):
  tokenizer = reader.tokenizer
  (question,) = tokenizer.question_ids(["where was the physicist born ?"])
  inputs = []
  for title, text in PASSAGES:
    named, passage = tokenizer.tokenize([title, text])
    head, end = tokenizer.head(question, named.ids)
    (window,) = tokenizer.windows(len(head), len(passage.ids))
    inputs.append(tokenizer.compose(head, end, passage.ids, window))
  return tokenizer.pad(inputs, 48)


def _compare(torch, model, reader, has_rank):
  batch = _batch(reader)
  places = np.arange(batch.ids.shape[1])[None]
  rows = span_reader.Rows(*(getattr(batch, name) for name in FIELDS))
  ours = jax.jit(reader.structure.scores)(reader.params, rows)
  arguments = {
    "input_ids": torch.tensor(batch.ids, dtype=torch.long),
    "attention_mask": torch.tensor(places < batch.lengths[:, None]).long(),
  }
  if not has_rank:
    types = places >= batch.question_ends[:, None]
    arguments["token_type_ids"] = torch.tensor(types).long()
  with torch.no_grad():
    theirs = model(**arguments)
  first = batch.passages[:, None]
  inside = (places >= first) & (places < first + batch.counts[:, None])
  for name in ("start", "end"):
    wanted = getattr(theirs, f"{name}_logits").numpy()[inside]
    found = np.asarray(getattr(ours, name))[inside]
    assert np.abs(found - wanted).max() <= TOLERANCE
    assert np.abs(wanted).max() > 0.1
  if has_rank:
    wanted = theirs.relevance_logits.numpy()
    assert np.abs(np.asarray(ours.rank) - wanted).max() <= TOLERANCE


@pytest.mark.parametrize("kind", reader_export.FORMATS)
def test_in_and_out_again(kind, tiny_checkpoint, tmp_path):
  """Transformers' weights give its scores here, and ours give them there."""
  torch, model = _torch_model(kind, tiny_checkpoint)
  folder = tmp_path / "theirs"
  shutil.copytree(tiny_checkpoint, folder)
  model.save_pretrained(folder, safe_serialization=True)
  reader = reader_model.from_folder(folder)
  has_rank = kind == "dpr-reader"
  assert reader.ranks == has_rank
  assert reader.tokenizer.layout == ("dpr-hf" if has_rank else "squad")
  _compare(torch, model, reader, has_rank)

  out = tmp_path / "ours"
  reader_export.export(reader, out, kind)
  again = type(model).from_pretrained(out).eval()
  _compare(torch, again, reader, has_rank)
  back = reader_model.from_folder(out)
  assert back.tokenizer.text_format() == reader.tokenizer.text_format()
  if has_rank:  # the other kind has no rank head to come back
    assert back.fingerprint == reader.fingerprint
  reader_export.export(reader, out, kind)  # ours: replaced
  (tmp_path / "notes").mkdir()
  (tmp_path / "notes" / "a.txt").write_text("a user's")
  with pytest.raises(errors.InputError, match="notes is not empty and has"):
    reader_export.export(reader, tmp_path / "notes", kind)
  import transformers

  tokenizer = transformers.AutoTokenizer.from_pretrained(out)
  text = "Where was Einstein born?"
  wanted = reader.tokenizer.backend.encode(text, add_special_tokens=False).ids
  assert tokenizer(text, add_special_tokens=False)["input_ids"] == wanted


def test_an_export_of_an_older_version_is_read(
  tiny_config, tiny_checkpoint, tmp_path
):
  """Its settings are in a file of another name."""
  config = copy.deepcopy(tiny_config)
  config.reader.length, config.reader.question_length = 60, 20
  config.reader.overlap = 7
  reader = reader_model.start(config)
  reader_export.export(reader, tmp_path / "out", "dpr-reader")
  (tmp_path / "out" / "dpr_jax.json").unlink()
  settings = reader.tokenizer.text_format() | {"ranks": True}
  workdir_lib.write_json(tmp_path / "out" / "dpr_jax_reader.json", settings)
  found = reader_model.from_folder(tmp_path / "out")
  assert found.tokenizer.text_format() == {
    "length": 60,
    "question_length": 20,
    "overlap": 7,
    "layout": "dpr",
  }
  assert found.ranks


def test_what_is_no_reader_is_refused(tiny_checkpoint, tmp_path):
  with pytest.raises(errors.InputError, match="neither qa_outputs nor"):
    reader_model.from_folder(tiny_checkpoint)
  with pytest.raises(errors.InputError, match="holds no reader: give"):
    reader_model.from_folder(tmp_path)
