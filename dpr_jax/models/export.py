"""Exports the trained towers to folders that other libraries load.

Format `hf` is for `transformers.AutoModel`; `sentence-transformers` adds
pooling and normalisation.  Two towers become two folders, `question` and
`passage`; a shared tower becomes the folder itself.
"""

import pathlib
from typing import Any

import ml_collections
from absl import logging

from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.models import (
  dual_encoder,
  hf_weights,
  model_files,
  model_settings,
  retriever_model,
  stored_towers,
)

FORMATS = ("hf", "sentence-transformers")
_KIND = "sentence_transformers.models."


def export(
  config: ml_collections.ConfigDict,
  where: workdir_lib.Workdir,
  form: str | None,
  folder: pathlib.Path,
  model: str = "dense",
) -> list[pathlib.Path]:
  """Writes the towers of a workdir.

  Args:
    config: config of the experiment; must not contradict the training.
    where: workdir of the experiment.
    form: one of `FORMATS`.
    folder: output folder; an earlier export in it is replaced.
    model: "dense" = after training, "dense-start" = before training.

  Returns:
    The folders that can be loaded.

  Raises:
    InputError: an unknown format, no checkpoint, a setting that contradicts
      the training, or a folder with something else in it.
  """
  if form not in FORMATS:
    raise errors.InputError(
      f"--format={form}: must be {' or '.join(FORMATS)} for the towers"
    )
  config = model_settings.settle(config, where, starts=True)
  if model == "dense":
    loaded = stored_towers.trained(config, where)
  else:
    loaded = stored_towers.before_training(config, where)
  values = {"model": stored_towers.recorded(loaded, config)}
  written = []
  with workdir_lib.replace_folder(folder, "export") as temporary:
    for name, params in loaded.params.items():
      shared = name == dual_encoder.SHARED
      target = temporary if shared else temporary / name
      target.mkdir(exist_ok=True)
      _write(loaded, params, name, form, target)
      model_files.seal(target, model_files.TOWERS, **values)
      written.append(folder if shared else folder / name)
    model_files.seal(temporary, model_files.TOWERS, **values)
  logging.info("export: %s", ", ".join(map(str, written)))
  return written


def _write(
  model: retriever_model.Towers,
  params: Any,
  name: str,
  form: str,
  folder: pathlib.Path,
) -> None:
  encoder, tokenizer = model.encoder, model.tokenizer
  question = name == dual_encoder.QUESTION
  length = tokenizer.question_length if question else tokenizer.passage_length
  model_files.write_sizes(folder, encoder.config, tokenizer.backend)
  model_files.write_weights(
    folder, hf_weights.tensors_from_params(params, encoder.config), length
  )
  if form != "sentence-transformers":
    return
  kinds = ["Transformer", "Pooling", *["Normalize"] * encoder.normalize]
  paths = ["", *(f"{n}_{kind}" for n, kind in enumerate(kinds) if n)]
  workdir_lib.write_json(
    folder / "modules.json",
    [
      {"idx": n, "name": str(n), "path": path, "type": _KIND + kind}
      for n, (path, kind) in enumerate(zip(paths, kinds, strict=True))
    ],
  )
  workdir_lib.write_json(
    folder / "sentence_bert_config.json",
    {"max_seq_length": length, "do_lower_case": False},
  )
  for path in paths[1:]:
    (folder / path).mkdir()
  modes = {"cls": "cls_token", "mean": "mean_tokens"}
  workdir_lib.write_json(
    folder / paths[1] / "config.json",
    {"word_embedding_dimension": encoder.config.hidden_size}
    | {
      f"pooling_mode_{mode}": mode == modes[encoder.pooling]
      for mode in ("cls_token", "mean_tokens", "max_tokens")
    },
  )
