"""Two real processes find what one finds, bit for bit, and fail as one."""

import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.index import search_program


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  root = tmp_path_factory.mktemp("searched") / "W"
  search_program.embed(root)
  search_program.build(root)
  return root


@pytest.fixture
def run(repository, environment):
  """Runs the program in two processes; the launcher's exit code and stderr."""

  def run(root, mode, devices=4):
    done = subprocess.run(
      [
        sys.executable,
        repository / "launch" / "cpu_emulate.py",
        "--processes=2",
        f"--devices={devices}",
        "--grace=10",
        "--",
        *(sys.executable, "-m", "tests.index.search_program", root, mode),
      ],
      capture_output=True,
      text=True,
      env=environment,
      timeout=300,
    )
    return done.returncode, done.stderr

  return run


def _found(root, process):
  with np.load(root / f"found-{process}.npz") as file:
    return dict(file)


@pytest.mark.slow
def test_two_processes_find_the_same_bits_as_one(root, run, tmp_path):
  """Whatever the index, the settings, or the number of questions and hits."""
  shutil.copytree(root / "embeddings", tmp_path / "embeddings")
  code, err = run(tmp_path, "all")
  assert code == 0, err
  for factory in search_program.FACTORIES:
    one, two = (
      sorted(
        (path.relative_to(place), path.read_bytes())
        for path in (place / "index" / factory).rglob("index.faiss")
      )
      for place in (root, tmp_path)
    )
    assert len(one) == 1 + search_program.FACTORIES[factory]
    assert one == two
  wanted = search_program.search(root)
  first, second = _found(tmp_path, 0), _found(tmp_path, 1)
  assert first.keys() - wanted.keys() == {
    "floats",
    "integers",
    "floats of all",
    "integers of all",
  }
  for name, array in wanted.items():
    assert first[name].tobytes() == array.tobytes(), name
  for name in first.keys() - {f"{f} recall" for f in search_program.FACTORIES}:
    assert second[name].tobytes() == first[name].tobytes(), name
  floats, integers = search_program.FLOATS, search_program.INTEGERS
  assert first["floats"].tobytes() == floats.tobytes()
  assert first["integers"].tobytes() == integers.tobytes()
  assert (
    first["floats of all"].tobytes() == np.stack([floats, -floats]).tobytes()
  )
  np.testing.assert_array_equal(
    first["integers of all"], np.stack([integers, integers + 1])
  )


@pytest.mark.slow
def test_others_search_along_until_the_first_ends(root, run):
  code, err = run(root, "follow", devices=1)
  assert code == 0, err
  wanted = search_program.search(root)
  found = _found(root, 0)
  assert found.keys() == {"7 5", "300 509", "1 1"}
  for name, rows in found.items():
    np.testing.assert_array_equal(rows, wanted[f"Flat {name} rows"])
  assert not _found(root, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("mode", "message"),
  [
    ("error", "process 1 ended: no more hits here"),
    ("error of the first", "process 0 ended: the first has had enough"),
    (
      "other index",
      "on the machine of process 1 differs from that of process 0",
    ),
  ],
)
def test_an_error_of_one_ends_all_with_its_line(
  root, run, tmp_path, mode, message
):
  """The other waits for hits, for questions, or for shards to be opened."""
  folder = tmp_path / "W"
  shutil.copytree(root, folder)
  other = tmp_path / "other"
  shutil.copytree(root, other)
  shutil.rmtree(other / "index")
  shutil.copytree(root / "index" / "SQ8", other / "index" / "Flat")
  code, err = run(folder, mode, devices=1)
  assert code == 2, err
  for process in (0, 1):
    lines = [
      line for line in err.splitlines() if f"[{process}] dpr-jax: " in line
    ]
    # On a busy machine the launcher may end the other before it has heard.
    stopped = f"process {process} ended too, killed by SIGTERM" in err
    assert len(lines) == 1 or (not lines and stopped), err
    for line in lines:
      assert message in line
      assert line.endswith("; all processes end")
