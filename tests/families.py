"""Small checkpoints of every family of encoders, written by transformers.

Tokenizers are trained on the words of the embedded sample; weights are random
and large enough for every part to show.
"""

import csv
import functools
import json
import pathlib
from importlib import resources as importlib_resources

import tokenizers

SIZES = {
  "hidden_size": 48,
  "num_hidden_layers": 3,
  "num_attention_heads": 4,
  "intermediate_size": 80,
  "initializer_range": 0.2,
}
_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
# Family -> (kind of tokenizer, class of transformers, its settings).
FAMILIES = {
  "roberta": ("byte-level", "Roberta", {"max_position_embeddings": 66}),
  "xlm-roberta": ("unigram", "XLMRoberta", {"max_position_embeddings": 66}),
}


@functools.cache
def sample_texts() -> tuple[tuple[str, str], ...]:
  """(title, text) of the passages of the embedded sample."""
  path = importlib_resources.files("dpr_jax.data.sample") / "passages.tsv"
  with path.open(encoding="utf-8", newline="") as file:
    rows = csv.DictReader(file, delimiter="\t")
    return tuple((row["title"], row["text"]) for row in rows)


@functools.cache
def _trained(kind: str) -> dict:
  """`tokenizer.json` of a model trained on the sample."""
  texts = [part for pair in sample_texts()[:200] for part in pair]
  if kind == "byte-level":
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    steps = tokenizers.pre_tokenizers
    backend.pre_tokenizer = steps.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
      vocab_size=600,
      special_tokens=[*_SPECIAL, "<mask>"],
      initial_alphabet=steps.ByteLevel.alphabet(),
      show_progress=False,
    )
  else:
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram())
    steps = tokenizers.pre_tokenizers
    backend.pre_tokenizer = steps.Sequence(
      [steps.WhitespaceSplit(), steps.Metaspace()]
    )
    trainer = tokenizers.trainers.UnigramTrainer(
      vocab_size=600,
      special_tokens=_SPECIAL,
      unk_token="<unk>",
      show_progress=False,
    )
  backend.train_from_iterator(texts, trainer)
  return json.loads(backend.to_str())["model"]


def tokenizer(kind: str):
  """A tokenizer of transformers: "byte-level", "unigram" or "word-piece"."""
  import transformers

  if kind == "byte-level":
    model = _trained(kind)
    merges = [tuple(pair) for pair in model["merges"]]
    return transformers.RobertaTokenizerFast(
      vocab=model["vocab"], merges=merges
    )
  if kind == "unigram":
    pieces = [tuple(piece) for piece in _trained(kind)["vocab"]]
    return transformers.XLMRobertaTokenizerFast(vocab=pieces)
  raise ValueError(kind)


def write(family: str, folder: pathlib.Path, seed: int = 0) -> None:
  """Writes config, weights and tokenizer of a family into a folder."""
  import torch
  import transformers

  kind, name, settings = FAMILIES[family]
  theirs = tokenizer(kind)
  theirs.save_pretrained(folder)
  torch.manual_seed(seed)
  config = getattr(transformers, f"{name}Config")(
    vocab_size=len(theirs), **SIZES | settings
  )
  model = getattr(transformers, f"{name}Model")(config)
  model.save_pretrained(folder)
