"""Loads and stores the towers of a workdir.

`store` writes sizes, tokenizer and resolved settings next to the parameters;
`trained` and `before_training` load the towers of a workdir, without the
checkpoint that training started from.  Where nothing is trained, `trained`
gives the pretrained model.  Embedding and search get their model
here.
"""

import copy
import dataclasses
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
from dpr_jax.models import (
  auto_settings,
  bert,
  checkpoint_files,
  checkpoints,
  dual_encoder,
  hf_weights,
  model_files,
  model_settings,
  pooling_layers,
  retriever_model,
  tensor_files,
  tower_sources,
)

_HEAD = "head"  # key of a `pooling_layers.Head` in `dpr_jax.json`


def trained(
  config: ml_collections.ConfigDict | None,
  where: workdir_lib.Workdir,
  *,
  params: bool = True,
) -> retriever_model.Towers:
  """The trained towers of a workdir, from the selected checkpoint.

  Only files of the workdir are used.  Workdirs of an older version lack sizes
  and tokenizer, which are then taken from the checkpoint that training started
  from.  In a workdir without a training they are the pretrained towers, if
  those are stored beside the vectors of "dense", or with `data.train=none`.

  Args:
    config: sets how the towers are computed (`model_settings.FREE`), and must
      not contradict the training; None = everything as in training.
    where: the workdir.
    params: load the parameters; False = None stands for them.

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
  if not checkpoint_files.steps_there(saved) and (
    settled.data.train == "none"
    or (config is None and model_settings.is_untrained(where))
  ):
    return before_training(config, where, model="dense")
  if model_files.is_sealed(folder):
    fix = model_settings.fix_of(folder)
    record, bert_config, backend = _open_sealed(folder, fix)
    head = pooling_layers.Head.of(record.get(_HEAD, {}))
  else:
    checkpoints.check_any(saved)
    bert_config, backend, head = _of_base(settled, where.training)
  model = retriever_model.assemble(
    settled.model, bert_config, backend, head, None
  )
  if not params:
    return model
  step, tree = checkpoints.load_params(saved)
  shapes = hf_weights.shapes(bert_config) | head.shapes()
  wanted = dict.fromkeys(model.encoder.names, shapes)
  if jax.tree.map(np.shape, tree) != wanted:
    raise errors.InputError(
      f"{saved / str(step)} does not hold {' and '.join(wanted)} towers of"
      f" {bert_config.num_hidden_layers} layers and width"
      f" {bert_config.hidden_size}, the sizes in {folder} or in"
      " config.model.checkpoint: a part of the workdir was replaced; restore"
      " it, or run `dpr-jax train --overwrite`"
    )
  return dataclasses.replace(model, params=tree, step=step)


def _of_base(
  config: ml_collections.ConfigDict, training: pathlib.Path
) -> tuple[bert.BertConfig, tokenizers.Tokenizer, pooling_layers.Head]:
  """Sizes, tokenizer and head for a workdir of an older version.

  Settings of `config.model` that are "auto" become those of the checkpoint.
  """
  logging.info(
    "%s was trained by an older version: taking sizes and tokenizer from"
    " config.model.checkpoint=%s",
    training,
    config.model.checkpoint,
  )
  source = tower_sources.of_model(config.model, config.seed)
  model_settings.take(config.model, source.resolved(config.model))
  return source.sizes, source.tokenizer(), source.head


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
  """The towers that `store` wrote with their weights and settings.

  Args:
    folder: folder with `dpr_jax.json` and weights.
    fix: what to do about damage, for error messages.

  Raises:
    InputError: a file is damaged or missing.
  """
  weights = model_files.WEIGHTS
  record, sizes, backend = _open_sealed(folder, fix, weights)
  head = pooling_layers.Head.of(record.get(_HEAD, {}))
  tensors = tensor_files.read_tensors(folder)
  names = [
    name
    for name in (dual_encoder.QUESTION, dual_encoder.PASSAGE)
    if any(each.startswith(f"{name}.") for each in tensors)
  ]
  parts = [
    tensor_files.without_prefix(tensors, f"{name}.") for name in names
  ] or [tensors]
  trees = [_tree(part, sizes, head, str(folder)) for part in parts]
  config = config_lib.base_config()
  model_settings.take(config.model, record["model"])
  first, second = trees if len(trees) == 2 else (trees[0], None)
  return retriever_model.assemble(
    config.model, sizes, backend, head, (first, second)
  )


def _tree(
  tensors: dict[str, Any],
  sizes: bert.BertConfig,
  head: pooling_layers.Head,
  source: str,
) -> dict[str, Any]:
  """Parameters of a tower from what `_tensors` makes of them."""
  tensors = dict(tensors)
  dense = {
    name: {key: tensors.pop(f"{name}.{key}") for key in shapes}
    for name, shapes in head.shapes().items()
  }
  return hf_weights.params_from_tensors(tensors, sizes, source) | dense


def _tensors(
  tower: dict[str, Any], encoder: dual_encoder.DualEncoder
) -> dict[str, np.ndarray]:
  """Tensors of a tower: the encoder's by Hugging Face name, dense layers."""
  tensors = hf_weights.tensors_from_params(tower, encoder.config)
  for number in range(len(encoder.dense)):
    name = pooling_layers.dense_name(number)
    tensors |= {
      f"{name}.{key}": np.asarray(value, np.float32)
      for key, value in tower[name].items()
    }
  return tensors


def before_training(
  config: ml_collections.ConfigDict | None,
  where: workdir_lib.Workdir,
  *,
  fresh: bool = False,
  model: str = "dense-start",
) -> retriever_model.Towers:
  """The towers that training starts from.

  The model is stored next to its vectors and loaded from there, so that the
  checkpoint is needed only once.

  Args:
    config: config of the experiment; None = the workdir's.
    where: the workdir.
    fresh: use the checkpoint, even if the model is stored.
    model: name of the vectors beside which it is stored; "dense" in a workdir
      without a training.

  Raises:
    InputError: there is no such checkpoint, or the stored model is damaged.
  """
  folder = model_settings.start_folder(where, model)
  if model_files.is_sealed(folder) and not fresh:
    fix = model_settings.fix_of(folder)
    record = model_files.read(folder, model_files.TOWERS, fix)
    if config is None or model_settings.is_start_of(record, config):
      towers = from_sealed(folder, fix)
      if config is None:
        return towers
      encoder = dataclasses.replace(
        towers.encoder,
        dtype=retriever_model.compute_dtype(config.model.compute_dtype),
        attention=retriever_model.attention(config.model.attention),
      )
      return dataclasses.replace(towers, encoder=encoder)
  return retriever_model.start(
    model_settings.of_workdir(where) if config is None else config
  )


def with_resolved(
  config: ml_collections.ConfigDict, where: workdir_lib.Workdir | None
) -> ml_collections.ConfigDict:
  """A copy of a config with concrete settings in place of "auto".

  They are those of the training in the workdir, if it started from the same
  checkpoint, else what the checkpoint says.  A config whose checkpoint cannot
  be opened is returned as it is: whoever loads it reports why.

  Args:
    config: config of the experiment.
    where: the workdir; None = its training does not count.
  """
  model = config.model
  if not any(auto_settings.is_auto(k, model[k]) for k in auto_settings.AUTO):
    return config
  config = copy.deepcopy(config)
  try:
    there = None if where is None else model_settings.of_towers(where)
    if there and model_settings.same_checkpoint(there, model):
      values = {
        key: there[key]
        for key in auto_settings.AUTO
        if auto_settings.is_auto(key, model[key]) and key in there
      }
      model_settings.take(config.model, values)
      return config
    return retriever_model.resolved(config)
  except errors.InputError:
    return config


def recorded(
  model: retriever_model.Towers, config: ml_collections.ConfigDict
) -> dict[str, Any]:
  """Section `model` of a config as the towers resolve it, to be stored."""
  return config_lib.sections(config, "model")["model"] | model.settings


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
    folder: `training/model`, or the folder beside the vectors.
    weights: write the parameters too; once, of towers that are still equal.

  Raises:
    DiskError: the folder cannot be written.
  """
  values = {"model": recorded(model, config), "seed": config.seed}
  if head := model.head.record():
    values[_HEAD] = head
  if model_files.is_whole(folder, model_files.TOWERS, values):
    return
  with workdir_lib.replace_folder(folder, "export") as temporary:
    encoder, backend = model.encoder, model.tokenizer.backend
    model_files.write_sizes(temporary, encoder.config, backend)
    if weights:
      towers = {
        name: _tensors(tower, encoder) for name, tower in model.params.items()
      }
      first, *others = towers.values()
      if all(_equal(first, other) for other in others):
        tensors = first
      else:
        tensors = {
          f"{name}.{key}": value
          for name, tower in towers.items()
          for key, value in tower.items()
        }
      length = model.tokenizer.passage_length
      model_files.write_weights(temporary, tensors, length)
    model_files.seal(temporary, model_files.TOWERS, **values)


def _equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
  return all(np.array_equal(value, other[name]) for name, value in one.items())
