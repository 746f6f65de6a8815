"""Recognises the layout of a checkpoint: whose files these are, and their use.

Input: what `config.model.checkpoint` may name, except "random".  Output: a
`Checkpoint`: for each of the two towers its sizes, tokenizer and weights, and
what the files say about how the encoder is used (pooling, length, prompts).
`retriever_model` builds the towers from it; nothing here depends on the config.
"""

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import Any

from absl import logging

from dpr_jax.core import errors
from dpr_jax.models import (
  bert,
  checkpoint_sources,
  config_json,
  hub_files,
  model_files,
  original_dpr_files,
  sentence_transformers_files,
  tensor_files,
)
from dpr_jax.models.tower_files import (
  Checkpoint as Checkpoint,
)
from dpr_jax.models.tower_files import (
  Dense as Dense,
)
from dpr_jax.models.tower_files import (
  TowerFiles as TowerFiles,
)
from dpr_jax.models.tower_files import (
  Use as Use,
)

QUESTION, PASSAGE = "question", "passage"
_PLAIN = "Hugging Face"
_DPR = "Hugging Face DPR"
_READER = "span_predictor."
# Prefixes of a DPR encoder's tensors.
DPR_PREFIXES = {
  QUESTION: "question_encoder.bert_model.",
  PASSAGE: "ctx_encoder.bert_model.",
}
# Subfolders of folders that hold a pair: layout, questions, passages.
_PAIRS = (
  ("Tevatron", "query_model", "passage_model"),
  ("pair of folders", "question", "passage"),
  ("pair of folders", "question_encoder", "ctx_encoder"),
  ("pair of folders", "query_encoder", "passage_encoder"),
)
# What is known of encoders whose folders do not say it.
_ARCHITECTURES = {
  "Contriever": Use(pooling="mean", normalize=False, title="joined"),
}
_DPR_USE = Use(pooling="cls", normalize=False, title="pair")
_TEVATRON_USE = Use(pooling="cls", title="joined")


def open_(name: str, tower: str | None = None) -> Checkpoint:
  """Opens a checkpoint, and logs what its files say.

  Args:
    name: "starter", "hf:NAME[@REVISION]", a folder or a file.
    tower: "question" or "passage": only this tower, for both kinds of text;
      None = both.

  Raises:
    InputError: there is no such checkpoint, no supported layout, or a file is
      damaged.
  """
  path = checkpoint_sources.checkpoint_path(name)
  checkpoint = _open(path, name, tower)
  if tower is not None:
    single = getattr(checkpoint, tower)
    checkpoint = Checkpoint(checkpoint.layout, single, single)
  logging.info("checkpoint %s: %s", name, describe(checkpoint))
  return checkpoint


def _open(path: pathlib.Path, name: str, tower: str | None) -> Checkpoint:
  if model_files.is_sealed(path):
    return _sealed(path, name, tower)
  return _unsealed(path, name, tower)


def _unsealed(path: pathlib.Path, name: str, tower: str | None) -> Checkpoint:
  """A checkpoint by its files alone, without settings of ours."""
  if path.suffix == ".safetensors":
    raise errors.InputError(
      f"checkpoint {name!r}: weights alone do not say what they are of; give"
      f" the folder {path.parent}"
    )
  if path.is_file():
    return Checkpoint("original DPR", **original_dpr_files.read(path))
  if (path / sentence_transformers_files.MODULES).exists():
    towers = sentence_transformers_files.read(path)
    return Checkpoint("Sentence-Transformers", **towers)
  if (path / "pooler.pt").exists():
    raise errors.InputError(
      f"{path / 'pooler.pt'}: a pooler of Tevatron is not supported; without it"
      " the vectors would be others: train without --add_pooler"
    )
  for layout, *folders in _PAIRS:
    parts = [path / folder for folder in folders]
    if all((part / "config.json").is_file() for part in parts):
      return _pair(path, layout, *parts)
  single = original_dpr_files.file_in(path)
  if single and not tensor_files.has_weights(path):
    return _unsealed(single, name, tower)
  if (path / "config.json").is_file():
    layout, files = _folder(path, path, tower)
    return Checkpoint(layout, files, files)
  if pair := _dpr_pair(path):
    return _pair(path, _DPR, *pair)
  raise errors.InputError(
    f"checkpoint {name!r}: {path} has neither a config.json nor a modules.json,"
    " and no subfolders question and passage or query_model and passage_model:"
    " it is not the folder of a model"
  )


def _dpr_pair(root: pathlib.Path) -> list[pathlib.Path] | None:
  """The subfolders with the two encoders of DPR, of any names."""
  kinds: dict[str, list[pathlib.Path]] = {}
  for path in sorted(root.glob("*/config.json")):
    for architecture in config_json.read(path).get("architectures") or ():
      kinds.setdefault(str(architecture), []).append(path.parent)
  pair = [kinds.get(f"DPR{x}Encoder", []) for x in ("Question", "Context")]
  return [p[0] for p in pair] if all(len(p) == 1 for p in pair) else None


def _pair(
  root: pathlib.Path,
  layout: str,
  question: pathlib.Path,
  passage: pathlib.Path,
) -> Checkpoint:
  """Two folders, a tower each; the tokenizer may lie beside them."""
  inner, first = _folder(question, root, QUESTION)
  _, second = _folder(passage, root, PASSAGE)
  if layout == "Tevatron" and inner == _PLAIN:
    first, second = (
      dataclasses.replace(files, use=_TEVATRON_USE) for files in (first, second)
    )
  return Checkpoint(layout, first, second)


def _folder(
  folder: pathlib.Path, root: pathlib.Path, tower: str | None = None
) -> tuple[str, TowerFiles]:
  """Layout and files of a Hugging Face folder.

  Args:
    folder: folder with `config.json` and weights.
    root: where the tokenizer is, if it is not in `folder`.
    tower: the kind of texts that it should be for; None = either.
  """
  if (folder / sentence_transformers_files.MODULES).exists():
    towers = sentence_transformers_files.read(folder)
    return "Sentence-Transformers", towers[tower or QUESTION]
  raw = config_json.read(folder / "config.json")
  config = bert.BertConfig.read(folder)
  names = tensor_files.tensor_names(folder)
  if any(name.startswith(_READER) for name in names):
    raise errors.InputError(
      f"{folder} holds a DPR reader, not an encoder: set"
      " config.reader.checkpoint to it, and config.model.checkpoint to a"
      " DPRQuestionEncoder or DPRContextEncoder"
    )
  kind, prefix = next(
    (
      (kind, prefix)
      for kind, prefix in DPR_PREFIXES.items()
      if any(name.startswith(prefix) for name in names)
    ),
    (None, ""),
  )
  if tower and kind and tower != kind:
    logging.warning(
      "%s is DPR's encoder of %ss, and is used for %ss", folder, kind, tower
    )
  architectures = raw.get("architectures") or [""]
  use = _DPR_USE if kind else _ARCHITECTURES.get(str(architectures[0]), Use())
  if raw.get("projection_dim"):
    layer = _projection(folder, prefix)
    use = dataclasses.replace(use, dense=(layer,))
  inner = [n.removeprefix(prefix) for n in names if n.startswith(prefix)]
  files = TowerFiles(
    folder if has_tokenizer(folder) else root,
    config,
    tensor_files.lazily(folder, prefix),
    use,
    tensor_files.heads_among(inner),
  )
  return _DPR if kind else _PLAIN, files


def _projection(folder: pathlib.Path, prefix: str) -> Dense:
  """The layer that DPR's encoders may have after [CLS], beside their BERT."""
  prefix = f"{prefix.removesuffix('bert_model.')}encode_proj."
  tensors = tensor_files.lazily(folder, prefix)()
  return Dense.of_linear(
    folder / f"config.json: projection_dim, {prefix}weight",
    tensors.get("weight"),
    tensors.get("bias"),
  )


def has_tokenizer(folder: pathlib.Path) -> bool:
  """True where a folder has a tokenizer's files."""
  names = ("tokenizer.json", "vocab.txt", "tokenizer_config.json")
  return any((folder / name).exists() for name in names)


def _sealed(path: pathlib.Path, name: str, tower: str | None) -> Checkpoint:
  """A folder that `export` wrote: its files, used as in the training."""
  fix = "remove that file to use the other files without its settings"
  record = model_files.read(path, model_files.TOWERS, fix)
  if record.get("format_name") == "onnx":
    raise errors.InputError(
      f"checkpoint {name!r}: {path} holds ONNX graphs, for ONNX Runtime only:"
      " export with --format=sentence-transformers what is to be loaded here"
    )
  needed = tuple(filter(hub_files.is_read, record["files"]))
  model_files.check(path, record, fix, needed)
  checkpoint = _unsealed(path, name, tower)
  model = record["model"]
  first, second = checkpoint.question, checkpoint.passage
  return Checkpoint(
    f"dpr-jax ({checkpoint.layout})",
    dataclasses.replace(first, use=recorded_use(model, QUESTION, first.use)),
    dataclasses.replace(second, use=recorded_use(model, PASSAGE, second.use)),
  )


def recorded_use(model: dict[str, Any], tower: str, use: Use) -> Use:
  """A use with the settings of `config.model` that were recorded.

  Args:
    model: settings by key, as in a `dpr_jax.json`.
    tower: "question" or "passage".
    use: what the other files say.
  """
  return dataclasses.replace(
    use,
    pooling=model["pooling"],
    normalize=model["normalize"],
    title=model["title"],
    prefix=model[f"{tower}_prefix"],
    length=model[f"{tower}_length"],
  )


def describe(checkpoint: Checkpoint) -> str:
  """One line: layout, use of each tower, and what is ignored."""
  first, second = checkpoint.question, checkpoint.passage
  texts = [_describe_use(files.use) for files in (first, second)]
  if texts[0] == texts[1]:
    texts = texts[:1]
  else:
    texts = [f"questions: {texts[0]}", f"passages: {texts[1]}"]
  towers = "one encoder" if checkpoint.shared else "two encoders"
  parts = [f"{checkpoint.layout}, {towers}", *filter(None, texts)]
  if heads := sorted({*first.heads, *second.heads}):
    parts.append(f"without its heads {', '.join(heads)}")
  return "; ".join(parts)


def _describe_use(use: Use) -> str:
  dense = [f"{x.kernel.shape[1]} wide ({x.activation})" for x in use.dense]
  return ", ".join(text for said, text in _said(use, dense) if said)


def _said(use: Use, dense: list[str]) -> Iterable[tuple[bool, str]]:
  yield bool(use.pooling), f"{use.pooling} pooling"
  yield not use.pools_prefix, "of the text without its prompt"
  yield bool(dense), f"then dense {', '.join(dense)}"
  yield bool(use.normalize), "normalized"
  yield bool(use.length), f"{use.length} tokens"
  yield bool(use.prefix), f"prompt {use.prefix!r}"
  yield bool(use.title), f"title {use.title}"
