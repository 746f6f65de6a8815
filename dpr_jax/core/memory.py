"""How much memory and how many CPUs there are for this process.

Linux says in /proc how much memory there is and how much the process has taken;
elsewhere nobody does, and the answer is None.
"""

import os
import pathlib
import re


def usable_cpus() -> int:
  """CPUs of this machine that the process may use, at least 1."""
  if hasattr(os, "sched_getaffinity"):  # not on every system
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def available_memory() -> int | None:
  """Bytes that this process may still take; None where nobody says."""
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
  """Some lines of Linux's /proc/meminfo, in bytes; empty elsewhere."""
  found = {
    name: _line("/proc/meminfo", name) for name in ("MemTotal", "MemAvailable")
  }
  return {name: size for name, size in found.items() if size is not None}


def status(name: str) -> int | None:
  """A line of /proc/self/status in bytes; None where there is none.

  "VmRSS" is what the process holds now, "VmHWM" the most it has held, "RssAnon"
  what of it is no file's.  Not `getrusage`: its peak starts from the parent's.
  """
  return _line("/proc/self/status", name)


def _line(path: str, name: str) -> int | None:
  try:
    text = pathlib.Path(path).read_text()
  except OSError:
    return None
  match = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
  return 1024 * int(match.group(1)) if match else None
