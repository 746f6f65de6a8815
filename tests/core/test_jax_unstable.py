"""JAX outside its stable API: used in one file, and the public way first."""

import ast
import pathlib
import sys
import types

import jax
import pytest

from dpr_jax.core import jax_unstable
from tests import floors, jax_private

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
UNSTABLE = ("jax._src", "jax.experimental", "jaxlib")
# Switches that JAX calls experimental, or does not document.
SWITCHES = ("jax_enable_recoverability", "jax_enable_preemption_service")
WORDS = ("_src", "experimental", "jaxlib", *SWITCHES)
ALLOWED = {"dpr_jax/core/jax_unstable.py", "tests/jax_private.py"}
SOURCES = [
  path
  for folder in ("dpr_jax", "tests", "configs", "launch")
  for path in sorted((REPOSITORY / folder).rglob("*.py"))
]


def uses(path: pathlib.Path) -> set[str]:
  """Unstable modules and switches that a file imports or names."""
  text = path.read_text(encoding="utf-8")
  if not any(word in text for word in WORDS):  # parsing all takes seconds
    return set()
  names = {
    name
    for name in floors.imports(path, path.parent)
    if f"{name}.".startswith(tuple(f"{module}." for module in UNSTABLE))
  }
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.Attribute):
      name = ast.unparse(node)
      if f"{name}.".startswith(tuple(f"{module}." for module in UNSTABLE)):
        names.add(name)
    elif isinstance(node, ast.Constant) and node.value in SWITCHES:
      names.add(node.value)
  return names


def test_no_other_file_uses_them():
  here = pathlib.Path(__file__).resolve()
  found = {
    str(path.relative_to(REPOSITORY)): uses(path)
    for path in SOURCES
    if path != here
  }
  assert len(found) > 400
  assert {path for path, names in found.items() if names} - ALLOWED == set()


@pytest.mark.parametrize(
  ("code", "expected"),
  [
    ("from jax._src import distributed", {"jax._src.distributed"}),
    ("import jax.experimental", {"jax.experimental"}),
    ("def f():\n  return jax.experimental.x", {"jax.experimental.x"}),
    ('update("jax_enable_recoverability", 1)', {"jax_enable_recoverability"}),
    ("from jax import numpy, experimental_thing", set()),
  ],
)
def test_a_use_is_seen(tmp_path, code, expected):
  path = tmp_path / "code.py"
  path.write_text(code)
  assert expected <= uses(path)
  assert bool(uses(path)) == bool(expected)


@pytest.mark.parametrize(
  ("function", "public", "now"),
  [
    ("multihost_utils", "jax.multihost_utils", "process_allgather"),
    ("pallas", "jax.pallas", "pallas_call"),
    ("pallas_tpu", "jax.pallas.tpu", "CompilerParams"),
  ],
)
def test_the_public_module_is_tried_first(monkeypatch, function, public, now):
  find = getattr(jax_unstable, function)
  assert hasattr(find(), now)
  monkeypatch.setattr(
    jax_unstable, "first_module", jax_unstable.first_module.__wrapped__
  )
  moved = types.ModuleType(public)
  parent = public.rpartition(".")[0]
  if parent != "jax":
    monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
  monkeypatch.setitem(sys.modules, public, moved)
  assert find() is moved


def test_topologies_are_tried_in_public_first(monkeypatch):
  """A v5e of 2 x 2 in a `jax.topologies` of the future."""
  monkeypatch.setattr(
    jax_unstable, "first_module", jax_unstable.first_module.__wrapped__
  )
  asked = []

  def get_topology_desc(*args, **options):
    asked.append((args, options))
    return types.SimpleNamespace(devices=("a", "b"))

  future = types.ModuleType("jax.topologies")
  future.get_topology_desc = get_topology_desc
  monkeypatch.setitem(sys.modules, "jax.topologies", future)
  found = jax_unstable.topology_devices("v5e:2x2", {"chip_config_name": "x"})
  assert found == ["a", "b"]
  assert asked == [(("v5e:2x2", "tpu"), {"chip_config_name": "x"})]


def test_the_compiler_takes_the_options_of_little_effort():
  """The new option, or the one that jax 0.10 has; others are refused."""
  options = jax_unstable.quick_compile_options()
  assert len(options) == 1
  assert options in (
    {"optimization_level": 19},
    {"exec_time_optimization_effort": -1.0},
  )
  old = jax.__version__.startswith("0.10.")
  assert ("exec_time_optimization_effort" in options) == old
  lowered = jax.jit(lambda x: 2 * x + 17).lower(1.0)
  assert lowered.compile(options)(2.0) == 21.0
  with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile opt"):
    lowered.compile({"no_such_effort": 1.0})


def test_no_module_at_all():
  with pytest.raises(ImportError, match=r"has none of jax\.no, jax\.never\.x"):
    jax_unstable.first_module("jax.no", "jax.never.x")


def test_a_module_that_lacks_another_library_is_no_missing_module(monkeypatch):
  """Its own error must come through: it says what to install."""

  def lacks(name):
    raise ModuleNotFoundError("No module named 'cloudlib'", name="cloudlib")

  monkeypatch.setattr(jax_unstable.importlib, "import_module", lacks)
  with pytest.raises(ModuleNotFoundError, match="cloudlib"):
    jax_unstable.first_module("jax.one", "jax.two")


def test_the_compilation_cache_stops_and_no_more_is_written(tmp_path):
  """In the same process, after another program was kept."""
  options = ("jax_compilation_cache_dir", "jax_enable_compilation_cache")
  kept = {name: getattr(jax.config, name) for name in options}
  try:
    # Off since the first plan that a test has compiled in this process.
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    _reset_cache()
    jax.block_until_ready(jax.jit(lambda x: 3 * x + 40)(1.0))
    before = sorted(tmp_path.iterdir())
    assert before  # the cache was in use: then the option alone is too late
    jax_unstable.stop_compilation_cache()
    jax.block_until_ready(jax.jit(lambda x: 3 * x + 41)(1.0))
    assert not jax.config.jax_enable_compilation_cache
    assert sorted(tmp_path.iterdir()) == before
  finally:
    for name, value in kept.items():
      jax.config.update(name, value)
    _reset_cache()


def _reset_cache():
  jax_unstable.first_module(
    "jax.compilation_cache.compilation_cache",
    "jax.experimental.compilation_cache.compilation_cache",
  ).reset_cache()


def test_the_files_of_programs_are_replaced(monkeypatch):
  """`get_file_cache` of JAX gives what we open, with the limit that is set."""
  cache = jax_private.compilation_cache()
  monkeypatch.setattr(cache, "get_file_cache", cache.get_file_cache)
  jax_unstable.replace_program_files(lambda path, limit: (path, limit))
  limit = jax.config.jax_compilation_cache_max_size
  assert cache.get_file_cache("folder") == (("folder", limit), "folder")


def test_a_jax_without_files_of_programs_is_left_alone(monkeypatch):
  cache = jax_private.compilation_cache()
  monkeypatch.delattr(cache, "get_file_cache")
  jax_unstable.replace_program_files(lambda path, limit: None)
  assert not hasattr(cache, "get_file_cache")


def test_peers_are_survived(monkeypatch):
  updates = {}
  monkeypatch.setattr(jax.config, "update", updates.__setitem__)
  for name in SWITCHES:
    assert isinstance(jax.config.values[name], bool)  # this JAX has it
  jax_unstable.survive_peers()
  assert updates == {
    "jax_enable_recoverability": True,
    "jax_enable_preemption_service": False,
  }


def test_key_value_store(monkeypatch):
  """None without processes; JAX's own client; a public one before it."""
  assert jax_unstable.key_value_store() is None
  private = jax_unstable.first_module("jax._src.distributed").global_state
  monkeypatch.setattr(private, "client", "private")
  assert jax_unstable.key_value_store() == "private"
  public = types.SimpleNamespace(client="public")
  monkeypatch.setattr(jax.distributed, "global_state", public, raising=False)
  assert jax_unstable.key_value_store() == "public"
