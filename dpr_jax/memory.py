"""How much memory there is, and how much this process has taken.

Linux says it in /proc; elsewhere nobody does, and the answer is None.
"""

import pathlib


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
  return _lines("/proc/meminfo", ("MemTotal:", "MemAvailable:"))


def resident() -> dict[str, int]:
  """This process's memory now ("VmRSS") and at most ("VmHWM"), in bytes."""
  return _lines("/proc/self/status", ("VmRSS:", "VmHWM:"))


def _lines(path: str, names: tuple[str, ...]) -> dict[str, int]:
  try:
    lines = pathlib.Path(path).read_text().splitlines()
  except OSError:
    return {}
  rows = (line.split() for line in lines)
  return {
    row[0].rstrip(":"): 1024 * int(row[1])
    for row in rows
    if row and row[0] in names
  }
