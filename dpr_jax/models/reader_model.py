"""Builds, loads and stores a reader: structure, parameters and tokenizer.

`start` builds the reader at the beginning of training: a pretrained encoder of
any layout with fresh heads, a Hugging Face reader (`DPRReader`,
`BertForQuestionAnswering`), or one that `dpr-jax train-reader` wrote into a
workdir.  `store` writes sizes and tokenizer next to the parameters, `trained`
loads a trained reader, `from_folder` loads a finished one; `reader_export`
writes one for transformers.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import reader_tokenization
from dpr_jax.models import (
  bert,
  checkpoint_sources,
  checkpoints,
  hf_weights,
  model_files,
  model_settings,
  original_dpr_files,
  retriever_model,
  span_reader,
  tensor_files,
  tower_sources,
)

STAGE = "train-reader"
_OLD_SETTINGS = "dpr_jax_reader.json"  # in folders exported by version 0.1
DPR = "span_predictor."  # prefix of a DPRReader's tensors
DPR_ENCODER = f"{DPR}encoder.bert_model."  # of its BERT's
# Our head -> Hugging Face's name without prefix.
HEADS = {"span": "qa_outputs", "rank": "qa_classifier"}


@dataclasses.dataclass(frozen=True)
class Reader:
  """A span reader with everything that it needs to read text.

  Attributes:
    structure: sizes and heads.
    params: parameters, in host memory.
    tokenizer: texts to inputs.
    ranks: the rank head was trained; False = it is ignored, and passages are
      ranked by their best span score.
    step: training steps of the parameters; 0 = not trained here.
  """

  structure: span_reader.SpanReader
  params: Any
  tokenizer: reader_tokenization.ReaderTokenizer
  ranks: bool
  step: int = 0

  @functools.cached_property
  def fingerprint(self) -> str:
    """sha256 of weights, structure and text format: all a score depends on."""
    return workdir_lib.fingerprint(
      [
        retriever_model.weights_digest(self.params),
        repr(dataclasses.asdict(self.structure.config)),
        self.tokenizer.text_format(),
        self.tokenizer.backend.to_str(),
        self.ranks,
      ]
    )


def start(config: ml_collections.ConfigDict) -> Reader:
  """The reader before training, by `config.reader` and `config.model`."""
  settings = config.reader
  model = config.model
  name = settings.checkpoint or model.passage_checkpoint or model.checkpoint
  where = workdir_lib.Workdir(name)
  if settings.checkpoint and (where.reader / workdir_lib.MANIFEST).exists():
    reader = dataclasses.replace(trained(None, where), step=0)
  else:
    reader = _pretrained(config, name)
  sizes = reader.structure.config
  bert_config = retriever_model.with_dropout(sizes, settings.dropout)
  layout = settings.layout
  tokenizer = dataclasses.replace(
    reader.tokenizer,
    length=settings.length,
    question_length=settings.question_length,
    overlap=settings.overlap,
    layout=reader.tokenizer.layout if layout == "auto" else layout,
  )
  if settings.length > bert_config.max_position_embeddings:
    raise errors.InputError(
      f"config.reader.length={settings.length}: checkpoint {name} has"
      f" {bert_config.max_position_embeddings} positions"
    )
  structure = span_reader.SpanReader(
    bert_config,
    dtype=retriever_model.compute_dtype(config.model.compute_dtype),
    chunk_size=settings.chunk_size,
    remat=settings.remat,
    attention=retriever_model.attention(config.model.attention),
  )
  return dataclasses.replace(reader, structure=structure, tokenizer=tokenizer)


def _pretrained(config: ml_collections.ConfigDict, name: str) -> Reader:
  """A reader of another library, or an encoder with fresh heads."""
  folder = _reader_folder(name)
  if folder is not None:
    logging.info("loading the pretrained reader %s from %s", name, folder)
    bert_config, tower, heads, layout, folder = load_tensors(folder)
    backend = tower_sources.checked_tokenizer(folder, bert_config)
  else:
    bert_config, tower, backend = tower_sources.passage_tower(
      name, config.model, config.seed
    )
    heads, layout = None, "dpr"
  structure = span_reader.SpanReader(bert_config)
  own = heads or {}
  params = {"bert": tower} | structure.init_heads(config.seed) | own
  length = min(350, bert_config.max_position_embeddings)
  tokenizer = reader_tokenization.ReaderTokenizer(
    backend, length, min(64, length // 4), length // 4, layout
  )
  return Reader(structure, params, tokenizer, ranks="rank" in own)


def _reader_folder(name: str) -> pathlib.Path | None:
  """Folder or file of a checkpoint with a reader; None = it is an encoder."""
  if name == "random" or tower_sources.workdir_of(name) is not None:
    return None
  path = checkpoint_sources.checkpoint_path(name)
  if original_dpr_files.reader_in(path):
    return path
  if (path / "modules.json").exists() or not (path / "config.json").is_file():
    return None
  names = tensor_files.tensor_names(path)
  heads = (DPR, *(f"{head}." for head in HEADS.values()))
  return path if any(each.startswith(heads) for each in names) else None


def load_tensors(
  folder: pathlib.Path,
) -> tuple[
  bert.BertConfig, dict[str, Any], dict[str, Any] | None, str, pathlib.Path
]:
  """Loads a BERT folder, or a reader of the original DPR, with its heads.

  Returns:
    (config, our parameters of the BERT, heads by our names or None, layout,
    folder of the tokenizer).  A reader of DPR has both heads, a
    `BertForQuestionAnswering` the span head.
  """
  original = original_dpr_files.reader_in(folder)
  if original:
    files = original_dpr_files.read_reader(original)
    folder, config, tensors = files.folder, files.config, files.tensors()
  else:
    config = bert.BertConfig.read(folder)
    tensors = tensor_files.read_tensors(folder)
  is_dpr = any(name.startswith(DPR) for name in tensors)
  heads, tensors = split_heads(tensors, config, str(folder))
  if is_dpr and len(heads) < len(HEADS):
    raise errors.InputError(
      f"{folder}: a DPRReader without {DPR}qa_outputs or qa_classifier: the"
      " weights are incomplete; copy them again"
    )
  tower = hf_weights.params_from_tensors(
    tensors,
    config,
    str(folder),
    prefix=DPR_ENCODER if is_dpr else None,
  )
  layout = "dpr-hf" if is_dpr else "squad" if heads else "dpr"
  return config, tower, heads or None, "dpr" if original else layout, folder


def split_heads(
  tensors: Mapping[str, np.ndarray], config: bert.BertConfig, source: str
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """The heads among Hugging Face's tensors, by our names, and the others.

  Raises:
    InputError: a head has another shape; the message names `source`.
  """
  rest, heads = dict(tensors), {}
  stem = DPR if any(name.startswith(DPR) for name in rest) else ""
  for ours, theirs in HEADS.items():
    kernel = rest.pop(f"{stem}{theirs}.weight", None)
    bias = rest.pop(f"{stem}{theirs}.bias", None)
    if kernel is None:
      continue
    shape = (2 if ours == "span" else 1, config.hidden_size)
    if kernel.shape != shape or bias is None or bias.shape != shape[:1]:
      raise errors.InputError(
        f"{source}: {stem}{theirs}.weight is {kernel.shape}, not {shape}, or"
        " its bias is missing or misshapen"
      )
    heads[ours] = {
      "kernel": np.asarray(kernel, np.float32).T,
      "bias": np.asarray(bias, np.float32),
    }
  return heads, rest


def from_folder(folder: str | os.PathLike) -> Reader:
  """Loads a finished reader: a workdir's, a `DPRReader` or one for SQuAD.

  Raises:
    InputError: the folder holds no reader.
  """
  folder = workdir_lib.user_path(folder)
  where = workdir_lib.Workdir(folder)
  if (where.reader / workdir_lib.MANIFEST).exists():
    return trained(None, where)
  original = original_dpr_files.reader_in(folder)
  if not original and not (folder / "config.json").exists():
    raise errors.InputError(
      f"{folder} holds no reader: give a workdir where `dpr-jax train-reader`"
      " has run, or a folder of a DPRReader or BertForQuestionAnswering"
    )
  record: dict[str, Any] = {}
  if model_files.is_sealed(folder):
    fix = "remove that file to use the other files without its settings"
    record = model_files.read(folder, model_files.READER, fix)
    model_files.check(folder, record, fix, tuple(record["files"]))
  bert_config, tower, heads, layout, place = load_tensors(folder)
  if heads is None:
    raise errors.InputError(
      f"{folder} holds no reader: its weights have neither qa_outputs nor"
      " span_predictor.qa_outputs; train one with `dpr-jax train-reader`"
    )
  structure = span_reader.SpanReader(
    bert_config, dtype=retriever_model.compute_dtype("auto")
  )
  params = {"bert": tower} | structure.init_heads(0) | heads
  length = min(350, bert_config.max_position_embeddings)
  settings = {
    "length": length,
    "question_length": min(64, length // 4),
    "overlap": length // 4,
    "layout": layout,
    "ranks": "rank" in heads,
  }
  if record:
    settings |= record["text_format"] | {"ranks": record["ranks"]}
  elif (folder / _OLD_SETTINGS).exists():
    settings |= workdir_lib.read_json(folder / _OLD_SETTINGS)
  ranks = bool(settings.pop("ranks"))
  tokenizer = reader_tokenization.ReaderTokenizer(
    tower_sources.checked_tokenizer(place, bert_config), **settings
  )
  return Reader(structure, params, tokenizer, ranks)


def store(
  reader: Reader, config: ml_collections.ConfigDict, folder: pathlib.Path
) -> None:
  """Writes sizes, tokenizer and settings, unless they are already there.

  Args:
    reader: the reader; its parameters are not written.
    config: the config that it was built from.
    folder: `reader/model`.

  Raises:
    DiskError: the folder cannot be written.
  """
  values = {
    **config_lib.sections(config, "model", "reader"),
    "text_format": reader.tokenizer.text_format(),
  }
  if model_files.is_whole(folder, model_files.READER, values):
    return
  with workdir_lib.replace_folder(folder, "export") as temporary:
    sizes, backend = reader.structure.config, reader.tokenizer.backend
    model_files.write_sizes(temporary, sizes, backend)
    model_files.seal(temporary, model_files.READER, **values)


def trained(
  config: ml_collections.ConfigDict | None, where: workdir_lib.Workdir
) -> Reader:
  """The reader that `train-reader` wrote into a workdir.

  Only files of the workdir are used.  Workdirs of an older version lack sizes
  and tokenizer, which are then taken from the checkpoint that training started
  from.

  Args:
    config: sets how the reader is computed (`model_settings.FREE`), and must
      not contradict the training; None = everything as in training.
    where: the workdir.

  Raises:
    InputError: no reader was trained there, the config contradicts the
      training, or a file is damaged.
  """
  manifest = workdir_lib.read_manifest(where.reader, STAGE)
  if config is not None:
    config = model_settings.settle(config, where, reads=True, starts=True)
  folder = where.reader / model_settings.FOLDER
  if model_files.is_sealed(folder):
    reader = _from_sealed(folder, config)
  else:
    logging.info(
      "%s was trained by an older version: taking sizes and tokenizer from the"
      " checkpoint that it started from",
      where.reader,
    )
    config = config or model_settings.of_workdir(where)
    config.reader.checkpoint = manifest["config"]["reader"]["checkpoint"]
    config.model.checkpoint = manifest["config"]["checkpoint"]
    reader = start(config)
  saved = where.reader / "checkpoints"
  step, params = checkpoints.load_params(saved)
  wanted = {
    "bert": hf_weights.shapes(reader.structure.config),
    **jax.tree.map(np.shape, reader.structure.init_heads(0)),
  }
  if jax.tree.map(np.shape, params) != wanted:
    raise errors.InputError(
      f"{saved / str(step)} holds a reader of other sizes than those in"
      f" {folder}, or of the checkpoint that it started from: a part of the"
      " workdir was replaced; restore it, or run `dpr-jax train-reader"
      " --overwrite`"
    )
  return dataclasses.replace(
    reader, params=params, step=step, ranks=manifest["ranks"]
  )


def _from_sealed(
  folder: pathlib.Path, config: ml_collections.ConfigDict | None
) -> Reader:
  """A reader without parameters, from the files that `store` has written.

  Args:
    folder: `reader/model`.
    config: sets how the reader is computed; None = as in training.
  """
  fix = model_settings.fix_of(folder)
  record = model_files.read(folder, model_files.READER, fix)
  model_files.check(folder, record, fix)
  computed = record["model"] if config is None else config.model
  structure = span_reader.SpanReader(
    bert.BertConfig.read(folder),
    dtype=retriever_model.compute_dtype(computed["compute_dtype"]),
    attention=retriever_model.attention(computed["attention"]),
  )
  backend = model_files.load_tokenizer(folder)
  tokenizer = reader_tokenization.ReaderTokenizer(
    backend, **record["text_format"]
  )
  return Reader(structure, None, tokenizer, ranks=False)
