"""Exports a reader to a folder that transformers loads.

| format | class | heads |
|---|---|---|
| dpr-reader | `DPRReader` | spans and passages |
| question-answering | `BertForQuestionAnswering`, ... | spans |
"""

import os

import numpy as np

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.models import bert, hf_weights, model_files, reader_model

FORMATS = ("dpr-reader", "question-answering")


def _exported_class(config: bert.BertConfig, is_dpr: bool) -> str:
  """Class of transformers for an exported reader.

  Raises:
    InputError: transformers has none with these heads.
  """
  if is_dpr and config.model_type != "bert":
    raise errors.InputError(
      f"--format=dpr-reader: a DPRReader holds a BERT, this reader"
      f" a {config.title}: use --format=question-answering"
    )
  if config.pre_norm:
    raise errors.InputError(
      f"--format=question-answering: transformers puts a dense layer between"
      f" {config.title} and the span scores, which this reader has not"
    )
  if is_dpr:
    return "DPRReader"
  return config.architecture.replace("Model", "ForQuestionAnswering")


def export(
  reader: reader_model.Reader, folder: str | os.PathLike, kind: str
) -> None:
  """Writes a folder that transformers loads, completely or not at all.

  Args:
    reader: the reader to write.
    folder: output folder; an earlier export in it is replaced.
    kind: "dpr-reader" (`DPRReader`) or "question-answering"
      (`BertForQuestionAnswering` or that of another encoder, without the rank
      head).

  Raises:
    InputError: an unknown kind, one that cannot hold this encoder, or the
      folder holds something else.
  """
  if kind not in FORMATS:
    raise errors.InputError(
      f"--format={kind}: must be one of {', '.join(FORMATS)}"
    )
  folder = workdir_lib.user_path(folder)
  config, backend = reader.structure.config, reader.tokenizer.backend
  is_dpr = kind == "dpr-reader"
  architecture = _exported_class(config, is_dpr)
  prefix = reader_model.DPR_ENCODER if is_dpr else config.prefix
  tensors = hf_weights.tensors_from_params(
    reader.params["bert"], config, prefix
  )
  for ours, theirs in reader_model.HEADS.items():
    if is_dpr or ours == "span":
      stem = f"{reader_model.DPR if is_dpr else ''}{theirs}"
      head = reader.params[ours]
      tensors[f"{stem}.weight"] = np.ascontiguousarray(
        np.asarray(head["kernel"], np.float32).T
      )
      tensors[f"{stem}.bias"] = np.asarray(head["bias"], np.float32)
  more = {"model_type": "dpr", "projection_dim": 0} if is_dpr else {}
  with workdir_lib.replace_folder(folder, "export") as temporary:
    model_files.write_sizes(
      temporary, config, backend, architectures=[architecture], **more
    )
    positions = config.max_position_embeddings
    model_files.write_weights(
      temporary, tensors, positions, token_types=config.has_segments
    )
    model_files.seal(
      temporary,
      model_files.READER,
      text_format=reader.tokenizer.text_format(),
      ranks=reader.ranks and is_dpr,
    )
