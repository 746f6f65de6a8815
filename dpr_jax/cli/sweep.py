"""`dpr-jax sweep`: an experiment with several settings and seeds, compared.

Input: a config and `--over`.  Output, in the folder of the sweep:

- `shared/<name>/`: a workdir with the data and the mined negatives, made once
  for all trials that need the same;
- `trials/<name>/`: a workdir for each trial, complete in itself.  Files that
  trials share are hard links: they take no space, and since no file of a
  workdir is ever written in place, a trial that makes one again leaves the
  others theirs;
- `trials/<name>.log`, what the trial printed, and `<name>.json`, its config;
- `sweep.json` and `sweep.md`: the comparison.

A trial is a `dpr-jax run` of its own process.  Called again, finished trials
are skipped, and an interrupted one resumes.
"""

import os
import pathlib
import sys
from collections.abc import Sequence

from absl import logging

from dpr_jax.cli import (
  commands,
  experiment,
  json_config,
  settings_checks,
  settings_unread,
  sweep_grid,
)
from dpr_jax.cli.invocation import Invocation
from dpr_jax.cli.settings_call import Call
from dpr_jax.cli.sweep_grid import Trial
from dpr_jax.core import child_processes, errors, settings_table
from dpr_jax.core import config as config_lib
from dpr_jax.core import workdir as workdir_lib

_PREPARES = ("prepare", "mine")
# Settings that decide what those two stages make: sections, and single ones.
_DATA = ("data", "bm25", "mine", "evaluate.match")
_PREPARED = ("data", "negatives", "bm25")
# What one trial makes, and all trials with the same start would make again; the
# stages check that it is of the same texts, and refuse other weights.
_VECTORS = "embeddings/passages-start"
_REUSED = ("tokens", _VECTORS)
_START = (
  "model",
  "embed",
)  # sections whose settings decide the start's vectors


def sweep(call: Invocation) -> None:
  """Runs all trials that are not finished, and compares all that are.

  Raises:
    InputError: a bad setting, before anything starts; or trials have failed,
      after all others are done.
  """
  over = sweep_grid.axes(call.flags["over"])
  trials = sweep_grid.trials(call.config, over, call.flags["seeds"])
  folder = call.workdir
  command = "train" if call.flags["dev_only"] else "run"
  _check(call, trials)
  with experiment.opened(folder):
    from dpr_jax.reporting import sweep_table

    sweep_table.check_ours(folder.root)
    failed = _Sweep(call, command).run(trials)
    rows = [
      sweep_table.Row(
        each.setting,
        each.values,
        each.seed,
        None if each in failed else _place(folder, each),
      )
      for each in trials
    ]
    print(sweep_table.write(folder.root, rows, command == "run"))
  if failed:
    raise errors.InputError(
      f"{len(failed)} of {len(trials)} trials failed:"
      f" {', '.join(each.name for each in failed)}; their logs are in"
      f" {folder.root / 'trials'}; the same command tries them again"
    )


def _place(folder: workdir_lib.Workdir, trial: Trial) -> workdir_lib.Workdir:
  return workdir_lib.Workdir(folder.root / "trials" / trial.name)


def _check(call: Invocation, trials: Sequence[Trial]) -> None:
  """Refuses bad settings of any trial, and warns of those that are not read."""
  warned = set()
  firsts: dict[str, Trial] = {}
  for trial in trials:
    firsts.setdefault(trial.setting, trial)
  for trial in firsts.values():  # checks do not depend on the seed
    if trial.config.data.train == "none":
      raise errors.InputError(
        "config.data.train='none': a sweep compares trainings, and nothing"
        " would be trained"
      )
    if call.flags["dev_only"] and trial.config.train.dev_questions < 1:
      raise errors.InputError(
        "--dev_only compares dev questions, and config.train.dev_questions is"
        " 0: set it above 0"
      )
    keys = {*call.flags.typed_settings, *trial.values}
    about = Call(
      "run",
      workdir=_place(call.workdir, trial),
      cores=call.cpu_devices,
      typed=frozenset(keys),
    )
    try:
      settings_checks.check(trial.config, about)
    except errors.InputError as error:
      raise errors.InputError(f"trial {trial.name}: {error}") from error
    for line in settings_unread.unread(trial.config, about):
      if line not in warned:
        logging.warning("%s", line)
        warned.add(line)


class _Sweep:
  """Runs the trials of one call, one after the other."""

  def __init__(self, call: Invocation, command: str):
    """Starts nothing.

    Args:
      call: the call of `sweep`.
      command: what a trial runs, "run" or "train".
    """
    self.call, self.command = call, command
    self.root = call.workdir.root
    self.prepared: set[pathlib.Path] = set()  # shared workdirs of this call

  def run(self, trials: Sequence[Trial]) -> list[Trial]:
    """Runs what is not finished; returns the trials that failed."""
    failed = []
    for number, trial in enumerate(trials, start=1):
      said = f"sweep: trial {number} of {len(trials)}, {trial.name}"
      if self._is_done(trial):
        logging.info("%s: done and unchanged, skipped", said)
        continue
      logging.info("%s: started", said)
      reason = self._trial(trial)
      if reason:
        logging.warning("%s: failed: %s", said, reason)
        failed.append(trial)
      else:
        logging.info("%s: done", said)
    return failed

  def _is_done(self, trial: Trial) -> bool:
    path = self._beside(trial, "done.json")
    training = _place(self.call.workdir, trial).training
    try:
      workdir_lib.read_manifest(training, "train")
      return workdir_lib.read_record(path) == self._state(trial)
    except errors.InputError:
      return False

  def _state(self, trial: Trial) -> dict[str, str]:
    config = config_lib.plain(trial.config)
    return {
      "command": self.command,
      "config": workdir_lib.fingerprint(config),
      "files": workdir_lib.fingerprint(_files(trial)),
    }

  def _beside(self, trial: Trial, suffix: str) -> pathlib.Path:
    return self.root / "trials" / f"{trial.name}.{suffix}"

  def _trial(self, trial: Trial) -> str:
    """Runs one trial; returns why it failed, "" = it did not."""
    self._beside(trial, "done.json").unlink(missing_ok=True)
    place, shared = _place(self.call.workdir, trial), self._shared(trial)
    if shared.root not in self.prepared:
      for name in _PREPARES:
        log = shared.root.with_name(f"{shared.root.name}.log")
        if reason := self._command(name, trial, shared, log):
          return reason
      self.prepared.add(shared.root)
    reused = _reused(trial)
    share(shared, place, (*_PREPARED, *reused))
    log = self._beside(trial, "log")
    if reason := self._command(self.command, trial, place, log):
      return reason
    share(place, shared, reused)
    workdir_lib.write_record(
      self._beside(trial, "done.json"), self._state(trial)
    )
    return ""

  def _shared(self, trial: Trial) -> workdir_lib.Workdir:
    """The workdir with the data and negatives that a trial needs."""
    return workdir_lib.Workdir(self.root / "shared" / _shared_name(trial))

  def _command(
    self,
    name: str,
    trial: Trial,
    place: workdir_lib.Workdir,
    log: pathlib.Path,
  ) -> str:
    """Runs a command in a process of its own; returns why it failed, or "".

    Args:
      name: name of the command.
      trial: the trial whose config it takes.
      place: its workdir.
      log: file that its output is appended to.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    config = self._beside(trial, "json")
    workdir_lib.write_json(config, config_lib.plain(trial.config))
    arguments = [
      *(sys.executable, "-m", "dpr_jax", name),
      f"--config={json_config.__file__}:{config}",
      f"--workdir={place.root}",
    ]
    if commands.BY_NAME[name].devices and self.call.cpu_devices:
      arguments.append(f"--cpu_devices={self.call.cpu_devices}")
    began = log.stat().st_size if log.exists() else 0
    code = child_processes.run_program(arguments, log)
    if not code:
      return ""
    with log.open("rb") as file:
      file.seek(began)
      lines = file.read().decode("utf-8", "replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "")
    return f"`dpr-jax {name}` ended with {code}: {last}; see {log}"


def _files(trial: Trial) -> dict[str, list[int]]:
  """Size and time of the files that a trial's settings name.

  Where one has changed, the trial is started again, and its stages see whether
  the contents did.
  """
  found = {}
  for key in config_lib.PATHS:
    for name in str(settings_table.value_of(trial.config, key)).split(","):
      path = pathlib.Path(name)
      if path.is_file():
        status = path.stat()
        found[name] = [status.st_size, status.st_mtime_ns]
  return found


def _shared_name(trial: Trial) -> str:
  """Name of the shared workdir: trials with the same one need the same."""
  own = {
    key: value
    for key, value in trial.values.items()
    if {key, key.partition(".")[0]} & {*_DATA}
  }
  if trial.config.mine.sampling != "top":  # negatives are drawn with the seed
    own["seed"] = trial.seed
  name = sweep_grid.name_of(own)
  if not sweep_grid.is_exact(own):  # other values may have this name
    name += "-" + workdir_lib.fingerprint(own)[:6]
  return name


def _reused(trial: Trial) -> tuple[str, ...]:
  """What a trial can take from another one that was made from the same data."""
  if any(key.partition(".")[0] in _START for key in trial.values):
    return ()
  if trial.config.model.checkpoint == "random":  # each seed starts elsewhere
    return tuple(name for name in _REUSED if name != _VECTORS)
  return _REUSED


def share(
  source: workdir_lib.Workdir,
  target: workdir_lib.Workdir,
  names: Sequence[str],
) -> None:
  """Links the files of some folders into another workdir that lacks them.

  Where the disk has no hard links, symbolic ones are made: nothing is copied.

  Args:
    source: workdir that has the folders, or some of them.
    target: workdir on the same disk.
    names: paths of the folders in a workdir.

  Raises:
    DiskError: the target cannot be written.
  """
  for name in names:
    old, new = source.root / name, target.root / name
    if not old.is_dir() or new.exists():
      continue
    with workdir_lib.replace_folder(new, None) as temporary:
      for path in sorted(old.rglob("*")):
        copy = temporary / path.relative_to(old)
        if path.is_dir():
          copy.mkdir()
          continue
        try:
          os.link(path, copy)
        except OSError:
          copy.symlink_to(path.resolve())
