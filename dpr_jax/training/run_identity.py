"""Whose run a training folder holds, and what may change while it goes on.

`started.json` records the settings and inputs of the run that has begun in a
folder, and the settings behind those inputs.  A later call goes on with that
run, or is refused by the keys that differ.  Settings that no figure of the run
depends on, but for rounding, are no part of its identity (`FREE`): they may
change between two calls, and a finished run stays finished.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.models import checkpoint_files, checkpoints, retriever_model

STARTED = "started.json"
# What is written down and how often; and how the same figures are computed.
_OFTEN = frozenset(
  ("log_every", "checkpoint_every", "keep_checkpoints", "profile_steps")
  + ("dev_every", "best_metric")
)
FREE: Mapping[str, frozenset[str]] = {
  "train": _OFTEN
  | {"step_timeout", "gradient_cache", "chunk_size", "question_chunk_size"}
  | {"remat", "loss", "loss_tile", "layers", "shard_optimizer"},
  "reader": _OFTEN | {"chunk_size", "remat"},
  "model": frozenset({"attention"}),
}
# With groups by length, chunks decide to what length a text is padded, on
# which its dropout depends.
_CHUNKS = ("train.chunk_size", "train.question_chunk_size")
_TOTAL = ("train.max_steps", "train.epochs")  # the length of the run
# What stands alone in a stage's config, by its full name.
_NAMES = {"checkpoint": "model.checkpoint", "match": "evaluate.match"}
# Inputs that `dpr-jax run` makes again where the settings behind them change.
_REMADE = ("passages", "train", "dev", "negatives")


@dataclasses.dataclass(frozen=True)
class Claim(workdir_lib.Stage):
  """A stage that trains, and the run that it goes on with or begins.

  Attributes:
    behind: the settings that each input was made with, by the input's name, as
      sections of a config.
    total: the steps of a run with this section `train`; None where that is not
      known yet.
  """

  behind: Mapping[str, Mapping[str, Any]] = dataclasses.field(
    default_factory=dict
  )
  total: Callable[[Mapping[str, Any]], int] | None = None

  @property
  def started(self) -> pathlib.Path:
    """The record of the run that has begun in the folder."""
    return self.folder / STARTED

  @property
  def saved(self) -> pathlib.Path:
    """The folder of the checkpoints."""
    return self.folder / "checkpoints"

  def changed(self, old: Mapping[str, Any]) -> list[str]:
    """What makes this another run than that of a record: a line for each key.

    Args:
      old: a manifest, or what `record` gives.
    """
    before, now = _flat(old["config"]), _flat(self.config)
    free = {*_free(before), *_free(now)}
    if self._as_long_as(old):
      free |= {*_TOTAL}
    lines = _differences(before, now, free)
    for name in sorted({*old["inputs"], *self.inputs}):
      was, now_is = old["inputs"].get(name), self.inputs.get(name)
      if was != now_is:
        known = old.get("behind", {}).get(name)  # not to an older version
        why = known and _differences(
          _flat(known), _flat(self.behind.get(name, {}))
        )
        lines += why or [
          f"{name} was {workdir_lib.short(was)}, is {workdir_lib.short(now_is)}"
        ]
    return list(dict.fromkeys(lines))

  def _as_long_as(self, old: Mapping[str, Any]) -> bool:
    sections = old["config"].get("train"), self.config.get("train")
    return bool(
      self.total
      and all(sections)
      and self.total(sections[0]) == self.total(sections[1])
    )

  def is_current(self, overwrite: bool = False) -> bool:
    """True, and says so, where the run is finished, whole, and unchanged."""
    if not overwrite and self.manifest.exists():
      try:
        old = workdir_lib.read_manifest(self.folder, self.name)
      except errors.InputError:
        return super().is_current()  # says what is wrong with it
      if not self.changed(old) and not self._is_whole(old):
        return False
    if not super().is_current(overwrite):
      return False
    self._log_free(old, "done")
    return True

  def _is_whole(self, manifest: Mapping[str, Any]) -> bool:
    """Of a finished run: whether what it has left can be used."""
    selected = manifest.get("selected") or {}
    steps = {manifest["counts"]["steps"], *selected.get("steps", [])}
    wrong = checkpoints.problems(self.saved, sorted(steps))
    for why in wrong.values():
      logging.warning("%s: was finished, but checkpoint %s", self.name, why)
    if wrong:
      return False
    try:
      if checkpoints.read_selected(self.saved):
        return True
      what = f"{self.saved / checkpoints.SELECTED} was missing"
    except errors.InputError as error:
      what = str(error).partition(";")[0]
    if selected:
      checkpoints.write_selected(self.saved, selected)
      logging.warning(
        "%s: %s: written again, from the manifest", self.name, what
      )
    return bool(selected)

  def record(self) -> dict[str, Any] | None:
    """Settings and inputs of the run that has begun; None where none has.

    Raises:
      InputError: one has, and nothing that can be read says which.
    """
    wrong = []
    for path in (self.started, self.manifest):
      if not path.exists():
        continue
      try:
        found = workdir_lib.read_record(path)
      except errors.InputError as error:
        wrong.append(str(error))
        continue
      if all(isinstance(found.get(k), dict) for k in ("config", "inputs")):
        if path == self.manifest or found.get("begun", self._has_begun()):
          return found
      else:
        wrong.append(f"{path} is damaged: it holds no config and no inputs")
    if not self._has_begun():
      return None
    what = "; ".join(wrong) or f"{self.started} is missing"
    raise errors.InputError(
      f"{self.folder} holds a training, and nobody knows with which settings:"
      f" {what}. Put the file back, give another --workdir, or train anew:"
      f" {self._anew()}"
    )

  def _has_begun(self) -> bool:
    """True where there is a checkpoint, or a step in the metrics."""
    if checkpoint_files.steps_there(self.saved):
      return True
    path = self.folder / "metrics.jsonl"
    if not path.is_file():
      return False
    with open(path, encoding="utf-8", errors="replace") as file:
      return any(_is_step(line) for line in file)

  def check(self) -> None:
    """Makes sure that the run in the folder, if any, is this very one.

    Raises:
      InputError: it has other settings or inputs.
    """
    old = self.record()
    if old is None:
      return
    self._refuse(old, self.changed(old))
    self._log_free(old, "resuming")

  def check_before(self, config: Mapping[str, Any]) -> None:
    """`check`, before `dpr-jax run` makes the inputs of the run again.

    Args:
      config: the whole config, as plain data.

    Raises:
      InputError: with this config they would be others, or the run would.
    """
    old = self.record()
    if old is None:
      return
    behind = old.get("behind") or {  # an older version recorded none
      name: settings
      for name, settings in self.behind.items()
      if self.inputs.get(name) == old["inputs"].get(name)
    }
    same = dataclasses.replace(self, inputs=old["inputs"])
    lines, now = same.changed(old), _flat(config)
    for name in _REMADE:
      before = _flat(behind.get(name, {}))
      lines += _differences(before, {key: now.get(key) for key in before})
    self._refuse(old, list(dict.fromkeys(lines)))

  def _refuse(self, old: Mapping[str, Any], lines: Sequence[str]) -> None:
    if not lines:
      return
    longer = ""
    if any(
      line.startswith(f"config.{key} ") for key in _TOTAL for line in lines
    ):
      last = ""
      if self.total and old["config"].get("train"):
        last = f", {self.total(old['config']['train'])}"
      longer = (
        f" The learning rate falls to 0 at the last step{last}: in a training"
        " of another length every step has another rate. To train on from this"
        " one's result, `dpr-jax export` it and begin in another --workdir with"
        " config.model.checkpoint=<the export>."
      )
    raise errors.InputError(
      f"{self.folder} holds a training with other settings: {', '.join(lines)}."
      f"{longer} Set them back, give another --workdir, or train anew:"
      f" {self._anew()}"
    )

  def _anew(self) -> str:
    return (
      f"`dpr-jax {self.name} --overwrite`, in `dpr-jax run`"
      f" --overwrite={self.name}"
    )

  def _log_free(self, old: Mapping[str, Any], what: str) -> None:
    """Says which of the settings that may change have changed."""
    before, now = _flat(old["config"]), _flat(self.config)
    both = sorted({*before, *now} & {*_free(before), *_free(now)})
    lines = [
      f"{key.partition('.')[2]} {before.get(key)} -> {now.get(key)}"
      for key in both
      if before.get(key) != now.get(key)
    ]
    if not lines:
      return
    logging.info(
      "%s: %s with other settings that do not change the result: %s",
      self.name,
      what,
      ", ".join(lines),
    )
    if what == "done" and any(line.startswith("best_metric") for line in lines):
      logging.warning(
        "%s: the run is finished and keeps the checkpoint that it has selected,"
        " whatever best_metric is now",
        self.name,
      )

  def open(self, overwrite: bool) -> None:
    """Makes the folder ready, and ours; no run has begun by that.

    Args:
      overwrite: what is there is removed.

    Raises:
      InputError: there is something that is not ours.
    """
    if overwrite:
      workdir_lib.remove_folder(self.folder, self.name)
    elif self.record() is not None:
      return
    workdir_lib.check_ours(self.folder, self.name)
    with workdir_lib.writing(self.folder):
      # Of a run that never came to its first step: figures of another model.
      (self.folder / "metrics.jsonl").unlink(missing_ok=True)
    self._sign(False, {}, {}, {})

  def begin(self) -> None:
    """From here on the folder is this run's: to be called at its first step."""
    self._sign(True, self.config, self.inputs, self.behind)

  def _sign(self, begun: bool, config: Any, inputs: Any, behind: Any) -> None:
    workdir_lib.write_record(
      self.started,
      {
        "stage": self.name,
        "begun": begun,
        "config": config,
        "inputs": inputs,
        "behind": behind,
      },
    )


def _is_step(line: str) -> bool:
  """True for a row of the metrics after a step that was taken."""
  try:
    return json.loads(line)["step"] > 0
  except (ValueError, KeyError, TypeError):
    return False


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
  """Values by full key (`train.epochs`), as they are meant here.

  A key that an older version did not have has its default.
  """
  defaults = config_lib.plain(config_lib.base_config())
  flat: dict[str, Any] = {}
  for name, values in config.items():
    if isinstance(values, Mapping):
      flat |= {
        f"{name}.{key}": value
        for key, value in {**defaults.get(name, {}), **values}.items()
      }
    else:
      flat[_NAMES.get(name, name)] = values
  if flat.get("model.compute_dtype") == "auto":
    flat["model.compute_dtype"] = str(retriever_model.compute_dtype("auto"))
  if flat.get("train.passage_length") == 0 and "model.passage_length" in flat:
    flat["train.passage_length"] = flat["model.passage_length"]
  return {
    key: list(value) if isinstance(value, tuple) else value
    for key, value in flat.items()
  }


def _free(flat: Mapping[str, Any]) -> set[str]:
  """Keys that may change."""
  free = {f"{name}.{key}" for name, keys in FREE.items() for key in keys}
  return free if flat.get("train.length_groups", 1) == 1 else free - {*_CHUNKS}


def _differences(
  before: Mapping[str, Any], now: Mapping[str, Any], free: Any = ()
) -> list[str]:
  """A line for each key whose values differ."""
  return [
    f"config.{key} was {before.get(key)!r}, is {now.get(key)!r}"[:200]
    for key in sorted({*before, *now} - {*free})
    if before.get(key) != now.get(key)
    and not (
      key in config_lib.PATHS
      and config_lib.same_path(before.get(key), now.get(key))
    )
  ]
