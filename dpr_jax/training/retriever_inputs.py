"""What the retriever's training reads, and what makes it another run.

Besides the data these are negatives that were mined from it, in this workdir or
in another.  `claim` puts together what a run depends on: its settings, the
fingerprints of its inputs, and the settings behind these.
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import batches, mined_negatives, negative_sampling, prepare
from dpr_jax.training import run_identity

STAGE = "train"


def inputs(
  train: ml_collections.ConfigDict, workdir: workdir_lib.Workdir
) -> dict[str, str]:
  """Fingerprints of the mined negatives that training reads, for a Stage.

  Those of later rounds are the run's own, and not among them.

  Args:
    train: the config's section.
    workdir: its folder.

  Raises:
    InputError: negatives are missing, or a setting is bad.
  """
  found = {}
  if train.dev_questions > 0:  # the dev pool is our own
    found["negatives"] = workdir_lib.manifest_fingerprint(
      workdir.negatives, "mine"
    )
  for kind in mixture(train, 0).kinds:
    if kind in mined_negatives.RANKERS:
      name = "negatives" if kind == "bm25" else f"{kind}_negatives"
      if train.negatives_from:
        name = f"{kind}_negatives_from"
      found[name] = mined_negatives.fingerprint_of(
        mined_path(train, workdir, kind)
      )
  return found


def behind(
  train: ml_collections.ConfigDict, workdir: workdir_lib.Workdir
) -> dict[str, dict[str, Any]]:
  """The settings that each input was made with, by the input's name.

  Of the data and of `inputs`, which see.
  """
  prepared = workdir_lib.read_manifest(workdir.data, "prepare")["config"]
  found = dict.fromkeys(("passages", "train", "dev"), prepared)
  for name in inputs(train, workdir):
    kind = "bm25" if name == "negatives" else name.partition("_")[0]
    mined = workdir.negatives / mined_negatives.files(kind)["train"]
    if name.endswith("_from"):
      mined = mined_path(train, workdir, kind)
    found[name] = (mined_negatives.manifest_of(mined) or {}).get("config", {})
  return found


def mixture(
  train: ml_collections.ConfigDict, round_number: int
) -> negative_sampling.Mixture:
  """The negatives of a round, checked."""
  for name, least in (
    ("hard_negatives", 0),
    ("hard_negatives_from_top", 1),
    ("rounds", 1),
  ):
    config_lib.at_least(f"train.{name}", train[name], least)
  mixture = negative_sampling.Mixture.of(train)
  if train.rounds == 1:
    return mixture
  return mixture if round_number else mixture.replace("model", "bm25")


def mined_path(
  train: ml_collections.ConfigDict, workdir: workdir_lib.Workdir, kind: str
) -> pathlib.Path:
  """The file of mined negatives, after a look whether it is of our data.

  Raises:
    InputError: it was made from other data, or there is none.
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
    elif kind == "model":
      fix += (
        ", or name a workdir where it has run in config.train.negatives_from,"
        " or set config.train.rounds=2"
      )
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
        " of the same config.data"
      )
  return path


def _same_data(one: workdir_lib.Workdir, other: workdir_lib.Workdir) -> bool:
  """True where `prepare` read and kept the same.

  The same data may be other bytes: those of questions once depended on the
  process that wrote them.  An older version counts less.
  """
  left, right = _made_from(one), _made_from(other)
  counted = left["counts"].keys() & right["counts"].keys()
  for found in (left, right):
    found["counts"] = {name: found["counts"][name] for name in counted}
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
  config: ml_collections.ConfigDict, workdir: workdir_lib.Workdir
) -> run_identity.Claim:
  """What the run depends on.

  Raises:
    InputError: its inputs are not there.
  """
  data = workdir_lib.dataset_inputs(workdir, "passages", "train", "dev")
  return run_identity.Claim(
    STAGE,
    workdir.training,
    _settings(config),
    data | inputs(config.train, workdir),
    behind=behind(config.train, workdir),
    total=_total(config.seed, workdir),
  )


def _settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
  settings = config_lib.sections(config, "model", "train")
  if config.train.dev_topk_passages:
    settings |= config_lib.sections(config, "evaluate")
  return settings | {"seed": config.seed}


def _total(
  seed: int, workdir: workdir_lib.Workdir
) -> Callable[[Mapping[str, Any]], int]:
  questions = len(prepare.open_questions(workdir, "train"))

  def total(train: Mapping[str, Any]) -> int:
    plan = batches.Plan(seed, questions, max(1, train["batch_size"]))
    return plan.steps(train["epochs"], train["max_steps"])

  return total


def check_before(
  config: ml_collections.ConfigDict, workdir: workdir_lib.Workdir
) -> None:
  """To be called before `dpr-jax run` makes again what training reads.

  Raises:
    InputError: a run has begun in this workdir, and with this config it would
      be another, or its inputs would.
  """
  try:
    run = claim(config, workdir)
  except errors.InputError:  # its inputs are not made yet, or are gone
    run = run_identity.Claim(STAGE, workdir.training, _settings(config), {})
  run.check_before(config_lib.plain(config))
