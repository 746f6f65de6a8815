"""Embedding holds a shard, whatever the size of the corpus."""

import subprocess
import sys

import pytest

from dpr_jax.core import config as config_lib
from dpr_jax.core import memory
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import prepare

pytestmark = pytest.mark.processes

# In a process of its own, so that the peak is of nothing else.
EMBED = """
import sys
import jax
from dpr_jax import configuration
from dpr_jax.core import memory, workdir
from dpr_jax.embedding import embed
jax.config.update("jax_num_cpu_devices", 2)
place = workdir.Workdir(sys.argv[1])
config = configuration.read(place.root / "config.json")
embed.embed(config, place, model="dense-start")
print(memory.status("VmHWM"))
"""
WIDTH = 256


@pytest.mark.slow
def test_ten_times_the_corpus_in_the_same_memory(
  tiny_config, environment, tmp_path
):
  """Less than half of the vectors on top; whoever held them all had more."""
  if memory.status("VmHWM") is None:
    pytest.skip("nobody says here how much memory a process has taken")
  peaks = {}
  for count in (5_000, 50_000):
    place = workdir_lib.Workdir(tmp_path / str(count))
    place.root.mkdir()
    corpus = place.root / "corpus.tsv"
    with corpus.open("w") as file:
      file.write("id\ttext\ttitle\n")
      file.writelines(
        f"{n}\triver {n} city {n * 7919 % 99991}\ttown\n"
        for n in range(1, count + 1)
      )
    config = tiny_config.copy_and_resolve_references()
    config.data.passages = str(corpus)
    config.data.train = "none"
    config.data.max_passages = 0
    config.model.checkpoint = "random"
    config.model.random_layers = 1
    config.model.random_width = WIDTH
    config.embed.rows_per_shard = 2_500
    config.embed.tokens_per_core = 0
    workdir_lib.write_json(place.root / "config.json", config_lib.plain(config))
    prepare.prepare(config, place)
    done = subprocess.run(
      [sys.executable, "-c", EMBED, place.root],
      env=environment,
      capture_output=True,
      text=True,
    )
    assert done.returncode == 0, done.stderr
    peaks[count] = int(done.stdout)
  vectors = 45_000 * WIDTH * 4
  assert peaks[50_000] - peaks[5_000] < vectors / 2, peaks
