"""What the first answers import: little, for it is what they cost."""

import subprocess
import sys

import pytest

CODE = """
import sys
from dpr_jax.cli import main
sys.argv = ["dpr-jax", *sys.argv[1:]]
code = 0
try:
  main.main()
except SystemExit as end:
  code = end.code
slow = {
  "jax", "numpy", "transformers", "tensorflow_datasets", "faiss", "orbax",
  "flax", "scipy", "grain", "bm25s", "ir_measures", "rich", "safetensors",
  "huggingface_hub",
}
print(code, *sorted(slow & set(sys.modules)), file=sys.stderr)
"""


@pytest.fixture
def imported(environment, tmp_path, config_file):
  """The exit status of a command line, and what it has imported."""

  def imported(*arguments):
    done = subprocess.run(
      [sys.executable, "-c", CODE, *arguments],
      cwd=tmp_path,
      capture_output=True,
      text=True,
      env=environment,
      check=False,
    )
    code, *names = done.stderr.splitlines()[-1].split()
    return int(code), set(names)

  return imported


@pytest.mark.parametrize(
  ("line", "code"),
  [
    ("--version", 0),
    ("--help", 0),
    ("train --help", 0),
    ("bench search -h", 0),
    ("", 2),
    ("trian", 2),
    ("train --fly", 2),
    ("train --workdir=w", 2),
    ("train --config=CONFIG --config.train.batch_size=x --workdir=w", 2),
    ("prepare --config=CONFIG --config.data.dev=no.json --workdir=w", 2),
    ("run --config=CONFIG --config.data.dev=no.json --workdir=w", 2),
    ("config --config=CONFIG", 0),
    ("check --workdir=nowhere", 2),
    ("export --workdir=w", 2),
  ],
)
def test_nothing_slow(imported, config_file, line, code):
  """Usage errors, help, what is refused by settings or files."""
  line = line.replace("CONFIG", str(config_file))
  assert imported(*line.split()) == (code, set())


def test_evaluate_in_an_empty_workdir(imported, config_file):
  """NumPy and tables are its own; neither JAX nor SciPy."""
  found = imported("evaluate", f"--config={config_file}", "--workdir=w")
  assert found == (2, {"ir_measures", "numpy", "rich"})


def test_prepare_needs_no_jax(imported, config_file):
  """It does its work with TFDS and NumPy."""
  code, names = imported("prepare", f"--config={config_file}", "--workdir=w")
  assert code == 0
  assert names == {"numpy", "tensorflow_datasets"}
