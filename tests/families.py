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
  "xlm-roberta": (
    "unigram",
    "XLMRoberta",
    {"max_position_embeddings": 66, "type_vocab_size": 1},
  ),
  "mpnet": (
    "mpnet",
    "MPNet",
    {"max_position_embeddings": 202, "layer_norm_eps": 1e-5},
  ),
  "distilbert": (
    "word-piece",
    "DistilBert",
    {
      "dim": 48,
      "n_layers": 3,
      "n_heads": 4,
      "hidden_dim": 80,
      "max_position_embeddings": 64,
    },
  ),
  "modernbert": (
    "byte-level",
    "ModernBert",
    {
      "max_position_embeddings": 64,
      "num_hidden_layers": 5,
      "local_attention": 12,
      "pad_token_id": 1,
      "cls_token_id": 0,
      "sep_token_id": 2,
      "bos_token_id": 0,
      "eos_token_id": 2,
    },
  ),
  "electra": (
    "word-piece",
    "Electra",
    {"embedding_size": 20, "max_position_embeddings": 64},
  ),
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
  """A tokenizer of transformers; `kind` as in `FAMILIES`."""
  import transformers

  if kind == "byte-level":
    model = _trained(kind)
    merges = [tuple(pair) for pair in model["merges"]]
    backend = tokenizers.Tokenizer(
      tokenizers.models.BPE(vocab=model["vocab"], merges=merges)
    )
    # transformers before 5.18 leaves these out where it makes the backend.
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
      add_prefix_space=False
    )
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.post_processor = tokenizers.processors.RobertaProcessing(
      ("</s>", model["vocab"]["</s>"]),
      ("<s>", model["vocab"]["<s>"]),
      add_prefix_space=False,
    )
    return transformers.RobertaTokenizerFast(tokenizer_object=backend)
  if kind == "unigram":
    pieces = [tuple(piece) for piece in _trained(kind)["vocab"]]
    return transformers.XLMRobertaTokenizerFast(vocab=pieces)
  words = {
    word.strip(".,()").lower()
    for pair in sample_texts()[:200]
    for word in " ".join(pair).split()
  }
  letters = "abcdefghijklmnopqrstuvwxyz0123456789"
  pieces = [*letters, *(f"##{letter}" for letter in letters), *".,()-'"]
  words = [*pieces, *sorted(words - {"", *pieces})]
  if kind == "mpnet":
    special = [*_SPECIAL, "[UNK]"]
    words = dict.fromkeys([*special, *words, "<mask>"])
    vocabulary = {word: number for number, word in enumerate(words)}
    return transformers.MPNetTokenizerFast(vocab=vocabulary)
  special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
  vocabulary = {word: n for n, word in enumerate([*special, *words])}
  return transformers.BertTokenizerFast(vocab=vocabulary)


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
