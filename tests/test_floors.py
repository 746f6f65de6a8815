"""Imports between the folders of `dpr_jax` go down only."""

import pathlib

import pytest

from tests import floors

# What a folder never imports, though it stands below it or beside it: the loop
# is handed what it needs of these, and what is trained knows no training.
NEVER = {
  "training": ("retrieval", "reading", "index", "embedding"),
  "retrieval": ("training", "reading"),
  "reading": ("training",),
}
PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "dpr_jax"


@pytest.fixture(scope="module")
def arrows():
  return floors.arrows(PACKAGE)


def test_every_folder_has_a_floor():
  folders = {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
  assert folders <= set(floors.FLOORS)


def test_imports_go_down_only(arrows):
  wrong = {pair: arrows[pair] for pair in floors.upward(set(arrows))}
  assert not wrong
  assert not floors.circles(set(arrows))


def test_some_never_import_each_other(arrows):
  wrong = {
    (folder, other): arrows[folder, other]
    for folder, others in NEVER.items()
    for other in others
    if (folder, other) in arrows
  }
  assert not wrong
  # The names are those of folders: a list of misspelt ones could not fail.
  named = {*NEVER, *(other for others in NEVER.values() for other in others)}
  assert named <= set(floors.FLOORS)


def test_upward_and_circles_are_seen(tmp_path):
  """Models -> data -> core -> models: one arrow up, and three pairs."""
  texts = {
    "models": "from dpr_jax.data import records",
    "data": "from dpr_jax import core",
    "core": "def f():\n  from ..models.bert import Bert",
  }
  for folder, text in texts.items():
    (tmp_path / "dpr_jax" / folder).mkdir(parents=True)
    (tmp_path / "dpr_jax" / folder / "__init__.py").write_text(text)
  found = set(floors.arrows(tmp_path / "dpr_jax"))
  assert floors.upward(found) == {("core", "models")}
  assert floors.circles(found) == {
    *(("core", "data"), ("core", "models"), ("data", "models"))
  }
