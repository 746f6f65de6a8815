"""Calls in forked children: bounded, measured, and unable to harm the tests."""

import faulthandler
import gc
import json
import os
import signal
import tempfile
import time
import traceback
import warnings

import regex

MB = 1_000_000


def in_child(function, seconds=120):
  """Runs `function` in a fork of this process.

  Returns:
    (what it returned, as JSON; CPU seconds; bytes of memory that it added).

  Raises:
    AssertionError: it raised, died of a signal or took `seconds`; with its
      stack, where Python could still write one.
  """
  reading, writing = os.pipe()
  stack = tempfile.TemporaryFile("w+")
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # JAX, which the child does not use
    child = os.fork()
  if not child:
    status = 1
    try:
      os.close(reading)
      faulthandler.enable(stack)
      faulthandler.register(signal.SIGALRM, stack, chain=True)
      gc.freeze()  # the child must not free what is JAX's: its threads are gone
      signal.alarm(seconds)
      with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak is forgotten
      before, began = _peak(), time.process_time()
      result = function()
      report = [result, time.process_time() - began, _peak() - before]
      with os.fdopen(writing, "w") as file:
        json.dump(report, file)
      status = 0
    except BaseException:
      traceback.print_exc(file=stack)
      stack.flush()
    finally:
      os._exit(status)
  os.close(writing)
  with os.fdopen(reading) as file:
    report = file.read()
  _, status = os.waitpid(child, 0)
  with stack:
    stack.seek(0)
    said = stack.read()
  assert status == 0, f"the child ended with status {status}\n{said}"
  return tuple(json.loads(report))


def _peak():
  with open("/proc/self/status") as file:
    words = file.read().split("VmHWM:")[1].split()
  return 1024 * int(words[0])


# CPU seconds of `_work` on the machine that the bounds were chosen on.
_USUAL = 0.15
_TOKENS = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")


def _work():
  """Much the same as what is bounded, but linear; returns its CPU seconds."""
  began = time.process_time()
  for token in _TOKENS.finditer("a word, é! " * 100_000):
    token.group().lower()
  return time.process_time() - began


def slowness():
  """How much slower than usual this machine is now; at least 1."""
  return max(1.0, min(_work() for _ in range(3)) / _USUAL)


def within_bounds(function, seconds, size):
  """Asserts that a call takes no more; a busy machine gets a second try.

  Args:
    function: what to call.
    seconds: CPU seconds on a machine of usual speed.
    size: bytes of memory.
  """

  def call():
    function()  # what it returns is of no matter

  for last in (False, True):
    allowed = seconds * slowness()
    _, took, grew = in_child(call)
    if took <= allowed or last:
      break
  assert took <= allowed, f"{took:.2f} s of CPU, {allowed:.2f} allowed"
  assert grew <= size, f"{grew / MB:.0f} MB"
