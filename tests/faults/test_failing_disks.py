"""Row 9: every call that writes fails once, in every command.

A run without faults counts the calls below the trial's folder; then call
number N of a kind fails.  The command must end with exit code 2 and one line
that names what could not be written, and why; and running it again must leave
what a run without faults leaves.
"""

import errno
import os
import pathlib
import random
import re
import shutil
import subprocess

import pytest

from tests.faults import flows, table
from tests.faults.amounts import FULL, amount

# By kind of call: the errors that a disk may answer with.
ERRORS = {
  "open": ("ENOSPC", "EACCES", "EROFS", "EDQUOT"),
  "write": ("ENOSPC", "EIO", "EDQUOT"),
  "fsync": ("EIO", "ENOSPC"),
  "rename": ("EACCES", "EIO", "ENOSPC", "EROFS"),
  "mkdir": ("ENOSPC", "EACCES", "EROFS"),
  "truncate": ("ENOSPC", "EFBIG"),
  "read": ("EIO", "EACCES"),
}
# Trials of a kind in one command, at most; calls are taken evenly.
MOST = {"write": 10, "read": 5, "mkdir": 8}
MOST_OTHERS = 18
# Orbax and FAISS name their files as they like: the folder is enough.
_MARKED = re.compile(r"\.(dprjax-)?(tmp|old)-\d+|\.orbax-checkpoint-tmp.*")


def _trials(command, counts):
  """Names of trials: `command kind N error once|on`."""
  if len(table.WANTED.split()) == 5 and table.WANTED.split()[0] == command:
    return [table.WANTED]  # how many calls there are may change
  chance = random.Random(command)
  trials = []
  for kind, names in ERRORS.items():
    count, most = counts[kind], MOST.get(kind, MOST_OTHERS)
    numbers = sorted(chance.sample(range(count), min(most, count)))
    trials += [
      f"{command} {kind} {n} {names[i % len(names)]} {('once', 'on')[n % 2]}"
      for i, n in enumerate(numbers)
    ]
  chance.shuffle(trials)
  return trials[: amount(len(trials), 1)]


def _fault(trial, root):
  _, kind, nth, name, often = trial.split()
  return {
    "folder": str(root),
    "kind": kind,
    "nth": int(nth),
    "errno": getattr(errno, name),
    "forever": int(often == "on"),
  }


def _plain_name(path):
  return pathlib.Path(_MARKED.sub("", str(path)))


def names_path(line, path, root):
  """True if a line names a path, or a folder of it that is not `root` itself.

  Temporary names count as what they become.
  """
  path, text = _plain_name(path), _MARKED.sub("", line)
  places = [path, *path.parents]
  whole = (root, root / "w")  # which say nothing
  inside = [str(p) for p in places if root in p.parents and p not in whole]
  return any(p in text for p in inside or [str(path)])


def check_refusal(ended, paths, reason, root):
  """Exit code 2 and one line that names the path and the reason."""
  assert ended.code == 2, f"exit {ended.code}: {_last(ended)}"
  assert len(ended.lines) == 1, f"{len(ended.lines)} lines: {_last(ended)}"
  line = ended.lines[0]
  named = any(names_path(line, path, root) for path in paths)
  assert named, f"without the path {' or '.join(paths)}: {line}"
  assert reason in line, f"without the reason: {line}"


def _last(ended):
  return " / ".join(ended.lines[-2:])[-400:]


def check_rerun(flow, command, root):
  """Running it again leaves what a run without faults leaves."""
  again = flow.run(command, root)
  assert again.code == 0, f"again: exit {again.code}: {_last(again)}"
  other = flow.differences(command, root)
  assert not other, f"again: other files: {other}"
  checked = flow.check(root)
  assert checked.code == 0, f"check: {checked.stdout[-300:]}{_last(checked)}"


@pytest.fixture
def disk(flow):
  """The forking process, if it can fail disks."""
  if not flow.zygote.can_fail_disks:
    pytest.skip("no C compiler: failing_disk.c cannot be built")
  return flow


@pytest.mark.slow
@pytest.mark.parametrize(
  "command",
  flows.COMMANDS if FULL else ("prepare", "train", "embed", "index", "import"),
)
def test_every_call_fails_once(disk, command, tally, tmp_path):
  flow, rows = disk, tally(9)
  root = tmp_path / "count"
  flow.copy_before(command, root)
  counted = flow.run(command, root, disk={"folder": str(root)})
  assert counted.code == 0, counted.stderr
  for trial in rows.each(_trials(command, counted.disk["counts"])):
    root = tmp_path / "trial"
    shutil.rmtree(root, ignore_errors=True)
    flow.copy_before(command, root)
    fault = _fault(trial, root)
    with rows.trial(trial):
      ended = flow.run(command, root, disk=fault)
      if ended.disk and not ended.code:
        # Threads: fewer calls this time; or one that need not succeed.
        other = flow.differences(command, root)
        assert not other, f"exit 0: other files: {other}"
        continue
      # A first call need not succeed, as that for a folder which is there.
      paths = ended.disk["paths"] if ended.disk else []
      check_refusal(ended, paths, os.strerror(fault["errno"]), root)
      check_rerun(flow, command, root)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["mine", "train", "embed", "import"])
def test_files_may_not_grow(flow, command, tally, tmp_path):
  """RLIMIT_FSIZE: as a quota, but for a single file."""
  rows = tally(9)
  sizes = [1 << 14, 1 << 10, 1 << 12][: amount(3, 1)]
  for size in rows.each(sizes):
    root = tmp_path / f"{size}"
    flow.copy_before(command, root)
    with rows.trial(f"{command} RLIMIT_FSIZE {size}"):
      ended = flow.run(command, root, limits={"FSIZE": size})
      if ended.code:
        check_refusal(ended, [root], os.strerror(errno.EFBIG), root)
      check_rerun(flow, command, root)


@pytest.mark.slow
@pytest.mark.skipif(not FULL, reason="in `make faults`")
@pytest.mark.parametrize("command", flows.COMMANDS)
def test_a_small_disk(flow, command, tally, tmp_path):
  """A file system with room for some of it."""
  rows, mount = tally(9), tmp_path / "disk"
  mount.mkdir()
  for room in rows.each((8, 64, 400)):
    root = mount / "trial"
    tried = subprocess.run(
      ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", mount],
      capture_output=True,
    )
    if tried.returncode:
      pytest.skip(f"no small disk: {tried.stderr.decode().strip()}")
    try:
      flow.copy_before(command, root)
      used = shutil.disk_usage(mount).used
      size = f"size={used + (room << 10)}"
      subprocess.run(["mount", "-o", f"remount,{size}", mount], check=True)
      with rows.trial(f"{command} tmpfs {room} kB"):
        ended = flow.run(command, root)
        if ended.code:
          check_refusal(ended, [root], os.strerror(errno.ENOSPC), root)
        subprocess.run(["mount", "-o", "remount,size=64m", mount], check=True)
        check_rerun(flow, command, root)
    finally:
      subprocess.run(["umount", mount], check=True)
