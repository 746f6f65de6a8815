"""Memory and CPUs that this process may use.

Linux reports memory in /proc; on other systems the answer is None.
"""

import os
import pathlib
import re


def usable_cpus() -> int:
  """Number of CPUs that the process may use, at least 1."""
  if hasattr(os, "sched_getaffinity"):  # not on every system
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def available_memory() -> int | None:
  """Bytes that this process may still allocate; None = not known."""
  memory = meminfo()
  found = [memory["MemAvailable"]] if memory else []
  group = pathlib.Path("/sys/fs/cgroup")
  try:
    limit = (group / "memory.max").read_text().strip()
    used = (group / "memory.current").read_text().strip()
    if limit != "max":
      found.append(int(limit) - int(used))
  except (OSError, ValueError):
    pass
  return min(found) if found else None


def meminfo() -> dict[str, int]:
  """MemTotal and MemAvailable of /proc/meminfo in bytes; {} if not on Linux."""
  found = {
    name: _line("/proc/meminfo", name) for name in ("MemTotal", "MemAvailable")
  }
  return {name: size for name, size in found.items() if size is not None}


def children() -> list[int]:
  """Ids of the processes that this one has started, and of theirs.

  Empty where the system does not list them in /proc.
  """
  found, new = [], [os.getpid()]
  while new:
    lists = pathlib.Path(f"/proc/{new.pop()}/task").glob("*/children")
    for path in lists:
      try:
        ids = [int(word) for word in path.read_text().split()]
      except OSError:  # it has ended
        continue
      found += ids
      new += ids
  return found


def status(name: str, process: int | str = "self") -> int | None:
  """A value of /proc/<process>/status in bytes; None = not reported.

  "VmRSS" is the current resident memory, "VmHWM" its peak, "RssAnon" the part
  that is not mapped from files.  `getrusage` is not used, because the peak that
  it reports includes the parent process before the fork.
  """
  return _line(f"/proc/{process}/status", name)


def _line(path: str, name: str) -> int | None:
  try:
    text = pathlib.Path(path).read_text()
  except OSError:
    return None
  match = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
  return 1024 * int(match.group(1)) if match else None
