"""A process that has imported everything and forks a `dpr-jax` per request.

A trial then costs what the command itself costs, and none of the seconds that
imports take.  Requests are lines of JSON on stdin, answers lines on stdout:

  {"id": 1, "argv": ["train", ...], "cwd": ..., "stdout": ..., "stderr": ...,
   "env": {...}, "limits": {"FSIZE": bytes}, "disk": {...}, "hook": "..."}
  -> {"id": 1, "pid": 123}, at once
  -> {"id": 1, "code": 0, "seconds": 1.2, "megabytes": 300, "disk": {...}}

`disk` arms failing_disk.c, which is loaded by LD_PRELOAD; `hook` is Python to
be run before the command.  A code below 0 is a signal.
"""

import atexit
import contextlib
import ctypes
import importlib
import json
import os
import pkgutil
import resource
import select
import signal
import sys
import threading
import time
import traceback

KINDS = ("open", "read", "write", "fsync", "rename", "mkdir", "truncate")
# They start what must not be started before the fork, or take much longer, or
# are for libraries that may not be installed.
_NOT_IMPORTED = (
  *("dpr_jax.benchmarking", "dpr_jax.planning", "dpr_jax.configs"),
  "dpr_jax.integrations",
)


def import_everything() -> None:
  """All that commands import, and no threads."""
  import dpr_jax

  for module in pkgutil.walk_packages(dpr_jax.__path__, "dpr_jax."):
    if not module.name.startswith(_NOT_IMPORTED):
      importlib.import_module(module.name)
  # bm25s computes something with JAX when it is imported, if it can.
  kept = {name: sys.modules[name] for name in ("jax", "jax.lax")}
  sys.modules.update(dict.fromkeys(kept))
  importlib.import_module("bm25s")
  sys.modules.update(kept)
  for name in ("array_record.python.array_record_data_source", "grain.python"):
    importlib.import_module(name)
  import transformers

  from tests import jax_private

  _ = transformers.AutoTokenizer, transformers.BertTokenizerFast  # lazy ones
  assert not jax_private.backends_are_initialized()
  assert threading.active_count() == 1
  tasks = os.listdir("/proc/self/task")
  assert len(tasks) == 1, f"{len(tasks)} threads: a fork would lose them"


def _library():
  library = ctypes.CDLL(None)
  if not hasattr(library, "disk_arm"):
    return None
  library.disk_arm.argtypes = (
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_long,
    ctypes.c_int,
    ctypes.c_int,
  )
  library.disk_failed_paths.restype = ctypes.c_char_p
  library.disk_count.restype = ctypes.c_long
  return library


def _prepare(asked: dict) -> None:
  """What makes the forked process the one that was asked for."""
  os.setsid()
  for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
    flags = os.O_RDONLY if name == "stdin" else os.O_WRONLY | os.O_CREAT
    os.dup2(os.open(asked.get(name, os.devnull), flags, 0o644), number)
  import jax

  for name, value in asked.get("env", {}).items():
    if value is None:
      os.environ.pop(name, None)
    else:
      os.environ[name] = value
    if name.startswith("JAX_"):  # which were read at the import
      jax.config.update(name.lower(), value)
  if "FSIZE" in asked.get("limits", {}):  # for what is compiled, too: not kept
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)
  os.chdir(asked["cwd"])
  for name, value in asked.get("limits", {}).items():
    resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def _call(asked: dict) -> int:
  """The exit code of `dpr-jax ARGV`, its traceback printed as Python does."""
  from dpr_jax.cli import main as main_lib

  disk, library = asked.get("disk"), _library()
  sys.argv = ["dpr-jax", *asked["argv"]]
  try:
    exec(asked.get("hook", ""), {})
    if disk:
      library.disk_arm(
        disk["folder"].encode(),
        KINDS.index(disk["kind"]) if "kind" in disk else -1,
        disk.get("nth", 0),
        disk.get("errno", 0),
        disk.get("forever", 0),
      )
    main_lib.main()
    return 0
  except SystemExit as error:
    if isinstance(error.code, str):
      print(error.code, file=sys.stderr)
      return 1
    return error.code or 0
  except _Ended:
    raise
  except BaseException:
    traceback.print_exc()
    return 1


class _Ended(BaseException):
  """Stands for `os._exit` of the command."""


def _run(asked: dict, report: int) -> None:
  """In the fork: the command, and all that Python does at its end."""
  _prepare(asked)
  end_process = os._exit

  def end(code: int) -> None:
    raise _Ended(code)

  os._exit = end
  ends = (threading._shutdown, atexit._run_exitfuncs)
  try:
    code = _call(asked)
  except _Ended as ended:
    code, ends = ended.args[0], ()
  os._exit = end_process
  for end in ends:
    try:
      end()
    except Exception:  # which changes no exit code
      traceback.print_exc()
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError):
      stream.flush()
  if asked.get("disk"):
    library = _library()
    counts = {kind: library.disk_count(i) for i, kind in enumerate(KINDS)}
    paths = (library.disk_failed_paths() or b"").decode().splitlines()
    library.disk_arm(b"", -1, 0, 0, 0)
    value = {"counts": counts, "paths": paths, "hits": library.disk_failures()}
    os.write(report, json.dumps(value).encode())
  os._exit(code)


class _Server:
  """Starts what is asked for, and tells how it ended."""

  def __init__(self, answers):
    self._answers = answers
    self._running: dict[int, tuple] = {}

  def _say(self, **answer) -> None:
    print(json.dumps(answer), file=self._answers, flush=True)

  def start(self, asked: dict) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
      os.close(reading)
      signal.set_wakeup_fd(-1)
      signal.signal(signal.SIGCHLD, signal.SIG_DFL)
      try:
        _run(asked, writing)
      finally:
        os._exit(99)
    os.close(writing)
    self._running[child] = (asked["id"], time.monotonic(), reading)
    self._say(id=asked["id"], pid=child)

  def reap(self) -> None:
    while self._running:
      child, status, usage = os.wait4(-1, os.WNOHANG)
      if not child:
        return
      if child not in self._running:
        continue
      number, began, reading = self._running.pop(child)
      with open(reading, "rb") as file:
        report = file.read()
      self._say(
        id=number,
        code=os.waitstatus_to_exitcode(status),
        seconds=time.monotonic() - began,
        cpu=usage.ru_utime + usage.ru_stime,
        megabytes=usage.ru_maxrss >> 10,
        disk=json.loads(report) if report else None,
      )


def main() -> None:
  """Until stdin ends."""
  answers = os.fdopen(os.dup(1), "w")  # Python's are not inherited by exec
  os.dup2(2, 1)
  import_everything()
  waking, woken = os.pipe()
  for end in (waking, woken):
    os.set_blocking(end, False)
  signal.signal(signal.SIGCHLD, lambda *_: None)
  signal.set_wakeup_fd(woken)
  server, buffer = _Server(answers), b""
  while True:
    ready, _, _ = select.select([0, waking], [], [])
    if waking in ready:
      os.read(waking, 4096)
    server.reap()
    if 0 in ready:
      block = os.read(0, 1 << 16)
      if not block:
        return
      *lines, buffer = (buffer + block).split(b"\n")
      for line in lines:
        server.start(json.loads(line))


if __name__ == "__main__":
  main()
