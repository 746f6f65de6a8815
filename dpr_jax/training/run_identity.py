"""Decides whether a call may resume the run in a training folder.

`started.json` records the settings and inputs of the run in a folder, and the
settings that those inputs were made with.  A later call resumes that run, or is
refused with the keys that differ.  Settings that do not change the result,
except by rounding, are not part of a run's identity (`FREE`): they may change
between two calls, and a finished run stays finished.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging

from dpr_jax.core import config as config_lib
from dpr_jax.core import errors, settings_table
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.models import checkpoint_files, checkpoints, retriever_model

STARTED = "started.json"
# Intervals of rows and checkpoints; `FREE` adds how, not what, is computed.
_OFTEN = frozenset(
  ("log_every", "checkpoint_every", "keep_checkpoints", "profile_steps")
  + ("dev_every", "best_metric")
)
# Free as well; a finished run makes its blend again, without any step.
_BLEND = "blend"
FREE: Mapping[str, frozenset[str]] = {
  "train": _OFTEN
  | {_BLEND}
  | {"step_timeout", "gradient_cache", "chunk_size", "question_chunk_size"}
  | {"remat", "loss", "loss_tile", "layers", "shard_optimizer"}
  | {"packing", "packed_widths"},
  "reader": _OFTEN | {"chunk_size", "remat", "packing", "packed_widths"},
  "model": frozenset({"attention"}),
}
# What older versions did where they had no such key yet.
_BEFORE = {"train": {"packing": False}, "reader": {"packing": False}}
# Not read with packing.
_READER_GROUPS = ("reader.length_groups", "reader.length_step")
_PACKED = "reader.packing"
_SORTED = "reader.sort_batches"  # packed into other batches than padded
_TOTAL = ("train.max_steps", "train.epochs")  # the length of the run
_WEIGHTS = "train.source_weights"  # of rounds that have not begun: free
# Full names of settings that a stage records without their section.
_NAMES = {"checkpoint": "model.checkpoint", "match": "evaluate.match"}
# Inputs that `dpr-jax run` makes again if their settings change.
_REMADE = ("passages", "train", "dev", "negatives")


@dataclasses.dataclass(frozen=True)
class Claim(workdir_lib.Stage):
  """A training stage, and the run that a call begins or resumes.

  Attributes:
    behind: settings that each input was made with, by the input's name, as
      sections of a config.
    total: function from a section `train` to the number of steps; None = not
      known yet.
    weights: function from a section `train` and a number of finished steps to
      the weights of the sources so far; None = not known yet.
  """

  behind: Mapping[str, Mapping[str, Any]] = dataclasses.field(
    default_factory=dict
  )
  total: Callable[[Mapping[str, Any]], int] | None = None
  weights: Callable[[Mapping[str, Any], int], Any] | None = None

  @property
  def started(self) -> pathlib.Path:
    """Path of the record of the run in the folder."""
    return self.folder / STARTED

  @property
  def saved(self) -> pathlib.Path:
    """The folder of the checkpoints."""
    return self.folder / "checkpoints"

  def changed(self, old: Mapping[str, Any]) -> list[str]:
    """The differences from a recorded run: one text for each key.

    Args:
      old: manifest, or result of `record`.
    """
    before, now = _flat(old["config"]), _flat(self.config)
    free = {*_free(before), *_free(now)}
    if any(flat.get(_SORTED, 1) > 1 for flat in (before, now)):
      free -= {_PACKED}
    if self._as_long_as(old):
      free |= {*_TOTAL}
    if self._weights_so_far_are(old):
      free |= {_WEIGHTS}
    lines = _differences(before, now, free)
    for name in sorted({*old["inputs"], *self.inputs}):
      was, now_is = old["inputs"].get(name), self.inputs.get(name)
      if was != now_is:
        known = old.get("behind", {}).get(name)  # older versions have none
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

  def _weights_so_far_are(self, old: Mapping[str, Any]) -> bool:
    """Whether weights of sources differ only in rounds that have not begun."""
    sections = old["config"].get("train"), self.config.get("train")
    if not (self.weights and all(sections)):
      return False
    if sections[0].get("rounds") != sections[1].get("rounds"):
      return False
    step = max(checkpoint_files.steps_there(self.saved), default=0)
    return self.weights(sections[0], step) == self.weights(sections[1], step)

  def is_current(self, overwrite: bool = False) -> bool:
    """True, with a log line, if the run is finished, intact and unchanged."""
    if not overwrite and self.manifest.exists():
      try:
        old = workdir_lib.read_manifest(self.folder, self.name)
      except errors.InputError:
        return super().is_current()  # logs what is wrong with it
      if not self.changed(old) and not (
        self._has_blend(old) and self._is_whole(old)
      ):
        return False
    if not super().is_current(overwrite):
      return False
    self._log_free(old, "done")
    return True

  def _has_blend(self, manifest: Mapping[str, Any]) -> bool:
    """True if a finished run has the blend that this call asks for."""
    key = f"train.{_BLEND}"
    return _flat(manifest["config"]).get(key) == _flat(self.config).get(key)

  def _is_whole(self, manifest: Mapping[str, Any]) -> bool:
    """True if the checkpoints of a finished run can be used.

    A missing or damaged selection of checkpoints is restored.
    """
    selected = manifest.get("selected") or {}
    steps = {manifest["counts"]["steps"], *selected.get("steps", [])}
    names = [*sorted(steps), *checkpoints.blend_of(selected)]
    wrong = checkpoints.problems(self.saved, names)
    for why in wrong.values():
      logging.warning(
        "%s: the run is finished, but checkpoint %s", self.name, why
      )
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
      logging.warning("%s: %s: restored from the manifest", self.name, what)
    return bool(selected)

  def record(self) -> dict[str, Any] | None:
    """Settings and inputs of the run in the folder; None = there is no run.

    Raises:
      InputError: there is a run, but no readable record of it.
    """
    wrong = []
    for path in (self.started, self.manifest):
      if not path.exists():
        continue
      try:
        record = workdir_lib.read_record(path)
      except errors.InputError as error:
        wrong.append(str(error))
        continue
      if all(isinstance(record.get(k), dict) for k in ("config", "inputs")):
        if path == self.manifest or record.get("begun", self._has_begun()):
          return record
      else:
        wrong.append(f"{path} is damaged: it holds no config and no inputs")
    if not self._has_begun():
      return None
    what = "; ".join(wrong) or f"{self.started} is missing"
    raise errors.InputError(
      f"{self.folder} holds a training run whose settings are not known:"
      f" {what}. Restore the file, give another --workdir, or train from the"
      f" start: {self._from_start()}"
    )

  def _has_begun(self) -> bool:
    """True if there is a checkpoint, or a step in the metrics."""
    if checkpoint_files.steps_there(self.saved):
      return True
    path = self.folder / "metrics.jsonl"
    if not path.is_file():
      return False
    with open(path, encoding="utf-8", errors="replace") as file:
      return any(_is_step(line) for line in file)

  def check(self) -> None:
    """Checks that the run in the folder, if any, is this one.

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
      config: complete config, as plain data.

    Raises:
      InputError: this config would give another run, or other inputs.
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
        f" The learning rate falls to 0 at the last step{last}: with another"
        " number of steps every step has another learning rate. To continue"
        " from the result of this run, `dpr-jax export` it and train in another"
        " --workdir with config.model.checkpoint=<the export>."
      )
    raise errors.InputError(
      f"{self.folder} holds a training run with other settings:"
      f" {', '.join(lines)}.{longer} Set them back, give another --workdir, or"
      f" train from the start: {self._from_start()}"
    )

  def _from_start(self) -> str:
    """The commands that remove the run and train again."""
    return (
      f"`dpr-jax {self.name} --overwrite`, in `dpr-jax run`"
      f" --overwrite={self.name}"
    )

  def _log_free(self, old: Mapping[str, Any], what: str) -> None:
    """Logs the changes of settings that may change."""
    before, now = _flat(old["config"]), _flat(self.config)
    both = {*before, *now} & {*_free(before), *_free(now)}
    lines = [
      f"{key.partition('.')[2]} {before.get(key)} -> {now.get(key)}"
      for key in sorted(both - {f"train.{_BLEND}"})  # it changes the result
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
        "%s: the run is finished and keeps its selected checkpoint: the new"
        " best_metric has no effect",
        self.name,
      )

  def open(self, overwrite: bool) -> None:
    """Prepares the folder; a run begins only with `begin`.

    Args:
      overwrite: removes the run that the folder holds.

    Raises:
      InputError: the folder has files that dpr-jax did not write.
    """
    if overwrite:
      workdir_lib.remove_folder(self.folder, self.name)
    elif self.record() is not None:
      return
    workdir_lib.check_ours(self.folder, self.name)
    with workdir_lib.writing(self.folder):
      # Left by a run that ended before its first step: of another model.
      (self.folder / "metrics.jsonl").unlink(missing_ok=True)
    self._sign(False, {}, {}, {})

  def begin(self) -> None:
    """Records that the folder is this run's; call after its first step."""
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
  """True for a row of the metrics after step 1 or later."""
  try:
    return json.loads(line)["step"] > 0
  except (ValueError, KeyError, TypeError):
    return False


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
  """Values by full key (`train.epochs`), with "auto" and 0 resolved.

  A key that an older version did not have gets the value that this version has
  to give to do the same: its default, or that of `_BEFORE`.  Removed settings
  changed how, not what, was computed: they are left out.
  """
  defaults = config_lib.plain(config_lib.base_config())
  flat: dict[str, Any] = {}
  for name, values in config.items():
    if isinstance(values, Mapping):
      flat |= {
        f"{name}.{key}": value
        for key, value in {
          **defaults.get(name, {}),
          **_BEFORE.get(name, {}),
          **values,
        }.items()
        if f"{name}.{key}" not in settings_table.REMOVED
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
  """The keys that may change without making another run."""
  free = {f"{name}.{key}" for name, keys in FREE.items() for key in keys}
  return free | {*_READER_GROUPS} if flat.get(_PACKED) else free


def _differences(
  before: Mapping[str, Any], now: Mapping[str, Any], free: Any = ()
) -> list[str]:
  """One text for each key whose values differ."""
  return [
    f"config.{key} was {before.get(key)!r}, is {now.get(key)!r}"[:200]
    for key in sorted({*before, *now} - {*free})
    if before.get(key) != now.get(key)
    and not (
      key in config_lib.PATHS
      and config_lib.same_path(before.get(key), now.get(key))
    )
  ]
