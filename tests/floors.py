"""Which folder of `dpr_jax` imports which: `python tests/floors.py` prints it.

  python tests/floors.py [CHECKOUT]

Imports are counted between folders, at any depth in a file; what only opens the
door (`dpr_jax/__init__.py`, `__main__.py`) is left out.
"""

import ast
import collections
import pathlib
import sys

# Top down: a folder imports those below it, and its own.
FLOORS = (
  *("cli", "serving", "integrations", "benchmarking", "planning"),
  "reporting",
  *("training", "reading"),
  *("retrieval", "index", "embedding", "inference", "evaluation", "models"),
  *("data", "core"),
)


def imports(path: pathlib.Path, package: pathlib.Path) -> set[str]:
  """Dotted names of everything that a file imports, at any depth in it."""
  folder = [package.name, *path.relative_to(package).parts[:-1]]
  names = set()
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      origin = folder[: len(folder) - node.level + 1] if node.level else []
      module = ".".join([*origin, *filter(None, [node.module])])
      names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
  return names


def folder_of(path: pathlib.Path, package: pathlib.Path) -> str:
  """The folder that a file stands in; "" at the top of the package."""
  parts = path.relative_to(package).parts
  return parts[0] if len(parts) > 1 else ""


def arrows(package: pathlib.Path) -> dict[tuple[str, str], set[str]]:
  """{(folder, imported folder): files that do}; the package's top is ""."""
  folders = {p.parent.name for p in package.glob("*/__init__.py")}
  found = collections.defaultdict(set)
  doors = (package / "__init__.py", package / "__main__.py")
  for path in sorted({*package.rglob("*.py")} - {*doors}):
    here = folder_of(path, package)
    for name in imports(path, package):
      parts = name.split(".")
      if parts[0] != package.name or len(parts) < 2:
        continue
      there = parts[1] if parts[1] in folders else ""
      if there != here:
        found[here, there].add(str(path.relative_to(package)))
  return dict(found)


def circles(pairs: set[tuple[str, str]]) -> set[tuple[str, str]]:
  """Pairs of folders that reach each other, each pair once."""
  reached = set(pairs)
  while True:
    longer = {
      (a, d) for a, b in reached for c, d in reached if b == c
    } - reached
    if not longer:
      break
    reached |= longer
  return {(a, b) for a, b in reached if a < b and (b, a) in reached}


def upward(pairs: set[tuple[str, str]]) -> set[tuple[str, str]]:
  """Pairs in which a folder imports one above it."""
  return {
    (a, b)
    for a, b in pairs
    if a in FLOORS and b in FLOORS and FLOORS.index(b) < FLOORS.index(a)
  }


def main(checkout: str = "") -> None:
  """Prints the picture of a checkout."""
  top = pathlib.Path(checkout or pathlib.Path(__file__).parent.parent)
  package = top / "dpr_jax"
  found = arrows(package)
  lines = collections.Counter()
  files = collections.Counter()
  for path in package.rglob("*.py"):
    folder = folder_of(path, package)
    lines[folder] += len(path.read_text(encoding="utf-8").splitlines())
    files[folder] += 1
  inside = {(a, b) for a, b in found if a and b}
  for folder in (f for f in FLOORS if lines[f]):
    below = sorted(b for a, b in inside if a == folder)
    print(
      f"{folder:13}{files[folder]:4} files {lines[folder]:6} lines  ->"
      f" {' '.join(below)}"
    )
  for folder in sorted(set(lines) - set(FLOORS)):
    below = sorted(b for a, b in found if a == folder)
    print(
      f"{folder or '(top)':13}{files[folder]:4} files"
      f" {lines[folder]:6} lines  -> {' '.join(filter(None, below))}"
    )
  print(
    f"{len(lines)} folders, {len(found)} arrows, {len(circles(set(found)))}"
    f" pairs in circles, {len(upward(inside))} upward"
  )


if __name__ == "__main__":
  main(*sys.argv[1:])
