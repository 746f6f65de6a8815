"""The cache of compiled programs that all processes of a test run share."""

import os
import subprocess
import sys
import threading

import jax
import pytest

from tests import jax_private, programs

lru_cache = jax_private.lru_cache()


def test_half_an_entry_is_nobodys(tmp_path, monkeypatch):
  """While it is written it has no name that JAX reads."""
  cache = lru_cache.LRUCache(str(tmp_path), max_size=-1)
  seen = []
  replace = os.replace

  def note(temporary, path):
    seen.append((cache.get("key"), os.path.getsize(temporary)))
    replace(temporary, path)

  monkeypatch.setattr(programs.os, "replace", note)
  cache.put("key", b"program")
  assert seen == [(None, 7)]
  assert cache.get("key") == b"program"
  cache.put("key", b"another")  # the first stays, as with JAX
  assert cache.get("key") == b"program"
  assert [path.name for path in tmp_path.iterdir()] == ["key-cache"]


def test_many_writers_of_one_entry(tmp_path):
  cache = lru_cache.LRUCache(str(tmp_path), max_size=-1)
  barrier, errors = threading.Barrier(4), []

  def write():
    barrier.wait()
    try:
      for number in range(50):
        cache.put(f"key{number}", b"x" * 10_000)
        assert len(cache.get(f"key{number}")) == 10_000
    except BaseException as error:
      errors.append(error)

  threads = [threading.Thread(target=write) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not errors
  assert len(list(tmp_path.iterdir())) == 50


def test_tests_use_it():
  assert lru_cache.LRUCache.put is programs.put
  assert jax.config.jax_compilation_cache_dir == str(programs.FOLDER)
  assert jax.config.jax_persistent_cache_min_compile_time_secs == 0


@pytest.mark.processes
def test_processes_use_it(environment):
  code = (
    "from tests import programs\n"
    "import jax\n"
    "from tests import jax_private\n"
    "assert jax_private.lru_cache().LRUCache.put is programs.put\n"
    "print(jax.config.jax_compilation_cache_dir)"
  )
  ended = subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    text=True,
    env=environment,
  )
  assert ended.stdout.strip() == str(programs.FOLDER), ended.stderr


def test_a_folder_that_became_too_large_is_emptied(tmp_path, monkeypatch):
  """By the first process of a run alone: workers may be using it."""
  folder = tmp_path / "xla"
  folder.mkdir()
  (folder / "key-cache").write_bytes(b"12345")
  monkeypatch.setattr(programs, "FOLDER", folder)
  for name in (
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
    "PYTEST_XDIST_WORKER",
  ):
    monkeypatch.setenv(name, "gw0")
  for worker, limit, left in ((1, 4, True), (0, 5, True), (0, 4, False)):
    monkeypatch.setattr(programs, "AT_MOST", limit)
    if not worker:
      monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    programs.keep()
    assert folder.exists() == left
