"""Compiled programs on disk: whole, checked, bounded, never in the way."""

import os
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpr_jax.core import program_cache
from tests import jax_private


def _programs(folder, at_most=None):
  return program_cache.Programs(folder, at_most)


@pytest.fixture
def jax_settings(monkeypatch):
  """JAX's settings of the cache as a process begins with; restored later."""
  names = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_min_compile_time_secs",
  )
  before = {name: getattr(jax.config, name) for name in names}
  compilation_cache = jax_private.compilation_cache()
  opener = compilation_cache.get_file_cache
  jax.config.update("jax_compilation_cache_dir", None)
  jax.config.update("jax_compilation_cache_max_size", -1)
  jax.config.update("jax_enable_compilation_cache", True)  # plans switch it off
  monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
  compilation_cache.reset_cache()
  yield jax.config
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.get_file_cache = opener
  compilation_cache.reset_cache()


def test_a_name_is_that_of_a_whole_entry(tmp_path, monkeypatch):
  """While it is written it has no name that is read, and no trace stays."""
  programs, seen = _programs(tmp_path / "new"), []
  replace = os.replace

  def note(temporary, path):
    seen.append((programs.get("key"), os.path.getsize(temporary)))
    replace(temporary, path)

  monkeypatch.setattr(program_cache.os, "replace", note)
  programs.put("key", b"program")
  assert seen == [(None, 32 + 7)]
  assert programs.get("key") == b"program"
  programs.put("key", b"another")  # the first stays
  assert programs.get("key") == b"program"
  names = [path.name for path in (tmp_path / "new").iterdir()]
  assert names == ["key.program"]
  assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
  "damage",
  [
    lambda data: data[:-1],
    lambda data: data[:10],
    lambda data: b"",
    lambda data: data[:40] + b"X" + data[41:],
  ],
)
def test_a_damaged_entry_is_compiled_again(tmp_path, caplog, damage):
  programs = _programs(tmp_path)
  programs.put("key", b"a whole program")
  path = tmp_path / "key.program"
  path.write_bytes(damage(path.read_bytes()))
  assert programs.get("key") is None
  assert caplog.messages == [f"{path} is damaged: compiling the program again"]
  programs.put("key", b"a whole program")
  assert programs.get("key") == b"a whole program"


def test_the_least_recently_used_go_first(tmp_path):
  """Four of 132 bytes, of which three fit in 400; `a` has been used since."""
  programs = _programs(tmp_path, 400)
  for number, key in enumerate("abc"):
    programs.put(key, bytes(100))
    os.utime(tmp_path / f"{key}.program", (number, number))
  assert programs.get("a") == bytes(100)
  programs.put("d", bytes(100))
  assert sorted(path.stem for path in tmp_path.iterdir()) == ["a", "c", "d"]
  programs.put("huge", bytes(401))
  assert sorted(path.stem for path in tmp_path.iterdir()) == ["a", "c", "d"]


def test_what_a_killed_process_left_goes(tmp_path):
  """After an hour: a younger one may be of a process that still writes."""
  old, young = (
    tmp_path / f"key.dprjax-tmp-{number}.program" for number in (1, 2)
  )
  for path in (old, young):
    path.write_bytes(b"half")
  os.utime(old, (0, 0))
  _programs(tmp_path, 1000).put("other", b"program")
  names = {path.name for path in tmp_path.iterdir()}
  assert names == {young.name, "other.program"}


def test_many_writers_of_one_entry(tmp_path):
  programs = _programs(tmp_path, 1 << 20)
  barrier, errors = threading.Barrier(4), []

  def write():
    barrier.wait()
    try:
      for number in range(20):
        programs.put(f"key{number}", b"x" * 10_000)
        assert len(programs.get(f"key{number}")) == 10_000
    except BaseException as error:
      errors.append(error)

  threads = [threading.Thread(target=write) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not errors
  assert len(list(tmp_path.iterdir())) == 20


def test_a_disk_that_refuses_is_one_warning(tmp_path, caplog, monkeypatch):
  """Here a file where the folder should be; then a disk that is full."""
  (tmp_path / "file").write_text("no folder")
  programs = _programs(tmp_path / "file" / "programs")
  for key in ("a", "b"):
    assert programs.get(key) is None
    programs.put(key, b"program")
  assert len(caplog.messages) == 1
  assert "Not a directory" in caplog.messages[0]
  assert "JAX_ENABLE_COMPILATION_CACHE=false" in caplog.messages[0]

  def full(*_):
    raise OSError(28, "No space left on device")

  caplog.clear()
  programs = _programs(tmp_path / "full")
  programs.put("a", b"program")
  monkeypatch.setattr(program_cache.os, "replace", full)
  programs.put("b", b"program")
  programs.put("c", b"program")
  assert len(caplog.messages) == 1
  assert "No space left" in caplog.messages[0]
  assert [path.name for path in (tmp_path / "full").iterdir()] == ["a.program"]
  assert programs.get("a") == b"program"  # what is there is still used


def test_another_processor_has_another_folder(tmp_path):
  """Features and model count, their order, speed and number do not."""
  text = (
    "processor\t: {n}\nvendor_id\t: GenuineIntel\nmodel\t\t: 85\n"
    "cpu MHz\t\t: {mhz}\nflags\t\t: {flags}\n\n"
  )

  def name(*cores):
    path = tmp_path / "cpuinfo"
    path.write_text("".join(text.format(**core) for core in cores))
    return program_cache.processor(path)

  one = {"n": 0, "mhz": 2100, "flags": "sse avx2 avx512f"}
  two = {"n": 1, "mhz": 3300, "flags": "sse avx2 avx512f"}
  assert name(one) == name(one, two) == name(two)
  assert name(one) != name(one | {"flags": "sse avx2"})
  assert program_cache.processor(tmp_path / "none").count("-") == 1


def test_commands_keep_programs_in_the_users_cache(
  jax_settings, tmp_path, monkeypatch
):
  """A program that is loaded gives the bits of the one that was compiled."""
  monkeypatch.setenv("DPR_JAX_CACHE", str(tmp_path))
  program_cache.keep()
  folder = tmp_path / "programs" / program_cache.processor()
  assert jax_settings.jax_compilation_cache_dir == str(folder)
  assert jax_settings.jax_compilation_cache_max_size == program_cache.AT_MOST
  assert jax_settings.jax_persistent_cache_min_compile_time_secs == 0

  def run():
    step = jax.jit(
      jax.value_and_grad(lambda w, x: jnp.square(jnp.tanh(x @ w)).mean())
    )
    values = np.random.default_rng(0).normal(size=(2, 4, 4))
    return jax.device_get(step(*values.astype(np.float32)))

  gets, get = [], program_cache.Programs.get

  def noted(programs, key):
    found = get(programs, key)
    if "lambda" in key or "value_and_grad" in key:
      gets.append(found is not None)
    return found

  monkeypatch.setattr(program_cache.Programs, "get", noted)
  compiled = run()
  jax.clear_caches()  # as in another process
  loaded = run()
  assert gets == [False, True]
  for one, other in zip(compiled, loaded, strict=True):
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("jax_compilation_cache_dir", "somewhere"),
    ("jax_enable_compilation_cache", False),
  ],
)
def test_jaxs_own_settings_come_first(jax_settings, name, value):
  jax_settings.update(name, value)
  folder = jax_settings.jax_compilation_cache_dir
  program_cache.keep()
  assert jax_settings.jax_compilation_cache_dir == folder
  assert jax_settings.jax_compilation_cache_max_size == -1


def test_without_a_home_nothing_is_kept(jax_settings, caplog, monkeypatch):
  for name in ("DPR_JAX_CACHE", "XDG_CACHE_HOME", "HOME"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(os, "getuid", lambda: 4_000_000_001)
  program_cache.keep()
  assert jax_settings.jax_compilation_cache_dir is None
  assert "compiled programs are not kept" in caplog.text
