"""Checks all settings that a command needs, within the first second.

Input: the config and the `Call`.  Output: nothing, or an `InputError` whose one
line names the setting, its value and the fix.  `run` checks the settings of all
its stages before the first one starts.  JAX is never imported here; FAISS is
imported if an index will be built, which takes a quarter of a second.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from dpr_jax.cli import settings_files, settings_reader
from dpr_jax.cli.settings_call import Call
from dpr_jax.cli.settings_hints import closest, did_you_mean, settings_like
from dpr_jax.core import engine_addresses, errors, setting_rules
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.core.settings_retrieval import METHODS
from dpr_jax.core.settings_table import (
  ALL,
  BY_KEY,
  REMOVED,
  SECTIONS,
  removed,
  value_of,
)

_MOST = 3  # most bad values named in one line
_ANY_WIDTH = 768  # dimension to try if that of the vectors is not known


def check(config: Any, call: Call) -> None:
  """Checks values, contradictions and files.

  Args:
    config: the experiment.
    call: the call that is about to start.

  Raises:
    InputError: the first error found; of several bad values, the first three.
  """
  check_keys(config)
  check_values(config, call)
  for name in call.stages_of(config):
    for rule in _RULES.get(name, ()) if call.is_stage else ():
      rule(config, call)


def check_keys(config: Any) -> None:
  """`InputError` if a config lacks a setting or has an unknown one."""
  found = set()
  for section, values in config.items():
    inner = values.keys() if isinstance(values, Mapping | ConfigDict) else ()
    found |= {f"{section}.{name}" for name in inner} or {section}
  for key in sorted(found - set(BY_KEY)):
    if key in SECTIONS:
      raise errors.InputError(
        f"config.{key}={config[key]!r}: it is a section: leave it as it is, and"
        " change settings of it"
      )
    if key in REMOVED:
      raise errors.InputError(removed(key))
    names = [f"config.{each}" for each in settings_like(key)]
    raise errors.InputError(
      f"config.{key}: there is no such setting{did_you_mean(names)}"
    )
  for key in BY_KEY:
    if key not in found:
      raise errors.InputError(
        f"config.{key} is missing: a config starts from"
        " configuration.base_config()"
      )


def check_values(config: Any, call: Call) -> None:
  """Checks type, range and choices of settings that are read or were typed.

  Raises:
    InputError: the first three bad values and the number of the others.
  """
  stages = {*call.stages_of(config)}
  wrong = []
  for setting in ALL:
    if setting.key in call.typed or stages & set(setting.stages):
      value = value_of(config, setting.key)
      if reason := setting.wrong(value):
        if isinstance(value, str):
          reason += did_you_mean(closest(value, filter(None, setting.choices)))
        wrong.append(f"config.{setting.key}={value!r}: {reason}")
  if wrong:
    more = len(wrong) - _MOST
    end = f"; and {more} more" if more > 0 else ""
    raise errors.InputError("; ".join(wrong[:_MOST]) + end)
  for method in call.methods:
    if method not in METHODS and _retrieves(call):
      raise errors.InputError(
        f"--method={method}: must be one of {', '.join(METHODS)}"
        f"{did_you_mean(closest(method, METHODS))}"
      )


def _retrieves(call: Call) -> bool:
  return call.whole or call.command == "retrieve"


def _negatives(config: Any, call: Call) -> None:
  """`InputError` if a file of mined negatives is missing."""
  from dpr_jax.data import mined_negatives, negative_mixture

  mixture = negative_mixture.Mixture.of(config.train)
  if config.train.rounds > 1:  # the run mines the others itself
    mixture = mixture.of_first_round()
  elsewhere = config.train.negatives_from
  for kind in mixture.kinds:
    where = workdir_lib.Workdir(elsewhere) if elsewhere else call.workdir
    if kind not in mined_negatives.RANKERS or where is None:
      continue
    if kind == "bm25" and not elsewhere:  # made here
      continue
    file = where.negatives / mined_negatives.files(kind)["train"]
    if not file.is_file():
      command = mined_negatives.command(kind)
      key, value = "train.negatives", config.train.negatives
      fix = f": run `{command}` with --workdir={where.root} first"
      if elsewhere:
        key, value = "train.negatives_from", elsewhere
      elif kind in negative_mixture.MINED_IN_ROUNDS:
        fix += ", or set config.train.rounds=2"
      raise errors.InputError(f"config.{key}={value!r}: {file} is missing{fix}")


def _teacher(config: Any, call: Call) -> None:
  """`InputError` if the file of a teacher's scores is missing."""
  from dpr_jax.data import mined_negatives, negative_mixture

  train = config.train
  if not setting_rules.is_taught(train):
    return
  if train.distill_scores == "negatives":
    kinds = negative_mixture.Mixture.of(train).kinds
    mined = [kind for kind in kinds if kind in mined_negatives.RANKERS]
    setting_rules.teacher_of_negatives(train, mined)
    return
  fix = ": give a file of scores (docs/training.md, Teachers)"
  settings_files.readable("train.distill_scores", train.distill_scores, fix)


def _training(config: Any, call: Call) -> None:
  train = config.train
  setting_rules.accumulation(train.accumulate_steps)
  setting_rules.selection(config)
  setting_rules.answer_masks(train.mask_answers, config.evaluate.match)
  if train.rounds > 1:
    setting_rules.mining(config.mine)
  steps = _most_steps(config, call)
  setting_rules.profile_steps("train.profile_steps", train.profile_steps, steps)
  if math.isfinite(steps):
    if train.rounds > steps:
      raise errors.InputError(
        f"config.train.rounds={train.rounds}: the run has only {int(steps)}"
        " steps: lower it, or train for longer"
      )
    restarts = train.rounds if train.restart else 1
    setting_rules.warm_up(train, math.ceil(steps / restarts))
  if call.cores:
    setting_rules.divides(train.batch_size, call.cores)
    if call.processes == 1:
      _chunks(train, call.cores)


def _most_steps(config: Any, call: Call) -> float:
  """Training steps, or an upper bound of them; infinity if unknown."""
  train = config.train
  if train.max_steps:
    return float(train.max_steps)
  questions = config.data.max_train
  if call.workdir is not None and not call.whole:
    manifest = call.workdir.data / workdir_lib.MANIFEST
    if manifest.is_file():
      record = workdir_lib.read_manifest(call.workdir.data, "prepare")
      questions = record["counts"].get("train") or questions
      parts = record.get("sources", {}).get("train", ())
      sizes = [part["train"] for part in parts] or [questions]
      drawn = setting_rules.questions_per_source(
        sizes,
        setting_rules.weights_of_round(train, len(sizes)),
        train.one_source_batches,
      )
      questions = sum(drawn) if questions else 0
  if not questions:
    return math.inf
  return float(
    setting_rules.total_steps(0, train.epochs, questions, train.batch_size)
  )


def _chunks(train: Any, cores: int) -> None:
  """`InputError` if the chunk size does not divide the texts of a device."""
  questions = train.batch_size // cores
  counts = {
    "passages": (questions * (1 + train.hard_negatives), "chunk_size"),
    "questions": (questions, "question_chunk_size"),
  }
  for what, (count, key) in counts.items():
    size = train[key] or train.chunk_size
    if size and size < count and count % size:
      raise errors.InputError(
        f"config.train.{key if train[key] else 'chunk_size'}={size}: does not"
        f" divide the {count} {what} of a device: choose a divisor, or 0"
      )


def _model(config: Any, call: Call) -> None:
  """Checks the checkpoint, and text lengths against its positions."""
  model = config.model
  pair = [model.question_checkpoint, model.passage_checkpoint]
  setting_rules.checkpoint_pair(*pair, model.shared_towers)
  setting_rules.random_sizes(model, model.checkpoint)
  if call.is_trained("train"):  # then the workdir's weights are used
    return
  sizes = _sizes(model)
  positions = sizes.get("max_position_embeddings", math.inf)
  name = setting_rules.checkpoint_name(model)
  for key in ("model.question_length", "model.passage_length"):
    if value_of(config, key) > positions:
      raise errors.InputError(
        f"config.{key}={value_of(config, key)}: checkpoint {name} has"
        f" {positions} positions"
      )
  if 0 < config.train.passage_length < 3:
    raise errors.InputError(
      f"config.train.passage_length={config.train.passage_length}: must be 0 or"
      " >= 3"
    )
  if config.train.passage_length > positions:
    raise errors.InputError(
      f"config.train.passage_length={config.train.passage_length}: checkpoint"
      f" {name} has {positions} positions"
    )


def _pretrained(config: Any, call: Call) -> None:
  """As `_model`, where the checkpoint is used without a training."""
  if config.data.train == "none":
    _model(config, call)


def _sizes(model: Any) -> dict[str, Any]:
  """As `settings_files.checkpoint`, of one checkpoint or of both of a pair."""
  if not model.question_checkpoint:
    return settings_files.checkpoint("model.checkpoint", model)
  first, _ = (
    settings_files.checkpoint(f"model.{key}", model, model[key])
    for key in ("question_checkpoint", "passage_checkpoint")
  )
  return first


def _tuned(config: Any, call: Call) -> None:
  """`InputError` if the tuned hybrid weight is asked for but not stored."""
  if "hybrid" not in call.methods_of(config) or call.tunes:
    return
  weight = config.fusion.weight
  if weight >= 0 or call.workdir is None or not call.whole:
    return  # the stage itself checks this first
  file = call.workdir.root / "fusion" / "fusion.json"
  if not file.is_file():
    raise errors.InputError(
      f"config.fusion.weight={weight:g} means the weight tuned on the dev set,"
      f" and {file} is missing: run `dpr-jax retrieve --method=hybrid --tune`"
      " first"
    )


def _backend(config: Any, call: Call) -> None:
  """`InputError` if `index.backend` names no search engine."""
  if config.index.backend:
    engine_addresses.parse(config.index.backend)


def _factory(config: Any, call: Call) -> None:
  """`InputError` if FAISS rejects `index.factory` for this dimension."""
  if config.index.backend or not _builds(config, call):
    return
  from dpr_jax.index import faiss_build as build

  settings = build.Settings.of(config)
  where = f"config.index.factory={config.index.factory!r}"
  if nothing := re.search(r"(IVF|HNSW|PQ|PCA|NSG)0+(?!\d)", settings.factory):
    raise errors.InputError(f"{where}: {nothing[0]} makes no sense")
  _lists(config, where)
  width = _width(config, call)
  try:
    build.make_index(width or _ANY_WIDTH, settings)
  except RuntimeError as error:
    reason = build.reason(error)
    # With an unknown dimension, whether PQ divides it is left to the stage.
    if width or "could not parse" in reason:
      raise errors.InputError(f"{where}: {reason}") from error


def _lists(config: Any, where: str) -> None:
  """`InputError` if an IVF has more lists than training vectors."""
  lists = re.search(r"IVF(\d+)", config.index.factory)
  sample, corpus = config.index.train_sample, config.data.max_passages
  for key, most in (
    ("index.train_sample", sample),
    ("data.max_passages", corpus or math.inf),
  ):
    if lists and int(lists[1]) > most:
      raise errors.InputError(
        f"{where}: {lists[1]} lists need at least as many training vectors, and"
        f" config.{key} is {most}"
      )


def _builds(config: Any, call: Call) -> bool:
  indexed = {"dense", "dense-start", "hybrid"}
  return bool(call.model) or bool(indexed & set(config.retrieve.methods))


def _width(config: Any, call: Call) -> int:
  """Dimension of the future vectors; 0 = not known."""
  if not call.whole or call.is_trained("train"):
    return 0
  sizes = _sizes(config.model)
  width = sizes.get("hidden_size")
  return width if isinstance(width, int) else 0


def _mining(config: Any, call: Call) -> None:
  """As `setting_rules.mining`."""
  setting_rules.mining(config.mine)


_RULES: dict[str, tuple[Callable[[Any, Call], None], ...]] = {
  "prepare": (settings_files.data,),
  "mine": (_mining,),
  "train": (_negatives, _teacher, _training, _model),
  "embed": (_pretrained, settings_files.embedding_libraries),
  "index": (_backend, _factory),
  "retrieve": (_backend, _tuned),
  "train-reader": settings_reader.RULES,
  "read": (settings_files.reads,),
}
