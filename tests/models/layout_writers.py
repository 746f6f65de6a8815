"""Writes small checkpoints with the libraries whose layouts we read."""

import json
import shutil

import numpy as np
import pytest

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a b c d e query : passage".split()
SIZES = {
  "vocab_size": len(WORDS),
  "hidden_size": 8,
  "num_hidden_layers": 1,
  "num_attention_heads": 2,
  "intermediate_size": 16,
  "max_position_embeddings": 40,
}


def torch_library():
  """Torch; the test is skipped where it is not installed."""
  return pytest.importorskip("torch", reason="no torch: extra `parity`")


def write_bert(folder, kind="BertModel", seed=0, **sizes):
  """A model of transformers with its tokenizer; the state dict is returned."""
  torch_library().manual_seed(seed)
  import transformers

  folder.mkdir(parents=True, exist_ok=True)
  form = "DPRConfig" if kind.startswith("DPR") else "BertConfig"
  config = getattr(transformers, form)(**(SIZES | sizes))
  model = getattr(transformers, kind)(config)
  model.save_pretrained(folder)
  write_vocabulary(folder)
  return {name: x.numpy() for name, x in model.state_dict().items()}


def write_vocabulary(folder):
  """vocab.txt of `WORDS`."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "vocab.txt").write_text("\n".join(WORDS))


def write_dpr_pair(root, first="question_encoder", second="ctx_encoder"):
  """The encoders of DPR as subfolders; their state dicts are returned."""
  return [
    write_bert(root / folder, f"DPR{kind}Encoder", seed)
    for seed, (folder, kind) in enumerate(
      ((first, "Question"), (second, "Context"))
    )
  ]


def write_json(path, value):
  """A JSON file in a folder that is made where necessary."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value))


def old_modules(root, *kinds, package="sentence_transformers.models"):
  """modules.json with the folders that old versions gave to modules."""
  rows = [
    {
      "idx": number,
      "name": str(number),
      "path": f"{number}_{kind}" if number else "",
      "type": f"{package}.{kind}",
    }
    for number, kind in enumerate(kinds)
  ]
  write_json(root / "modules.json", rows)


def old_sentence_transformers(root, pooling="mean_tokens", **settings):
  """Transformer and Pooling in the layout of version 2."""
  tensors = write_bert(root)
  old_modules(root, "Transformer", "Pooling")
  settings = {"max_seq_length": 24, "do_lower_case": False} | settings
  write_json(root / "sentence_bert_config.json", settings)
  modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
  modes += ("weightedmean_tokens", "lasttoken")
  write_json(
    root / "1_Pooling" / "config.json",
    {"word_embedding_dimension": 8}
    | {f"pooling_mode_{mode}": mode == pooling for mode in modes},
  )
  return tensors


def sentence_transformers_library():
  """Sentence-Transformers; the test is skipped where it is not installed."""
  torch_library()
  return pytest.importorskip(
    "sentence_transformers", reason="no sentence_transformers: extra `peers`"
  )


def save_modules(root, modules, **options):
  """Modules of Sentence-Transformers, as the installed version writes them."""
  library = sentence_transformers_library()
  model = library.SentenceTransformer(modules=modules, **options)
  model.save(str(root), create_model_card=False)
  return model


def assert_tensors(actual, expected, prefix=""):
  """The tensors under a prefix, bit for bit, and no others."""
  expected = {
    name.removeprefix(prefix): value
    for name, value in expected.items()
    if name.startswith(prefix)
  }
  assert expected
  assert sorted(actual) == sorted(expected)
  for name, value in expected.items():
    np.testing.assert_array_equal(actual[name], value, err_msg=name)


def copy(source, target):
  """A copy of a folder, over what is there."""
  shutil.copytree(source, target, dirs_exist_ok=True)
