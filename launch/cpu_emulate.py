#!/usr/bin/env python3
"""Runs a command as P processes on this machine, with D CPU devices each.

  launch/cpu_emulate.py --processes=2 --devices=4 -- dpr-jax train ...

It emulates P hosts with D TPU devices each: the processes connect through
`jax.distributed` over 127.0.0.1.  They are configured by environment variables:
DPR_JAX_COORDINATOR, DPR_JAX_NUM_PROCESSES, DPR_JAX_PROCESS_ID and
DPR_JAX_CPU_DEVICES.

Their output is copied line by line with the prefix `[0] `, `[1] `, ...  If a
process fails, the others would wait for it forever, so they get SIGTERM, and
SIGKILL after --grace seconds.  The exit code is that of the process that failed
first (128 + n if signal n killed it), because the others abort with 134 soon
after.  SIGINT and SIGTERM are passed on, and the exit code is then 130 or 143;
a second signal kills.  Needs only Python on POSIX.
"""

import argparse
import contextlib
import ctypes
import os
import pathlib
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import BinaryIO

ABORTED = 128 + signal.SIGABRT
DRAIN_SECONDS = 2.0  # for output after the last process has ended


def say(message: str) -> None:
  """Prints a line of the launcher itself on stderr."""
  print(f"cpu_emulate: {message}", file=sys.stderr, flush=True)


def die_with_parent() -> None:
  """Called in the child: requests SIGTERM if the launcher dies (Linux)."""
  pr_set_pdeathsig = 1
  ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


class Child:
  """One of the processes; it leads a process group of its own."""

  def __init__(self, number: int, command: Sequence[str], extra: dict):
    self.number = number
    self.exit_code: int | None = None
    self.process = subprocess.Popen(
      command,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      env={**os.environ, **extra},
      start_new_session=True,
      preexec_fn=die_with_parent if sys.platform == "linux" else None,
    )

  def signal(self, number: int) -> None:
    """Sends a signal to the process group, unless the child has been reaped.

    After that, its id could belong to another process.
    """
    if self.exit_code is None:
      with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(self.process.pid, number)

  def has_ended(self) -> bool:
    """True once, after the child has ended; its own children are killed."""
    if self.exit_code is not None:
      return False
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT
    if os.waitid(os.P_PID, self.process.pid, options) is None:
      return False
    self.signal(signal.SIGKILL)
    code = self.process.wait()
    self.exit_code = code if code >= 0 else 128 - code
    return True

  def how(self) -> str:
    """Describes how the child ended."""
    code = self.process.returncode
    if code >= 0:
      return f"exit code {code}"
    return f"killed by {signal.Signals(-code).name}"


class Output:
  """One pipe of a child; copies whole lines with the child's number."""

  def __init__(self, child: Child, pipe: BinaryIO, target: BinaryIO):
    self.pipe = pipe
    self._prefix = b"[%d] " % child.number
    self._target = target
    self._rest = b""

  def copy(self) -> bool:
    """Copies the available output; False at the end of the pipe."""
    block = os.read(self.pipe.fileno(), 1 << 16)
    *lines, self._rest = (self._rest + block).split(b"\n")
    if not block and self._rest:
      lines, self._rest = [self._rest], b""
    for line in lines:
      self._target.write(self._prefix + line + b"\n")
    self._target.flush()
    return bool(block)


class Launcher:
  """Starts the processes, copies their output and ends them together."""

  def __init__(self, grace: float):
    self.grace = grace
    self.children: list[Child] = []
    self.first_failure: Child | None = None
    self.received: int | None = None
    self._kill_at: float | None = None
    self._selector = selectors.DefaultSelector()
    self._wake_read, self._wake_write = socket.socketpair()

  def start(self, command: Sequence[str], processes: int, devices: int) -> None:
    """Starts every process and watches its output."""
    address = f"127.0.0.1:{free_port()}"
    for number in range(processes):
      if self.received is not None:  # a signal arrived during the start
        return
      extra = {
        "DPR_JAX_COORDINATOR": address,
        "DPR_JAX_NUM_PROCESSES": str(processes),
        "DPR_JAX_PROCESS_ID": str(number),
        "DPR_JAX_CPU_DEVICES": str(devices),
        "JAX_PLATFORMS": "cpu",
        "PYTHONUNBUFFERED": "1",
      }
      child = Child(number, command, extra)
      self.children.append(child)
      for pipe, target in (
        (child.process.stdout, sys.stdout.buffer),
        (child.process.stderr, sys.stderr.buffer),
      ):
        output = Output(child, pipe, target)
        self._selector.register(pipe, selectors.EVENT_READ, output)

  def listen(self) -> None:
    """Installs signal handlers: signals wake the loop and are passed on."""
    for end in (self._wake_read, self._wake_write):
      end.setblocking(False)
    signal.set_wakeup_fd(self._wake_write.fileno())
    self._selector.register(self._wake_read, selectors.EVENT_READ, None)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.signal(signal.SIGINT, self._pass_on)
    signal.signal(signal.SIGTERM, self._pass_on)

  def _pass_on(self, number: int, frame: object) -> None:
    if self.received is None:
      self.received = number
      self._stop(number)
    else:
      self._stop(signal.SIGKILL)

  def _stop(self, number: int) -> None:
    for child in self.children:
      child.signal(number)
    if self._kill_at is None:
      self._kill_at = time.monotonic() + self.grace

  def run(self) -> int:
    """Waits until all processes have ended; returns the exit code."""
    while any(child.exit_code is None for child in self.children):
      self._copy_output(timeout=0.2)
      self._notice_ends()
      if self._kill_at is not None and time.monotonic() > self._kill_at:
        self._stop(signal.SIGKILL)
    deadline = time.monotonic() + DRAIN_SECONDS
    while self._open_pipes() and time.monotonic() < deadline:
      self._copy_output(timeout=0.1)
    if self.received is not None:
      return 128 + self.received
    return self.first_failure.exit_code if self.first_failure else 0

  def _open_pipes(self) -> bool:
    return any(key.data for key in self._selector.get_map().values())

  def _copy_output(self, timeout: float) -> None:
    for key, _ in self._selector.select(timeout):
      if key.data is None:
        with contextlib.suppress(BlockingIOError):
          self._wake_read.recv(4096)
      elif not key.data.copy():
        self._selector.unregister(key.fileobj)

  def _notice_ends(self) -> None:
    ended = [child for child in self.children if child.has_ended()]
    failed = [child for child in ended if child.exit_code != 0]
    # If several ended since the last check, an abort is the consequence of
    # another failure.
    failed.sort(key=lambda child: (child.exit_code == ABORTED, child.number))
    if failed and self.first_failure is None:
      self.first_failure = failed[0]
      if self.received is None:
        say(
          f"process {failed[0].number} ended first, {failed[0].how()};"
          " stopping the others"
        )
        self._stop(signal.SIGTERM)
        failed = failed[1:]
    for child in failed:
      say(f"process {child.number} ended too, {child.how()}")

  def close(self) -> None:
    """Kills all remaining processes."""
    for child in self.children:
      child.signal(signal.SIGKILL)
      if child.exit_code is None:
        child.process.wait()
    for resource in (self._selector, self._wake_read, self._wake_write):
      resource.close()


def free_port() -> int:
  """A port of 127.0.0.1 that is free at the moment."""
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    return listener.getsockname()[1]


def find_command(command: Sequence[str]) -> list[str]:
  """The command with the path of its program, on PATH or beside this Python."""
  beside = pathlib.Path(sys.executable).parent
  for path in (None, str(beside)):
    if program := shutil.which(command[0], path=path):
      return [program, *command[1:]]
  raise FileNotFoundError(
    f"there is no program {command[0]!r} on PATH or in {beside}"
  )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
  """Parses the command line; exits with 2 if it is not valid."""
  parser = argparse.ArgumentParser(
    description=__doc__.partition("\n")[0],
    usage="%(prog)s --processes=P --devices=D [--grace=S] -- COMMAND ...",
  )
  parser.add_argument("--processes", type=int, required=True)
  parser.add_argument("--devices", type=int, required=True)
  parser.add_argument(
    "--grace",
    type=float,
    default=30.0,
    help="seconds between SIGTERM and SIGKILL (default: %(default)s)",
  )
  parser.add_argument("command", nargs="+")
  options = parser.parse_args(arguments)
  for name in ("processes", "devices"):
    if getattr(options, name) < 1:
      parser.error(f"--{name}={getattr(options, name)}: must be at least 1")
  if options.grace < 0:
    parser.error(f"--grace={options.grace}: must not be negative")
  return options


def main(arguments: Sequence[str]) -> int:
  """Runs the launcher; returns the exit code."""
  options = parse(arguments)
  try:
    command = find_command(options.command)
  except FileNotFoundError as error:
    say(f"error: {error}")
    return 2
  launcher = Launcher(options.grace)
  try:
    launcher.listen()
    launcher.start(command, options.processes, options.devices)
    return launcher.run()
  finally:
    signal.set_wakeup_fd(-1)
    launcher.close()


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
