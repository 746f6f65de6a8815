"""What is said of memory and CPUs: plausible, or nothing."""

import pathlib

import numpy as np
import pytest

from dpr_jax.core import memory


def test_available_memory():
  found = memory.available_memory()
  assert found is None or 1e6 < found < 1e15


def test_usable_cpus_are_those_that_the_process_is_bound_to(monkeypatch):
  monkeypatch.setattr(
    memory.os, "sched_getaffinity", lambda _: {0, 1, 5}, raising=False
  )
  monkeypatch.setattr(memory.os, "cpu_count", lambda: 7)
  assert memory.usable_cpus() == 3
  monkeypatch.delattr(memory.os, "sched_getaffinity")
  assert memory.usable_cpus() == 7
  monkeypatch.setattr(memory.os, "cpu_count", lambda: None)
  assert memory.usable_cpus() == 1


def test_resident_memory_grows_with_what_is_held():
  if not pathlib.Path("/proc/self/status").exists():
    pytest.skip("no /proc here")
  before = memory.status("VmRSS")
  held = np.ones(200_000_000, np.uint8)
  after = memory.status("VmRSS")
  assert 100e6 < after - before < 300e6
  assert memory.status("VmHWM") >= after
  assert memory.status("NoSuchLine") is None
  assert held[0] == 1
