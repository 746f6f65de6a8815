"""Embedding killed, moved to other cores and processes: the same bytes.

A process that has imported everything and started nothing forks the runs, so
that each costs a second, not ten.
"""

import json
import os
import random
import subprocess
import sys
import time

import pytest

from dpr_jax import parts, workdir
from dpr_jax.retrieval import vectors

KILLS, SHARDS = 20, 24
FORKS = """
import json, os, sys
from dpr_jax import configuration, errors, workdir
from dpr_jax.retrieval import embedding
import jax

def run(asked):
  jax.config.update("jax_num_cpu_devices", asked["devices"])
  config = configuration.read(asked["config"])
  place = workdir.Workdir(asked["workdir"])
  encode_rows = embedding._encode_rows
  def tells(encoder, tokens, rows, *rest):
    with open(asked["log"], "a") as log:
      log.write(f"{rows[0]}\\\\n")
    return encode_rows(encoder, tokens, rows, *rest)
  embedding._encode_rows = tells
  embed_corpus = embedding.embed_corpus
  embedding.embed_corpus = lambda *a, **k: embed_corpus(
    *a, **k, process=asked["process"], processes=asked["processes"]
  )
  embedding.embed(config, place, model="dense-start")

for line in sys.stdin:
  asked = json.loads(line)
  if "wait" in asked:
    _, status = os.waitpid(asked["wait"], 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
    continue
  child = os.fork()
  if not child:
    try:
      run(asked)
    except errors.InputError as error:
      print(error, file=sys.stderr)
      os._exit(2)
    os._exit(0)
  print(child, flush=True)
"""


class Runs:
  """Starts runs of `embed` and waits for them."""

  def __init__(self, process, log):
    self._process = process
    self.log = log

  def _ask(self, **what):
    print(json.dumps(what), file=self._process.stdin, flush=True)
    return int(self._process.stdout.readline())

  def start(self, place, devices=1, process=0, processes=1):
    """Returns the id of a new run."""
    return self._ask(
      config=str(place.root / "config.json"),
      workdir=str(place.root),
      log=str(self.log),
      devices=devices,
      process=process,
      processes=processes,
    )

  def wait(self, run):
    """The exit code of a run."""
    return self._ask(wait=run)

  def encoded(self):
    """First rows of the shards that were begun, since the last time."""
    rows = self.log.read_text().split() if self.log.exists() else []
    self.log.unlink(missing_ok=True)
    return [int(row) for row in rows]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, environment):
  """The forking process."""
  environment = environment | {"PYTHONWARNINGS": "ignore"}
  with subprocess.Popen(
    [sys.executable, "-c", FORKS.replace("\\\\", "\\")],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
    env=environment,
  ) as process:
    yield Runs(process, tmp_path_factory.mktemp("log") / "log")
    process.stdin.close()
    process.wait(30)


@pytest.fixture
def place(tiny_config, fresh_workdir):
  """A workdir whose corpus makes 24 shards."""
  path = fresh_workdir.root / "config.json"
  config = workdir.read_json(path)
  config["embed"]["rows_per_shard"] = 5
  workdir.write_json(path, config)
  return fresh_workdir


def _files(place):
  folder = place.embeddings("dense-start")
  files = vectors.open_vectors(folder).manifest["files"]
  names = {name for n in range(SHARDS) for name in vectors.names(n)}
  assert set(files) == names
  assert {path.name for path in folder.iterdir()} == names | {"manifest.json"}
  return files


def _done(place):
  folder = place.embeddings("dense-start")
  return {
    5 * int(path.stem.split("-")[1])
    for path in folder.glob("part-*.json")
    if "tmp" not in path.name
  }


@pytest.fixture
def wanted(runs, place, tmp_path):
  """sha256 of the shards of an undisturbed run on one core."""
  import shutil

  shutil.copytree(place.root, tmp_path / "whole")
  whole = workdir.Workdir(tmp_path / "whole")
  assert runs.wait(runs.start(whole)) == 0
  assert runs.encoded() == list(range(0, 120, 5))
  shutil.copytree(whole.tokens, place.tokens)
  return _files(whole)


def _reopen(place, keep):
  """Back to where only the shards `keep` had been made."""
  folder = place.embeddings("dense-start")
  manifest = workdir.read_json(folder / "manifest.json")
  stage = workdir.Stage("embed", folder, manifest["config"], manifest["inputs"])
  some = parts.Parts(stage, SHARDS, vectors.PATTERNS)
  for number in keep:
    some.finish(number, **manifest["parts"][number])
  (folder / "manifest.json").unlink()


@pytest.mark.slow
def test_twenty_kills_and_other_cores(runs, place, wanted):
  """SIGKILL at random moments, on 1 or 8 cores; nothing done is done again."""
  chance, kills, code = random.Random(3), 0, None
  while kills < KILLS or code != 0:
    done = _done(place)
    run = runs.start(place, devices=chance.choice([1, 8]))
    if kills < KILLS:
      deadline = time.monotonic() + 60
      more = len(done) + chance.randint(0, 2)
      while len(_done(place)) < more and time.monotonic() < deadline:
        time.sleep(0.002)
      # In a shard; or, where no shard was waited for, somewhere in the start.
      time.sleep(chance.uniform(0, 0.03 if more > len(done) else 1.0))
      os.kill(run, 9)
    code = runs.wait(run)
    begun = runs.encoded()
    assert not done.intersection(begun)
    assert len(begun) == len(set(begun))
    assert code in (0, -9)
    kills += code == -9
    if code == 0 and kills < KILLS:  # faster than the signal
      _reopen(place, range(0, SHARDS, 2))
  assert _files(place) == wanted


@pytest.mark.slow
def test_two_processes_and_back_to_one(runs, place, wanted):
  """2 x 4 cores; then one of the two alone, and 1 x 8 does what is missing."""
  both = [runs.start(place, 4, process, 2) for process in (0, 1)]
  assert [runs.wait(run) for run in both] == [0, 0]
  assert sorted(runs.encoded()) == list(range(0, 120, 5))
  assert _files(place) == wanted
  _reopen(place, range(1, SHARDS, 2))
  assert runs.wait(runs.start(place, 8)) == 0
  assert runs.encoded() == list(range(0, 120, 10))
  assert _files(place) == wanted
