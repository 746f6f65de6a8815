"""Inputs of the retriever's training, and the identity of a run.

The inputs are the data, and the negatives that were mined from it in this
workdir or in another.  `claim` collects everything that a run depends on: its
settings, the fingerprints of its inputs, and the settings they were made with.
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors, setting_rules
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import (
  mined_negatives,
  negative_mixture,
  negative_rounds,
  prepare,
  source_plans,
)
from dpr_jax.models import stored_towers
from dpr_jax.training import run_identity

STAGE = "train"
_TEACHER = "teacher_scores"  # name of this input


def inputs(
  train: ml_collections.ConfigDict, workdir: workdir_lib.Workdir
) -> dict[str, str]:
  """Fingerprints of negatives and scores that training reads, for a Stage.

  Negatives of later rounds are not inputs: the run makes them itself.

  Args:
    train: section `train` of the config.
    workdir: workdir of the run.

  Raises:
    InputError: negatives are missing, or a setting is bad.
  """
  fingerprints = {}
  if train.dev_questions > 0:  # the dev pool uses this workdir's negatives
    fingerprints["negatives"] = workdir_lib.manifest_fingerprint(
      workdir.negatives, "mine"
    )
  for kind in mixture(train, 0).kinds:
    if kind in mined_negatives.RANKERS:
      name = "negatives" if kind == "bm25" else f"{kind}_negatives"
      if train.negatives_from:
        name = f"{kind}_negatives_from"
      fingerprints[name] = mined_negatives.fingerprint_of(
        mined_path(train, workdir, kind)
      )
  if setting_rules.is_taught(train):
    path = teacher_path(train, workdir)
    fingerprints[_TEACHER] = workdir_lib.fingerprint_file(path)
  return fingerprints


def behind(
  train: ml_collections.ConfigDict, workdir: workdir_lib.Workdir
) -> dict[str, dict[str, Any]]:
  """The settings that each input was made with, by the input's name.

  The inputs are the data and those of `inputs`.
  """
  prepared = workdir_lib.read_manifest(workdir.data, "prepare")["config"]
  settings = dict.fromkeys(("passages", "train", "dev"), prepared)
  for name in inputs(train, workdir):
    if name == _TEACHER:  # made elsewhere: nothing is known of its settings
      continue
    kind = "bm25" if name == "negatives" else name.partition("_")[0]
    mined = workdir.negatives / mined_negatives.files(kind)["train"]
    if name.endswith("_from"):
      mined = mined_path(train, workdir, kind)
    manifest = mined_negatives.manifest_of(mined) or {}
    settings[name] = manifest.get("config", {})
  return settings


def mixture(
  train: ml_collections.ConfigDict, round_number: int
) -> negative_mixture.Mixture:
  """The kinds of negatives of a round; raises `InputError` if they are bad."""
  for name, least in (
    ("hard_negatives", 0),
    ("hard_negatives_from_top", 1),
    ("rounds", 1),
  ):
    config_lib.at_least(f"train.{name}", train[name], least)
  mixture = negative_mixture.Mixture.of(train)
  if train.rounds == 1:
    return mixture
  return mixture if round_number else mixture.of_first_round()


def mined_path(
  train: ml_collections.ConfigDict, workdir: workdir_lib.Workdir, kind: str
) -> pathlib.Path:
  """Path of the mined negatives, after a check that they are of the same data.

  Args:
    train: section `train` of the config.
    workdir: workdir of the run.
    kind: one of `mined_negatives.RANKERS`.

  Raises:
    InputError: there is no such file, or it was made from other data.
  """
  elsewhere = train.negatives_from
  where = workdir_lib.Workdir(elsewhere) if elsewhere else workdir
  path = where.negatives / mined_negatives.files(kind)["train"]
  manifest = mined_negatives.manifest_of(path)
  if not path.exists() or (elsewhere and manifest is None):
    what = f"config.train.negatives={train.negatives!r}"
    fix = (
      f"run `{mined_negatives.command(kind)}` with --workdir={where.root} first"
    )
    if elsewhere:
      what = f"config.train.negatives_from={elsewhere!r}"
    elif kind != "bm25":
      fix += (
        ", or name a workdir where it has run in config.train.negatives_from"
      )
      if kind in negative_mixture.MINED_IN_ROUNDS:
        fix += ", or set config.train.rounds=2"
    raise errors.InputError(f"{what}: {path} or its manifest is missing: {fix}")
  names = ("passages", "train")
  if manifest is not None:
    current = workdir_lib.dataset_inputs(where, *names)
    for name, value in current.items():
      if manifest.get("inputs", {}).get(name) != value:
        raise errors.InputError(
          f"{path} was mined from other {name} data"
          f" ({workdir_lib.short(manifest.get('inputs', {}).get(name))}) than"
          f" {where.data} holds ({workdir_lib.short(value)}): run"
          f" `{mined_negatives.command(kind)}` with"
          f" --workdir={where.root} again"
        )
    ours = workdir_lib.dataset_inputs(workdir, *names)
    if ours != current and not _same_data(workdir, where):
      raise errors.InputError(
        f"config.train.negatives_from={elsewhere!r}: {where.data} was not made"
        f" from the same files and limits as {workdir.data}: mine in a workdir"
        " with the same config.data"
      )
  return path


def teacher_path(
  train: ml_collections.ConfigDict, workdir: workdir_lib.Workdir
) -> pathlib.Path:
  """Path of the teacher's scores.

  Args:
    train: section `train` of a config with `distill_scores`.
    workdir: workdir of the run.

  Raises:
    InputError: there is no such file, or "negatives" is not one file.
  """
  if train.distill_scores == "negatives":
    kinds = mixture(train, 0).kinds
    mined = [kind for kind in kinds if kind in mined_negatives.RANKERS]
    kind = setting_rules.teacher_of_negatives(train, mined)
    return mined_path(train, workdir, kind)
  path = workdir_lib.user_path(train.distill_scores)
  if not path.is_file():
    raise errors.InputError(
      f"config.train.distill_scores={train.distill_scores!r}: there is no such"
      " file: give a file of scores (docs/training.md, Teachers)"
    )
  return path


def _same_data(one: workdir_lib.Workdir, other: workdir_lib.Workdir) -> bool:
  """True if `prepare` read and kept the same in both workdirs.

  The prepared files may still have different bytes: in older versions the
  bytes depended on the process.  Only counts that both manifests have are
  compared, because older versions have fewer.
  """
  left, right = _made_from(one), _made_from(other)
  counted = left["counts"].keys() & right["counts"].keys()
  for made in (left, right):
    made["counts"] = {name: made["counts"][name] for name in counted}
  return left == right


def _made_from(workdir: workdir_lib.Workdir) -> dict[str, Any]:
  manifest = workdir_lib.read_manifest(workdir.data, "prepare")
  limits = {
    name: value
    for name, value in manifest["config"]["data"].items()
    if name.startswith("max_")
  }
  return {
    "inputs": manifest["inputs"],
    "limits": limits,
    "counts": manifest["counts"],
  }


def claim(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  overwrite: bool = False,
) -> run_identity.Claim:
  """Everything that the run depends on.

  Args:
    config: config of the experiment.
    workdir: workdir of the run.
    overwrite: the run in the workdir will be removed.

  Raises:
    InputError: an input is missing.
  """
  data = workdir_lib.dataset_inputs(workdir, "passages", "train", "dev")
  return run_identity.Claim(
    STAGE,
    workdir.training,
    _settings(config, workdir, overwrite),
    data | inputs(config.train, workdir),
    behind=behind(config.train, workdir),
    total=_total(config.seed, workdir),
    weights=_weights(config.seed, workdir),
  )


def _settings(
  config: ml_collections.ConfigDict,
  workdir: workdir_lib.Workdir,
  overwrite: bool = False,
) -> dict[str, Any]:
  """The settings of a run, with "auto" resolved: as recorded, or anew."""
  where = None if overwrite else workdir
  config = stored_towers.with_resolved(config, where)
  settings = config_lib.sections(config, "model", "train")
  if config.train.dev_topk_passages:
    settings |= config_lib.sections(config, "evaluate")
  return settings | {"seed": config.seed}


def _total(
  seed: int, workdir: workdir_lib.Workdir
) -> Callable[[Mapping[str, Any]], int]:
  sizes = list(prepare.source_sizes(workdir).values())

  def total(train: Mapping[str, Any]) -> int:
    plan = source_plans.make(seed, train, sizes)
    return plan.steps(train["epochs"], train["max_steps"])

  return total


def _weights(
  seed: int, workdir: workdir_lib.Workdir
) -> Callable[[Mapping[str, Any], int], list[tuple[float, ...]]]:
  sources = len(prepare.source_sizes(workdir))
  total = _total(seed, workdir)

  def weights(train: Mapping[str, Any], step: int) -> list[tuple[float, ...]]:
    """Weights of the rounds of which steps are done, and of the first."""
    starts = negative_rounds.boundaries(total(train), train.get("rounds", 1))
    return [
      setting_rules.weights_of_round(train, sources, number) or (1.0,) * sources
      for number, start in enumerate(starts)
      if not start or start < step
    ]

  return weights


def check_before(
  config: ml_collections.ConfigDict, workdir: workdir_lib.Workdir
) -> None:
  """Checks the run before `dpr-jax run` makes the inputs of training again.

  Raises:
    InputError: the workdir has a run with other settings or other inputs than
      this config would give.
  """
  try:
    run = claim(config, workdir)
  except errors.InputError:  # the inputs are missing: check settings only
    settings = _settings(config, workdir)
    run = run_identity.Claim(STAGE, workdir.training, settings, {})
  run.check_before(config_lib.plain(config))
