"""Exports the trained towers to folders that other libraries load.

| format | folders | loaded by |
|---|---|---|
| hf | `question`, `passage`; shared: the folder itself | `AutoModel` |
| dpr | `question`, `passage` | `DPRQuestionEncoder`, `DPRContextEncoder` |
| sentence-transformers | the folder itself | `SentenceTransformer` |
| tevatron | `query_model`, `passage_model`; shared: itself | `DenseModel` |
| onnx | as sentence-transformers, with graphs as weights | ONNX Runtime |

Every export has the tokenizer, a model card (`model_card.py`) and a
`dpr_jax.json` with the settings of the training, by which
`checkpoint_layouts.py` reads it back.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections
from absl import logging

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.models import (
  checkpoint_layouts,
  dual_encoder,
  encoder_config,
  export_onnx,
  export_sentence_transformers,
  model_card,
  model_files,
  model_settings,
  retriever_model,
  stored_towers,
)
from dpr_jax.models import export_parts as parts

# Names of DPR's classes without "Encoder".
_DPR = {
  dual_encoder.QUESTION: "DPRQuestion",
  dual_encoder.PASSAGE: "DPRContext",
}


def export(
  config: ml_collections.ConfigDict,
  where: workdir_lib.Workdir,
  form: str | None,
  folder: pathlib.Path,
  model: str = "dense",
  *,
  int8: bool = False,
  name: str = "",
  evaluated: Sequence[model_card.Evaluated] = (),
) -> list[pathlib.Path]:
  """Writes the towers of a workdir.

  Args:
    config: config of the experiment; must not contradict the training.
    where: workdir of the experiment.
    form: one of `FORMATS`.
    folder: output folder; an earlier export in it is replaced.
    model: "dense" = after training, "dense-start" = before training.
    int8: with "onnx", also write graphs with int8 weights.
    name: name in the model card; "" = that of the folder.
    evaluated: measures of these towers, for the model card.

  Returns:
    The folders of the towers, question first; one where both are in it.

  Raises:
    InputError: an unknown format, or one that cannot express these towers; no
      checkpoint; a setting that contradicts the training; a folder with
      something else in it.
  """
  if form not in FORMATS:
    raise errors.InputError(
      f"--format={form}: must be one of {', '.join(FORMATS)} for the towers"
    )
  if int8 and form != "onnx":
    raise errors.InputError(f"--int8: needs --format=onnx, not {form}")
  config = model_settings.settle(config, where, starts=True)
  if model == "dense":
    loaded = stored_towers.trained(config, where)
  else:
    loaded = stored_towers.before_training(config, where)
  with workdir_lib.replace_folder(folder, "export") as temporary:
    if form == "onnx":
      towers = export_onnx.write(loaded, temporary, int8)
    else:
      towers = FORMATS[form](loaded, temporary)
    card = model_card.of_workdir(
      loaded,
      where,
      config.model,
      form,
      towers,
      name or folder.name,
      evaluated,
    )
    model_card.write(card, temporary)
    values = {"model": loaded.settings, "format_name": form}
    for path in dict.fromkeys(towers.values()):
      # Each tower alone is an encoder too, of both kinds of text.
      if path and form in ("hf", "dpr", "tevatron"):
        model_files.seal(temporary / path, model_files.TOWERS, **values)
    model_files.seal(temporary, model_files.TOWERS, **values)
  written = [folder / path for path in dict.fromkeys(towers.values())]
  logging.info("export: %s", ", ".join(map(str, written)))
  return written


def _hf(model: retriever_model.Towers, folder: pathlib.Path) -> dict[str, str]:
  _refuse_head(model, "hf")
  if model.encoder.shared:
    parts.write_tower(model, dual_encoder.PASSAGE, folder)
    return dict.fromkeys(parts.KINDS, "")
  for kind in parts.KINDS:
    parts.write_tower(model, kind, folder / kind)
  return {kind: kind for kind in parts.KINDS}


def _tevatron(
  model: retriever_model.Towers, folder: pathlib.Path
) -> dict[str, str]:
  _refuse_head(model, "tevatron")
  if model.encoder.shared:
    return _hf(model, folder)
  _refuse_pooling(model, "tevatron", "of two towers Tevatron reads")
  towers = {dual_encoder.QUESTION: "query_model"}
  towers[dual_encoder.PASSAGE] = "passage_model"
  for kind, name in towers.items():
    parts.write_tower(model, kind, folder / name)
  # Tevatron takes sizes and tokenizer from the folder above.
  parts.write_sizes(model, folder)
  model_files.write_tokenizer_config(folder, model.tokenizer.passage_length)
  return towers


def _dpr(model: retriever_model.Towers, folder: pathlib.Path) -> dict[str, str]:
  _refuse_head(model, "dpr")
  config = model.encoder.config
  if type(config) is not encoder_config.BertConfig:
    raise errors.InputError(
      f"--format=dpr: the DPR classes are BERTs, these towers {config.title}s;"
      " use --format=hf or sentence-transformers"
    )
  _refuse_pooling(model, "dpr", "the DPR classes have")
  for kind in parts.KINDS:
    prefix, name = checkpoint_layouts.DPR_PREFIXES[kind], _DPR[kind]
    target = folder / kind
    target.mkdir()
    sizes = {"architectures": [f"{name}Encoder"], "projection_dim": 0}
    parts.write_sizes(model, target, model_type="dpr", **sizes)
    tokenizer = f"{name}EncoderTokenizer"
    parts.write_weights(model, kind, target, prefix, tokenizer_class=tokenizer)
  return {kind: kind for kind in parts.KINDS}


def _refuse_pooling(
  model: retriever_model.Towers, form: str, whose: str
) -> None:
  encoder = model.encoder
  if encoder.pooling != "cls" or encoder.normalize:
    vectors = " unit vectors" if encoder.normalize else " vectors"
    raise errors.InputError(
      f"--format={form}: these towers make{vectors} by {encoder.pooling}"
      f" pooling, but {whose} cls without normalisation only; use"
      " --format=sentence-transformers"
    )


def _refuse_head(model: retriever_model.Towers, form: str) -> None:
  encoder, what = model.encoder, ""
  if encoder.dense:
    what = f"have {len(encoder.dense)} dense layers after the pooling"
  elif encoder.question_skip or encoder.passage_skip:
    what = "do not pool their prefix"
  if what:
    raise errors.InputError(
      f"--format={form}: these towers {what}, which this format cannot hold;"
      " use --format=sentence-transformers"
    )


FORMATS: dict[str, Callable[[Any, pathlib.Path], dict[str, str]] | None] = {
  "hf": _hf,
  "dpr": _dpr,
  "sentence-transformers": export_sentence_transformers.write,
  "tevatron": _tevatron,
  "onnx": None,  # has an option of its own
}
