"""Commands run by forking from a process that has imported everything."""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import select
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
TIMEOUT = 120.0  # seconds; a trial that takes longer hangs
_LOG = re.compile(r"\d\d:\d\d:\d\d ")


@dataclasses.dataclass
class Outcome:
  """How a command ended.

  Attributes:
    code: of the exit; below 0 = killed by this signal.
    stdout: all of it.
    stderr: all of it.
    seconds: from fork to end.
    megabytes: of memory, at most.
    disk: where failing_disk.c was armed: `counts` by kind, the first `path`
      that failed, and how many calls did (`hits`).
  """

  code: int
  stdout: str
  stderr: str
  seconds: float
  megabytes: int
  disk: dict | None = None

  @property
  def lines(self) -> list[str]:
    """Of stderr, without what is logged with a time before it."""
    return [line for line in self.stderr.splitlines() if not _LOG.match(line)]

  @property
  def log(self) -> list[str]:
    """Of stderr, what is logged with a time before it."""
    return [line for line in self.stderr.splitlines() if _LOG.match(line)]


class Zygote:
  """The forking process."""

  def __init__(self, folder: pathlib.Path, environment: dict, preload=None):
    """Starts it.

    Args:
      folder: for stdout and stderr of the trials.
      environment: of all of them.
      preload: failing_disk.c, compiled; None = there is no compiler.
    """
    environment = environment | {
      "PYTHONWARNINGS": "ignore",
      "OPENBLAS_NUM_THREADS": "1",  # else it has threads from its import on
    }
    if preload:
      environment["LD_PRELOAD"] = str(preload)
    self.can_fail_disks = preload is not None
    self._folder, self._number = folder, 0
    self._answers: dict[int, dict] = {}
    self._buffer = b""
    self._process = subprocess.Popen(
      [sys.executable, str(HERE / "zygote.py")],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      env=environment,
    )

  def close(self) -> None:
    """Ends it."""
    self._process.stdin.close()
    self._process.wait(30)
    self._process.stdout.close()

  def start(self, *argv, cwd=None, **asked) -> "Run":
    """A command that runs; see zygote.py for `asked`."""
    self._number += 1
    number = self._number
    asked |= {
      "id": number,
      "argv": [str(word) for word in argv],
      "cwd": str(cwd or self._folder),
      "stdout": str(self._folder / f"{number}.out"),
      "stderr": str(self._folder / f"{number}.err"),
    }
    self._process.stdin.write(json.dumps(asked).encode() + b"\n")
    self._process.stdin.flush()
    pid = self._answer(number, "pid", TIMEOUT)["pid"]
    return Run(self, number, pid, asked)

  def run(self, *argv, **asked) -> Outcome:
    """A command to its end."""
    return self.start(*argv, **asked).wait()

  def _answer(self, number: int, key: str, seconds: float) -> dict | None:
    deadline = time.monotonic() + seconds
    while key not in self._answers.get(number, {}):
      left = max(0.0, deadline - time.monotonic())
      pipe = self._process.stdout.fileno()
      if not select.select([pipe], [], [], left)[0]:
        return None
      block = os.read(pipe, 1 << 16)
      if not block:
        raise RuntimeError(f"the forking process ended: {self._process.wait()}")
      *lines, self._buffer = (self._buffer + block).split(b"\n")
      for line in lines:
        answer = json.loads(line)
        self._answers.setdefault(answer["id"], {}).update(answer)
    return self._answers[number]


@dataclasses.dataclass
class Run:
  """A command that was started."""

  zygote: Zygote
  number: int
  pid: int
  asked: dict

  def signal(self, number: int) -> None:
    """Sends a signal, if it still runs."""
    with contextlib.suppress(ProcessLookupError):
      os.kill(self.pid, number)

  def ended(self) -> bool:
    """True when it has."""
    return self.zygote._answer(self.number, "code", 0.0) is not None

  def wait(self, seconds: float = TIMEOUT) -> Outcome:
    """Its end; killed, and said so in stderr, where that takes too long."""
    answer = self.zygote._answer(self.number, "code", seconds)
    hangs = answer is None
    if hangs:
      self.signal(9)
      answer = self.zygote._answer(self.number, "code", TIMEOUT)
    texts = {}
    for name in ("stdout", "stderr"):
      path = pathlib.Path(self.asked[name])
      texts[name] = path.read_text(encoding="utf-8", errors="replace")
      path.unlink()
    if hangs:
      texts["stderr"] += f"\nstill running after {seconds:g} s, killed"
    return Outcome(
      code=answer["code"],
      seconds=answer["seconds"],
      megabytes=answer["megabytes"],
      disk=answer["disk"],
      **texts,
    )
