"""Reads the checkpoints of the original DPR code: one file for both towers.

Input: a file that its training wrote (`dpr_biencoder.37`) or that it offers for
download (`hf_bert_base.cp`).  Such a file has weights and settings, but neither
sizes nor a tokenizer: those are taken from the folder that the file is in, from
the folder that its settings name, or from what they say of bert-base-uncased.
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from absl import logging

from dpr_jax.core import errors
from dpr_jax.models import (
  bert,
  checkpoint_sources,
  config_json,
  tensor_files,
  torch_files,
  tower_files,
)
from dpr_jax.models.torch_pickles import Inert, Tensor

PATTERNS = ("*.cp", "dpr_biencoder.*")
_PREFIXES = {"question": "question_model.", "passage": "ctx_model."}
_READER_NAMES = {
  "encoder.": "span_predictor.encoder.bert_model.",
  "qa_outputs.": "span_predictor.qa_outputs.",
  "qa_classifier.": "span_predictor.qa_classifier.",
}
_WORDS = "embeddings.word_embeddings.weight"
_UNCASED = "bert-base-uncased"
_HEAD_WIDTH = 64  # of every BERT by Google


def file_in(folder: pathlib.Path) -> pathlib.Path | None:
  """The only checkpoint of DPR in a folder; None where there is none.

  Raises:
    InputError: there are several.
  """
  paths = sorted(
    path
    for pattern in PATTERNS
    for path in folder.glob(pattern)
    if path.is_file()
  )
  if len(paths) > 1:
    raise errors.InputError(
      f"{folder} has {len(paths)} checkpoints of DPR, {paths[0].name} to"
      f" {paths[-1].name}: name one of them"
    )
  return paths[0] if paths else None


def read(path: pathlib.Path) -> dict[str, tower_files.TowerFiles]:
  """The towers of a file: "question" and "passage".

  Raises:
    InputError: it is no checkpoint of DPR's encoders, or sizes or tokenizer
      are missing.
  """
  file = tensor_files.open_torch(path)
  state = _model_dict(file)
  settings = _settings(file.tree)
  parts = {
    tower: tensor_files.without_prefix(state, prefix)
    for tower, prefix in _PREFIXES.items()
  }
  missing = [_PREFIXES[tower] for tower in parts if _WORDS not in parts[tower]]
  if missing:
    raise errors.InputError(_other_model(path, state, missing))
  first, second = parts.values()
  config, folder = _sizes_and_tokenizer(path, first, settings)
  length = settings.get("sequence_length")
  if type(length) is not int or length < 3:
    length = None
  else:
    length = min(length, config.max_position_embeddings)
  use = tower_files.Use("cls", False, length=length, title="pair")
  files = tower_files.TowerFiles(folder, config, dict, use)
  towers = [_tower(file, part, files) for part in (first, second)]
  return dict(zip(_PREFIXES, towers, strict=True))


def is_reader(state: Iterable[str]) -> bool:
  """True where the names of tensors are those of a reader of DPR."""
  return all(any(name.startswith(x) for name in state) for x in _READER_NAMES)


def reader_in(path: pathlib.Path) -> pathlib.Path | None:
  """A file with a reader of DPR, or the only one of a folder; None = no such.

  Args:
    path: a file or a folder; one with a model of transformers is none.
  """
  if path.is_dir():
    if tensor_files.has_weights(path):
      return None
    path = file_in(path) or path
  if not path.is_file():
    return None
  file = tensor_files.open_torch(path)
  return path if is_reader(_model_dict(file)) else None


def read_reader(path: pathlib.Path) -> tower_files.TowerFiles:
  """A reader of DPR; its tensors have the names of transformers' DPRReader.

  Raises:
    InputError: it is no reader of DPR, or sizes or tokenizer are missing.
  """
  file = tensor_files.open_torch(path)
  state = _model_dict(file)
  body = tensor_files.without_prefix(state, "encoder.")
  if _WORDS not in body or not is_reader(state):
    raise errors.InputError(
      f"{path} holds no reader of DPR: its model_dict has not all of"
      f" {', '.join(_READER_NAMES)}"
    )
  config, folder = _sizes_and_tokenizer(path, body, _settings(file.tree))
  names = {
    f"{prefix}{name.removeprefix(start)}": tensor
    for name, tensor in state.items()
    for start, prefix in _READER_NAMES.items()
    if name.startswith(start)
  }
  return tower_files.TowerFiles(
    folder,
    config,
    lambda: tensor_files.read_torch(file, names),
    tower_files.Use(),
  )


def _other_model(
  path: pathlib.Path, state: Mapping[str, Tensor], missing: list[str]
) -> str:
  if is_reader(state):
    return (
      f"{path} holds a reader of DPR, not encoders: set"
      " config.reader.checkpoint to it"
    )
  names = ", ".join(sorted({name.partition(".")[0] for name in state})[:6])
  return (
    f"{path} has no {' and no '.join(x + _WORDS for x in missing)} in its"
    f" model_dict, only {names}: it is not a checkpoint of DPR's BERT encoders"
  )


def _model_dict(file: torch_files.TorchFile) -> dict[str, Tensor]:
  tree = file.tree if isinstance(file.tree, dict) else {}
  state = tree.get("model_dict")
  if not isinstance(state, dict):
    raise errors.InputError(
      f"{file.path} has no model_dict: it is not a checkpoint of the original"
      " DPR; for a pytorch_model.bin give its folder"
    )
  return {
    name: value
    for name, value in state.items()
    if isinstance(name, str) and isinstance(value, Tensor)
  }


def _settings(tree: dict) -> dict[str, Any]:
  """`encoder_params` with plain values, of older and newer versions of DPR."""
  settings = _plain(tree.get("encoder_params"))
  settings |= _plain(settings.get("encoder"))
  return {key: _value(value) for key, value in settings.items()}


def _plain(value: Any) -> dict[str, Any]:
  """Items of a dict, or of omegaconf's, which newer versions save."""
  if isinstance(value, Inert) and isinstance(value.state, dict):
    value = value.state.get("_content")
  items = value if isinstance(value, dict) else {}
  return {key: x for key, x in items.items() if isinstance(key, str)}


def _value(value: Any) -> Any:
  if isinstance(value, Inert) and isinstance(value.state, dict):
    return value.state.get("_val")
  return value


def _tower(
  file: torch_files.TorchFile,
  tensors: dict[str, Tensor],
  files: tower_files.TowerFiles,
) -> tower_files.TowerFiles:
  """A tower of its tensors; everything else is as in `files`."""
  projection = tensor_files.without_prefix(tensors, "encode_proj.")
  encoder = {
    name: tensor
    for name, tensor in tensors.items()
    if not name.startswith("encode_proj.")
  }
  use = files.use
  if projection:
    arrays = tensor_files.read_torch(file, projection)
    layer = tower_files.Dense.of_linear(
      file.path, arrays.get("weight"), arrays.get("bias")
    )
    use = dataclasses.replace(use, dense=(layer,))
  return dataclasses.replace(
    files,
    tensors=lambda: tensor_files.read_torch(file, encoder),
    use=use,
    heads=tensor_files.heads_among(encoder),
  )


def _sizes_and_tokenizer(
  path: pathlib.Path,
  tensors: Mapping[str, Tensor],
  settings: Mapping[str, Any],
) -> tuple[bert.BertConfig, pathlib.Path]:
  """Sizes, and the folder of the tokenizer."""
  named = str(settings.get("pretrained_model_cfg") or "")
  folders = [path.parent]
  if 0 < len(named) < 200 and pathlib.Path(named).is_dir():
    folders.append(pathlib.Path(named))
  tokenizer = next((f for f in folders if _has_tokenizer(f)), None)
  if tokenizer is None and named.rpartition("/")[2] == _UNCASED:
    # The starter's WordPiece vocabulary is that of bert-base-uncased.
    tokenizer = checkpoint_sources.checkpoint_folder("starter")
    logging.info("%s: tokenizer of %s, from the starter", path, named)
  if tokenizer is None:
    raise errors.InputError(
      f"{path} has no tokenizer, and was trained from {named or 'a BERT'!r}:"
      f" copy tokenizer.json, or vocab.txt and config.json, of that model into"
      f" {path.parent}"
    )
  for folder in folders:
    if (folder / "config.json").is_file():
      return bert.BertConfig.read(folder), tokenizer
  return _derived(path, tensors), tokenizer


def _has_tokenizer(folder: pathlib.Path) -> bool:
  """True for files that `tokenization.load_tokenizer` can open."""
  there = {path.name for path in folder.glob("*") if path.is_file()}
  if "vocab.txt" in there:
    return not there.isdisjoint({"config.json", "tokenizer_config.json"})
  return "tokenizer.json" in there


def _derived(
  path: pathlib.Path, tensors: Mapping[str, Tensor]
) -> bert.BertConfig:
  """Sizes of a BERT from the shapes of its tensors.

  Shapes do not tell the number of heads: it is that of heads 64 wide.
  """

  def rows(name: str) -> int:
    tensor = tensors.get(name)
    if tensor is None or len(tensor.shape) != 2:
      raise errors.InputError(
        f"{path}: {name} is missing or has no two dimensions: copy the"
        f" config.json of its BERT into {path.parent}"
      )
    return tensor.shape[0]

  width = tensors[_WORDS].shape[-1]
  layers = {n.split(".")[2] for n in tensors if n.startswith("encoder.layer.")}
  raw = {
    "vocab_size": rows(_WORDS),
    "hidden_size": width,
    "num_hidden_layers": len(layers),
    "num_attention_heads": width // _HEAD_WIDTH,
    "intermediate_size": rows("encoder.layer.0.intermediate.dense.weight"),
    "max_position_embeddings": rows("embeddings.position_embeddings.weight"),
    "type_vocab_size": rows("embeddings.token_type_embeddings.weight"),
  }
  config = config_json.build(path, raw, bert.BertConfig)
  logging.info(
    "%s: %d layers, %d wide, by its tensors; %d attention heads of %d, because"
    " %s has no config.json",
    *(path, config.num_hidden_layers, width, config.num_attention_heads),
    *(_HEAD_WIDTH, path.parent),
  )
  return config
