"""The cache of compiled programs that all processes of a test run share."""

import subprocess
import sys

import jax
import pytest

from dpr_jax.core import program_cache
from tests import jax_private, programs


def test_tests_use_it():
  cache = jax_private.compilation_cache()
  opened, _ = cache.get_file_cache(str(programs.FOLDER))
  assert type(opened) is program_cache.Programs
  assert opened.path == programs.FOLDER
  assert jax.config.jax_compilation_cache_dir == str(programs.FOLDER)
  assert jax.config.jax_compilation_cache_max_size == programs.AT_MOST
  assert jax.config.jax_persistent_cache_min_compile_time_secs == 0


@pytest.mark.processes
def test_processes_use_it(environment):
  code = (
    "import jax\n"
    "from tests import jax_private\n"
    "folder = jax.config.jax_compilation_cache_dir\n"
    "opened, _ = jax_private.compilation_cache().get_file_cache(folder)\n"
    "print(type(opened).__name__, folder)"
  )
  ended = subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    text=True,
    env=environment,
  )
  assert ended.stdout.split() == ["Programs", str(programs.FOLDER)], (
    ended.stderr
  )
