"""Checks the reader's settings, see `settings_checks`."""

import math
import pathlib
from typing import Any

from dpr_jax.cli import settings_files
from dpr_jax.cli.settings_call import Call
from dpr_jax.core import errors, setting_rules
from dpr_jax.core.settings_table import value_of

_DENSE = {"dense", "exact", "hybrid"}  # methods that use the vectors of "dense"


def _start(config: Any, call: Call) -> None:
  """Checks the checkpoint that the reader's training starts from."""
  reader = config.reader
  setting_rules.reader_source(reader.train)
  setting_rules.reader_lengths(
    reader.length, reader.question_length, reader.overlap
  )
  if call.is_trained("train-reader"):
    return
  keys = ("reader.checkpoint", "model.passage_checkpoint", "model.checkpoint")
  key = next(key for key in keys if value_of(config, key) or key == keys[-1])
  name = value_of(config, key)
  setting_rules.random_sizes(config.model, name)
  where = pathlib.Path(reader.checkpoint).expanduser()
  if reader.checkpoint and (where / "reader").is_dir():  # a workdir
    return
  sizes = settings_files.checkpoint(key, config.model, name)
  positions = sizes.get("max_position_embeddings", math.inf)
  if reader.length > positions:
    raise errors.InputError(
      f"config.reader.length={reader.length}: checkpoint {name} has"
      f" {positions} positions"
    )


def _training(config: Any, call: Call) -> None:
  reader = config.reader
  steps = reader.max_steps or math.inf
  setting_rules.profile_steps(
    "reader.profile_steps", reader.profile_steps, steps
  )
  if reader.max_steps:
    setting_rules.below_steps(
      "reader.warmup_steps", reader.warmup_steps, reader.max_steps
    )
  inputs = reader.batch_size * reader.passages
  if call.cores and inputs % call.cores:
    raise errors.InputError(
      f"config.reader.batch_size={reader.batch_size} questions of"
      f" config.reader.passages={reader.passages}: must together be a multiple"
      f" of the {call.cores} devices"
    )


def _files(config: Any, call: Call) -> None:
  """Checks the reader's training data: files, or results to be retrieved."""
  reader = config.reader
  names = {"train": reader.train}
  if reader.dev_questions > 0:
    names["dev"] = reader.dev or "results"
  for role, name in names.items():
    if name != "results":
      settings_files.readable(
        f"reader.{role}", name, ": give a file, or results"
      )
  if not call.whole:
    return
  if config.data.train == "none" and names["train"] == "results":
    raise errors.InputError(
      "config.reader.train='results': config.data.train is 'none', so that"
      " there are no training questions to retrieve for: give a file"
    )
  methods = tuple(call.methods or config.retrieve.methods)
  if names.get("dev") == "results" and reader.method not in methods:
    raise errors.InputError(
      f"config.reader.method={reader.method!r}: not retrieved for the dev"
      f" questions: config.retrieve.methods is {methods}; add the method there,"
      " or set config.reader.dev to a file, or config.reader.dev_questions=0"
    )
  needs = reader.method in _DENSE and names["train"] == "results"
  if needs and not _DENSE & set(config.retrieve.methods):
    raise errors.InputError(
      f"config.reader.method={reader.method!r}: needs an embedded corpus, and"
      f" config.retrieve.methods is {tuple(config.retrieve.methods)}: add"
      f" {reader.method} there"
    )


RULES = (_start, _training, _files)
