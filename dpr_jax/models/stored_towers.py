"""Loads and stores the towers, in a workdir or in another library's folder.

`store` writes sizes and tokenizer next to the parameters; `trained` and
`before_training` load the towers of a workdir, without the checkpoint that
training started from; `from_folder` loads a finished encoder.  Embedding and
search get their model here.
"""

import dataclasses
import os
import pathlib
from typing import Any

import jax
import ml_collections
import numpy as np
import tokenizers
from absl import logging

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import tokenization
from dpr_jax.models import (
  bert,
  checkpoints,
  dual_encoder,
  exported_towers,
  hf_weights,
  model_files,
  model_settings,
  retriever_model,
  tensor_files,
)


def from_folder(folder: str | os.PathLike) -> retriever_model.Towers:
  """One encoder for both kinds of text, from a Hugging Face folder.

  A Sentence-Transformers folder (`modules.json`) determines pooling,
  normalisation and the longest text, and the title is joined to the text.  A
  folder that `export` wrote has all settings of the training.  Any other folder
  gets DPR's settings.

  Raises:
    InputError: the folder is incomplete, or its pooling is not supported.
  """
  folder = workdir_lib.user_path(folder)
  if model_files.is_sealed(folder):
    fix = "remove that file to use the other files without its settings"
    return from_sealed(folder, fix)
  bert_config, tower = hf_weights.load_bert(folder)
  length = min(256, bert_config.max_position_embeddings)
  pooling, normalize, title = "cls", False, "pair"
  if (folder / "modules.json").exists():
    modules = workdir_lib.read_json(folder / "modules.json")
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    if "Pooling" not in kinds:
      raise errors.InputError(
        f"{folder / 'modules.json'}: no Pooling among {', '.join(kinds)}: this"
        " is not an encoder of one vector per text"
      )
    pooling = _pooling(folder / modules[kinds.index("Pooling")]["path"])
    normalize, title = "Normalize" in kinds, "joined"
    settings = folder / "sentence_bert_config.json"
    if settings.exists():
      longest = workdir_lib.read_json(settings).get("max_seq_length")
      length = min(longest or length, bert_config.max_position_embeddings)
  encoder = dual_encoder.DualEncoder(
    bert_config,
    pooling=pooling,
    normalize=normalize,
    shared=True,
    dtype=retriever_model.compute_dtype("auto"),
  )
  tokenizer = tokenization.TextTokenizer(
    tokenization.load_tokenizer(folder),
    question_length=length,
    passage_length=length,
    title=title,
  )
  return retriever_model.Towers(encoder, encoder.towers(tower), tokenizer)


def _pooling(folder: pathlib.Path) -> str:
  """Pooling of a Sentence-Transformers folder, in either of its formats."""
  settings = workdir_lib.read_json(folder / "config.json")
  modes = [
    key.removeprefix("pooling_mode_")
    for key, value in settings.items()
    if key.startswith("pooling_mode_") and value is True
  ] or [settings.get("pooling_mode")]
  names = {
    "cls": "cls",
    "cls_token": "cls",
    "mean": "mean",
    "mean_tokens": "mean",
  }
  if len(modes) != 1 or modes[0] not in names:
    raise errors.InputError(
      f"{folder / 'config.json'}: pooling by {modes}: only cls and mean are"
      " supported"
    )
  return names[modes[0]]


def trained(
  config: ml_collections.ConfigDict | None, where: workdir_lib.Workdir
) -> retriever_model.Towers:
  """The trained towers of a workdir, from the selected checkpoint.

  Only files of the workdir are used.  Workdirs of an older version lack sizes
  and tokenizer, which are then taken from the checkpoint that training started
  from.

  Args:
    config: sets how the towers are computed (`model_settings.FREE`), and must
      not contradict the training; None = everything as in training.
    where: the workdir.

  Raises:
    InputError: nothing was trained there, the config contradicts the training,
      or a file is damaged.
  """
  if config is not None:
    settled = model_settings.settle(config, where, starts=True)
  elif model_settings.of_towers(where) is None:
    settled = model_settings.of_workdir(where)
  else:
    settled = model_settings.settle(
      config_lib.base_config(), where, check=False, keep=()
    )
  folder = where.training / model_settings.FOLDER
  saved = where.training / "checkpoints"
  if model_files.is_sealed(folder):
    fix = model_settings.fix_of(folder)
    _, bert_config, backend = _open_sealed(folder, fix)
    step, params = checkpoints.load_params(saved)
  else:
    step, params = checkpoints.load_params(saved)
    bert_config, backend = _of_base(settled.model, where.training)
  model = retriever_model.assemble(settled.model, bert_config, backend, None)
  wanted = dict.fromkeys(model.encoder.names, hf_weights.shapes(bert_config))
  if jax.tree.map(np.shape, params) != wanted:
    raise errors.InputError(
      f"{saved / str(step)} does not hold {' and '.join(wanted)} towers of"
      f" {bert_config.num_hidden_layers} layers and width"
      f" {bert_config.hidden_size}, the sizes in {folder} or in"
      " config.model.checkpoint: a part of the workdir was replaced; restore"
      " it, or run `dpr-jax train --overwrite`"
    )
  return dataclasses.replace(model, params=params, step=step)


def _of_base(
  model: ml_collections.ConfigDict, training: pathlib.Path
) -> tuple[bert.BertConfig, tokenizers.Tokenizer]:
  """Sizes and tokenizer for a workdir of an older version."""
  logging.info(
    "%s was trained by an older version: taking sizes and tokenizer from"
    " config.model.checkpoint=%s",
    training,
    model.checkpoint,
  )
  folder, bert_config = retriever_model.load_sizes(model, model.checkpoint)
  return bert_config, retriever_model.checked_tokenizer(folder, bert_config)


def _open_sealed(
  folder: pathlib.Path, fix: str, *more: str
) -> tuple[dict[str, Any], bert.BertConfig, tokenizers.Tokenizer]:
  """Record, sizes and tokenizer of a folder that `store` wrote, checked.

  Args:
    folder: folder with a `dpr_jax.json`.
    fix: what to do about damage, for error messages.
    *more: names of further files to check.
  """
  record = model_files.read(folder, model_files.TOWERS, fix)
  files = ("config.json", "tokenizer.json", *more)
  model_files.check(folder, record, fix, files)
  sizes = bert.BertConfig.read(folder)
  return record, sizes, model_files.load_tokenizer(folder)


def from_sealed(folder: pathlib.Path, fix: str) -> retriever_model.Towers:
  """The encoder of a folder of ours, with its stored settings.

  Both towers of an export; of any other folder one for both kinds of text.

  Args:
    folder: folder with `dpr_jax.json` and weights.
    fix: what to do about damage, for error messages.

  Raises:
    InputError: a file is damaged or missing.
  """
  weights = model_files.WEIGHTS
  record = model_files.read(folder, model_files.TOWERS, fix)
  if "towers" in record:  # of an export: perhaps two, in folders below
    return exported_towers.load(folder, record, fix)
  record, sizes, backend = _open_sealed(folder, fix, weights)
  tensors = tensor_files.read_tensors(folder)
  prefix = exported_towers.tensor_prefix(tensors)
  tower = hf_weights.params_from_tensors(tensors, sizes, str(folder), prefix)
  config = config_lib.base_config()
  model_settings.take(config.model, record["model"])
  return retriever_model.assemble(config.model, sizes, backend, tower)


def before_training(
  config: ml_collections.ConfigDict | None,
  where: workdir_lib.Workdir,
  *,
  fresh: bool = False,
) -> retriever_model.Towers:
  """The towers that training starts from: "dense-start".

  The model is stored next to its vectors and loaded from there, so that the
  checkpoint is needed only once.

  Args:
    config: config of the experiment; None = the workdir's.
    where: the workdir.
    fresh: use the checkpoint, even if the model is stored.

  Raises:
    InputError: there is no such checkpoint, or the stored model is damaged.
  """
  folder = model_settings.start_folder(where)
  if model_files.is_sealed(folder) and not fresh:
    fix = model_settings.fix_of(folder)
    record = model_files.read(folder, model_files.TOWERS, fix)
    if config is None or model_settings.is_start_of(record, config):
      model = from_sealed(folder, fix)
      if config is None:
        return model
      encoder = dataclasses.replace(
        model.encoder,
        dtype=retriever_model.compute_dtype(config.model.compute_dtype),
        attention=retriever_model.attention(config.model.attention),
      )
      return dataclasses.replace(model, encoder=encoder)
  return retriever_model.start(
    model_settings.of_workdir(where) if config is None else config
  )


def store(
  model: retriever_model.Towers,
  config: ml_collections.ConfigDict,
  folder: pathlib.Path,
  *,
  weights: bool = False,
) -> None:
  """Writes sizes, tokenizer and settings, unless they are already there.

  Args:
    model: the towers.
    config: the config that they were built from.
    folder: `training/model`, or the folder of "dense-start".
    weights: write the parameters too, of towers that are still equal.

  Raises:
    DiskError: the folder cannot be written.
  """
  values = {
    "model": config_lib.sections(config, "model")["model"],
    "seed": config.seed,
  }
  if model_files.is_whole(folder, model_files.TOWERS, values):
    return
  with workdir_lib.replace_folder(folder, "export") as temporary:
    encoder, backend = model.encoder, model.tokenizer.backend
    model_files.write_sizes(temporary, encoder.config, backend)
    if weights:
      tower = next(iter(model.params.values()))
      tensors = hf_weights.tensors_from_params(tower, encoder.config)
      length = model.tokenizer.passage_length
      model_files.write_weights(temporary, tensors, length)
    model_files.seal(temporary, model_files.TOWERS, **values)
