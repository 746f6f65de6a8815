"""Tests of what is installed, and of what imports it."""

import ast
import collections
import functools
import importlib.metadata
import importlib.resources
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
from packaging import requirements, utils, version

from dpr_jax import version as our_version
from dpr_jax.core import config as config_lib
from tests import floors

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "dpr_jax"
SOURCES = sorted(PACKAGE.rglob("*.py"))
ANY = "*"  # any section
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
# The only files that import an extra, and that only when they are asked to.
PEERS = {
  "benchmarking/sentence_transformers_onnx.py",
  "benchmarking/sentence_transformers_peer.py",
  "benchmarking/transformers_reader_peer.py",
  "inference/mteb_calls.py",
  "inference/tensors.py",
  "inference/onnx_encoder.py",
  "models/onnx_graph.py",
}
# Imported by users of the library that each of them is for: tests/peers.
ADAPTERS = {
  "integrations/haystack.py",
  "integrations/langchain.py",
  "integrations/llama_index.py",
}
# Installed for a library of ours that imports it only when it is asked to.
INDIRECT = {"array-record": "tensorflow-datasets, file_format=array_record"}


def below(path: pathlib.Path) -> str:
  return str(path.relative_to(PACKAGE))


def pins(name: str, python: str) -> dict[str, version.Version]:
  """The versions in a constraints file for a Python, by normalised name."""
  result = {}
  for line in (REPOSITORY / name).read_text(encoding="utf-8").splitlines():
    line = line.partition("#")[0].strip()
    if not line:
      continue
    one = requirements.Requirement(line)
    if one.marker and not one.marker.evaluate({"python_version": python}):
      continue
    (part,) = one.specifier
    project = utils.canonicalize_name(one.name)
    assert part.operator == "==", line
    assert project not in result, f"{line}: twice for Python {python}"
    result[project] = version.Version(part.version)
  return result


def constants_of_setup() -> dict[str, object]:
  """RUNTIME, TORCH, PEERS and EXTRAS of setup.py, without running it."""
  found: dict[str, object] = {}
  tree = ast.parse((REPOSITORY / "setup.py").read_text(encoding="utf-8"))
  for node in tree.body:
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
      name = node.targets[0].id
      if name in ("RUNTIME", "TORCH", "PEERS", "EXTRAS"):
        code = compile(ast.Expression(node.value), "setup.py", "eval")
        found[name] = eval(code, {"__builtins__": {}}, dict(found))
  return found


def required(*extras: str) -> dict[str, requirements.Requirement]:
  """Requirements of the package and some extras, by normalised name."""
  constants = constants_of_setup()
  lines = list(constants["RUNTIME"])
  for extra in extras:
    lines += constants["EXTRAS"][extra]
  parsed = [requirements.Requirement(line) for line in lines]
  return {utils.canonicalize_name(one.name): one for one in parsed}


def installed() -> importlib.metadata.Distribution:
  try:
    return importlib.metadata.distribution("dpr-jax")
  except importlib.metadata.PackageNotFoundError:
    pytest.skip("dpr-jax is not installed here: pip install -e .")


def test_version_and_command_of_the_installed_package():
  ours = installed()
  assert ours.version == our_version.__version__
  (script,) = ours.entry_points.select(group="console_scripts")
  assert (script.name, script.value) == ("dpr-jax", "dpr_jax.cli.main:main")
  assert callable(script.load())


def test_citation_and_changelog_name_the_version():
  """The newest release that the changelog has, and nothing newer cited."""
  citation = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
  cited = re.search(r"^version: (\S+)$", citation, re.MULTILINE)[1]
  date = re.search(r'^date-released: "(.+)"$', citation, re.MULTILINE)[1]
  changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
  released = re.findall(
    r"^## \[(\d\S*)\] - (\d{4}-\d\d-\d\d)$", changelog, re.MULTILINE
  )
  assert released[0] == (cited, date)
  assert cited == our_version.__version__
  numbers = [version.Version(number) for number, _ in released]
  assert numbers == sorted(numbers, reverse=True)


@pytest.mark.parametrize(
  "page",
  [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "docs/api.md",
  ],
)
def test_links_within_the_repository_lead_somewhere(page):
  """Files, and headings of Markdown files."""
  path = REPOSITORY / page
  links = re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8"))
  links = [link for link in links if not link.startswith("http")]
  for link in links:
    name, _, heading = link.partition("#")
    target = (path.parent / name) if name else path
    assert target.exists(), link
    if heading:
      titles = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), re.MULTILINE)
      assert heading in {
        re.sub(r"[^\w -]", "", title).lower().replace(" ", "-")
        for title in titles
      }, link


def test_configs_and_sample_are_found_where_the_package_is_installed():
  installed()
  configs = importlib.resources.files("dpr_jax.configs")
  assert configs.joinpath("demo.py").is_file()
  sample = importlib.resources.files("dpr_jax.data.sample")
  assert sample.joinpath("passages.tsv").is_file()
  assert importlib.resources.files("dpr_jax").joinpath("py.typed").is_file()


@pytest.mark.processes
@pytest.mark.slow
def test_a_wheel_holds_configs_sample_and_licence(tmp_path):
  source = tmp_path / "source"
  source.mkdir()
  for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
    if (REPOSITORY / name).exists():
      shutil.copy(REPOSITORY / name, source)
  for name in ("dpr_jax", "configs"):
    shutil.copytree(REPOSITORY / name, source / name)
  process = subprocess.run(
    [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", tmp_path, source],
    capture_output=True,
    text=True,
    check=False,
  )
  if "No matching distribution found for setuptools" in process.stderr:
    pytest.skip("no wheel can be built: pip finds no setuptools")
  assert process.returncode == 0, process.stderr
  (wheel,) = tmp_path.glob("*.whl")
  with zipfile.ZipFile(wheel) as archive:
    names = set(archive.namelist())
  ours = {
    str(path.relative_to(REPOSITORY))
    for path in [
      *SOURCES,
      *(PACKAGE / "data" / "sample").glob("*.*"),
      *(PACKAGE / "reporting" / "page").glob("*.*"),
    ]
  }
  ours |= {
    f"dpr_jax/configs/{path.name}"
    for path in (REPOSITORY / "configs").glob("*.py")
  }
  info = f"dpr_jax-{our_version.__version__}.dist-info"
  ours.add("dpr_jax/py.typed")
  ours |= {f"{info}/licenses/LICENSE", f"{info}/licenses/NOTICE"}
  assert ours - names == set()
  packages = {name.partition("/")[0] for name in names}
  assert packages == {"dpr_jax", info}


IMPORT_ALL = """
import importlib, importlib.machinery, pathlib, sys
absent = {"tensorflow", "torch"}  # as if they were not installed
class Finder(importlib.machinery.PathFinder):
  @classmethod
  def find_spec(cls, name, path=None, target=None):
    if name.partition(".")[0] not in absent:
      return super().find_spec(name, path, target)
place = sys.meta_path.index(importlib.machinery.PathFinder)
sys.meta_path[place] = Finder
sys.path.insert(0, "")
root = pathlib.Path("dpr_jax")
for path in sorted(root.rglob("*.py")):
  module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
  adapter = path.parent.name == "integrations" and path.stem != "__init__"
  if not module.endswith("__main__") and not adapter:
    importlib.import_module(module)
    print(module)
assert not absent & set(sys.modules)
"""


@pytest.mark.processes
def test_every_module_imports_without_tensorflow_and_torch():
  process = subprocess.run(
    [sys.executable, "-W", "ignore", "-c", IMPORT_ALL],
    capture_output=True,
    text=True,
    cwd=REPOSITORY,
    check=False,
  )
  assert process.returncode == 0, process.stderr
  assert len(process.stdout.splitlines()) == len(SOURCES) - 2 - len(ADAPTERS)


@pytest.mark.parametrize("path", SOURCES, ids=below)
def test_module_has_a_docstring_and_imports_no_peer(path):
  tree = ast.parse(path.read_text(encoding="utf-8"))
  assert not tree.body or ast.get_docstring(tree), "no module docstring"
  names = floors.imports(path, PACKAGE)
  assert below(path) in PEERS or not {
    name.partition(".")[0] for name in names
  } & {
    "torch",
    "tensorflow",
  }


def test_answers_imports_nothing_of_ours():
  names = floors.imports(PACKAGE / "data" / "answer_matching.py", PACKAGE)
  assert not {name for name in names if name.startswith("dpr_jax")}


def test_imports_and_requirements_are_the_same_set():
  distributions = importlib.metadata.packages_distributions()
  outside = {
    name.partition(".")[0]
    for path in SOURCES
    if below(path) not in PEERS | ADAPTERS
    for name in floors.imports(path, PACKAGE)
  } - {"dpr_jax", *sys.stdlib_module_names}
  unknown = sorted(name for name in outside if name not in distributions)
  assert not unknown, f"imported, but not installed here: {unknown}"
  owners = {
    name: {utils.canonicalize_name(owner) for owner in distributions[name]}
    for name in outside
  }
  extras = set(constants_of_setup()["EXTRAS"]) - {
    *("test", "parity", "bench", "peers")
  }
  declared = set(required(*extras))
  # A name such as `google` belongs to several: one that is declared will do.
  undeclared = sorted(name for name in outside if not owners[name] & declared)
  assert not undeclared, f"imported, but not in setup.py: {undeclared}"
  unused = set(required()) - set().union(*owners.values()) - set(INDIRECT)
  assert not unused, f"in setup.py, but never imported: {unused}"


@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_are_inside_the_ranges_of_setup(python):
  tested = pins("constraints.txt", python)
  for name, one in required("test", "peers", "bench", "tpu").items():
    assert one.specifier.contains(tested[name]), one
  newest = {"3.11": (0, 10)}.get(python, (0, 12))
  assert tested["jax"].release[:2] == newest
  assert tested["jax"] == tested["jaxlib"]


def test_all_pythons_are_declared_and_no_other():
  """In setup.py, by a range and a classifier each, and in the Makefile."""
  setup = (REPOSITORY / "setup.py").read_text(encoding="utf-8")
  declared = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', setup)
  assert declared == PYTHONS
  assert 'python_requires=">=3.11,<3.15"' in setup
  makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
  assert re.findall(r"\((3, \d+)\)", makefile) == ["3, 11", "3, 14"]


def test_the_pinned_libtpu_is_the_one_of_the_pinned_jax():
  """As the JAX that is installed here says, where it is the pinned one."""
  python = f"{sys.version_info[0]}.{sys.version_info[1]}"
  tested = pins("constraints.txt", python)
  if importlib.metadata.version("jax") != str(tested["jax"]):
    pytest.skip("another JAX than that of constraints.txt is installed here")
  (specifier,) = [
    one.specifier
    for one in map(requirements.Requirement, importlib.metadata.requires("jax"))
    if one.name == "libtpu" and one.marker.evaluate({"extra": "tpu"})
  ]
  assert specifier.contains(tested["libtpu"])


def test_lowest_constraints_are_the_lower_ends_of_setup():
  lowest = pins("constraints-lowest.txt", "3.11")
  for name, one in required("test", "peers").items():
    (lower,) = [
      version.Version(part.version)
      for part in one.specifier
      if part.operator in (">=", "==")
    ]
    assert lowest[name] == lower, one
  assert set(lowest) == set(required("test", "peers"))


def test_constraints_name_versions_only():
  for name in ("constraints.txt", "constraints-lowest.txt"):
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    assert not re.search(r"://|@|^-", text, re.MULTILINE)


def last_name(node: ast.AST) -> str:
  """`train` for `config.train`, for `train` and for `self.train`."""
  if isinstance(node, ast.Attribute):
    return node.attr
  return node.id if isinstance(node, ast.Name) else ""


def other_names(tree: ast.Module) -> dict[str, set[str]]:
  """{"settings": {"bm25"}} where a file has `settings = config.bm25`."""
  names = collections.defaultdict(set)
  for node in ast.walk(tree):
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute):
      for target in node.targets:
        names[last_name(target)].add(node.value.attr)
  return names


def subscript_pattern(node: ast.expr, strings: set[str]) -> str:
  """A pattern of the keys that `section[node]` may read.

  `section[f"max_{split}"]` reads keys that start with `max_`; for
  `section[name]` it is any string that the file holds.
  """
  if isinstance(node, ast.Constant):
    return re.escape(str(node.value))
  if isinstance(node, ast.JoinedStr):
    return "".join(
      re.escape(part.value) if isinstance(part, ast.Constant) else ".*"
      for part in node.values
    )
  return "|".join(map(re.escape, sorted(strings)))


def sections_handed_on(tree: ast.Module) -> set[str]:
  """Arguments that are a section of the config: which one is not written."""
  return {
    argument.arg
    for node in ast.walk(tree)
    if isinstance(node, ast.FunctionDef)
    for argument in (*node.args.args, *node.args.kwonlyargs)
    if argument.annotation is not None
    and last_name(argument.annotation) == "ConfigDict"
    and argument.arg not in ("config", "values")
  }


@functools.cache
def keys_read() -> set[tuple[str, str]]:
  """(owner, key pattern) of every attribute and item that our code reads.

  An item is `owner[key]` or `owner.get("key", ...)`.
  """
  found = set()
  for path in SOURCES:
    if path.name == "config.py":
      continue
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = other_names(tree)
    for section in sections_handed_on(tree):
      names[section].add(ANY)
    strings = {
      node.value
      for node in ast.walk(tree)
      if isinstance(node, ast.Constant) and isinstance(node.value, str)
      if node.value.isidentifier()
    }
    for node in ast.walk(tree):
      if isinstance(node, ast.Call):
        gets = last_name(node.func) == "get" and node.args
        if gets and isinstance(node.args[0], ast.Constant):
          owner = last_name(node.func.value)
          found.add((owner, subscript_pattern(node.args[0], strings)))
        continue
      if isinstance(node, ast.Attribute):
        pattern = node.attr
      elif isinstance(node, ast.Subscript):
        pattern = subscript_pattern(node.slice, strings)
      else:
        continue
      if isinstance(node.ctx, ast.Load):
        owner = last_name(node.value)
        found |= {(one, pattern) for one in {owner} | names[owner]}
  return found


def config_keys() -> list[tuple[str, str]]:
  """(section, key), with section "config" for keys at the top."""
  keys = []
  config = config_lib.plain(config_lib.base_config())
  for section, value in config.items():
    if isinstance(value, dict):
      keys += [(section, key) for key in value]
    else:
      keys.append(("config", section))
  return keys


@pytest.mark.parametrize("key", config_keys(), ids=".".join)
def test_config_key_is_read_somewhere(key):
  section, name = key
  read = any(
    owner in (section, ANY) and re.fullmatch(pattern, name)
    for owner, pattern in keys_read()
  )
  if not read:
    pytest.fail(f"config.{section}.{name} is read nowhere in dpr_jax/")
