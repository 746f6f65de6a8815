"""Row 3: embedding killed, moved to other cores and processes: the same bytes.

80 shards of one passage each.
"""

import random
import time

import pytest

from dpr_jax.core import sharded_output
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.embedding import vector_shards
from tests.faults.amounts import amount

KILLS, SHARDS = amount(20, 4), 80
SETTING = "--config.embed.rows_per_shard=1"
# Notes which shards are begun; and, of several processes, which one this is:
# they share no lock, as if the first held it for all.
HOOK = """
from dpr_jax.cli import main as main_lib
from dpr_jax.core import config as config_lib, workdir
from dpr_jax.embedding import embed as embed_lib
encode_rows, embed_corpus = embed_lib._encode_rows, embed_lib.embed_corpus
def tells(encoder, tokens, rows, *rest):
  with open({log!r}, "a") as log:
    log.write(f"{{rows[0]}}\\n")
  return encode_rows(encoder, tokens, rows, *rest)
embed_lib._encode_rows = tells
def embed():
  import jax
  jax.config.update("jax_num_cpu_devices", {devices})
  place = workdir.Workdir({folder!r})
  config = config_lib.read(place.root / "config.json")
  embed_lib.embed(config, place, model="dense")
if {processes} > 1:
  embed_lib.embed_corpus = lambda *a, **k: embed_corpus(
    *a, **k, process={process}, processes={processes}
  )
  main_lib.main = embed
"""


class Runs:
  """Starts runs of `embed` in one workdir, and knows what they did."""

  def __init__(self, flow, root):
    """Args: root: of the flow's folder."""
    self._flow, self._root = flow, root
    self._log = root / "log"
    self.place = workdir_lib.Workdir(root / "w")
    self.folder = self.place.embeddings("dense")

  def start(self, devices=1, process=0, processes=1):
    """A run."""
    argv = self._flow.argv("embed", self._root, SETTING)
    argv[argv.index("--cpu_devices=1")] = f"--cpu_devices={devices}"
    hook = HOOK.format(
      log=str(self._log),
      folder=str(self.place.root),
      devices=devices,
      process=process,
      processes=processes,
    )
    return self._flow.zygote.start(*argv, cwd=self._root, hook=hook)

  def finish(self, **options):
    """A run to its good end."""
    ended = self.start(**options).wait()
    assert ended.code == 0, ended.stderr

  def check(self):
    """`dpr-jax check` of the workdir."""
    return self._flow.check(self._root)

  def encoded(self):
    """Rows of the shards that were begun, since the last time."""
    rows = self._log.read_text().split() if self._log.exists() else []
    self._log.unlink(missing_ok=True)
    return [int(row) for row in rows]

  def done(self):
    """Numbers of the shards that are there."""
    return {
      int(path.stem.split("-")[1])
      for path in self.folder.glob("part-*.json")
      if "tmp" not in path.name
    }

  def files(self):
    """sha256 of the shards; nothing else is there."""
    files = vector_shards.open_vectors(self.folder).manifest["files"]
    names = {name for n in range(SHARDS) for name in vector_shards.names(n)}
    names |= {vector_shards.digests_name(n) for n in range(SHARDS)}
    assert set(files) == names
    assert {p.name for p in self.folder.iterdir()} == names | {"manifest.json"}
    return files

  def reopen(self, keep):
    """Back to where only the shards `keep` had been made."""
    manifest = workdir_lib.read_manifest(self.folder, "embed")
    stage = workdir_lib.Stage(
      "embed", self.folder, manifest["config"], manifest["inputs"]
    )
    some = sharded_output.Parts(stage, SHARDS, vector_shards.PATTERNS)
    for number in keep:
      some.finish(number, **manifest["parts"][number])
    (self.folder / "manifest.json").unlink()


@pytest.fixture(scope="module")
def whole(flow, tmp_path_factory):
  """A run that nothing disturbed."""
  root = tmp_path_factory.mktemp("whole") / "root"
  flow.copy_before("embed", root)
  runs = Runs(flow, root)
  runs.finish()
  assert runs.encoded() == list(range(SHARDS))
  return runs


@pytest.fixture
def runs(flow, whole, tmp_path):
  """A workdir before `embed`, for one test."""
  root = tmp_path / "root"
  flow.copy_before("embed", root)
  (root / "w/config.json").write_bytes(
    (whole.place.root / "config.json").read_bytes()
  )
  return Runs(flow, root)


@pytest.mark.slow
def test_kills_and_other_cores(runs, whole, tally):
  """SIGKILL at random moments, on 1 or 8 cores; nothing done is done again."""
  rows, chance = tally(3), random.Random(3)
  for number in range(KILLS):
    if number and not any(runs.folder.glob("part-*.json")):
      runs.reopen(range(0, SHARDS, 2))  # faster than the signal
    done = runs.done()
    run = runs.start(devices=chance.choice([1, 8]))
    more = len(done) + chance.randint(0, 6)
    deadline = time.monotonic() + 60
    while len(runs.done()) < more and time.monotonic() < deadline:
      time.sleep(0.002)
    # In a shard; or, where no shard was waited for, somewhere in the start.
    time.sleep(chance.uniform(0, 0.02 if more > len(done) else 0.8))
    run.signal(9)
    with rows.trial(f"kill {number} after {more - len(done)} shards"):
      ended, begun = run.wait(), runs.encoded()
      assert ended.code in (0, -9), ended.stderr
      assert not done.intersection(begun), "shards were made again"
      assert len(begun) == len(set(begun))
  with rows.trial("to the end"):
    if not (runs.folder / "manifest.json").exists():
      runs.finish()
    assert runs.files() == whole.files()
    assert runs.check().code == 0


@pytest.mark.slow
def test_two_processes_killed_and_back_to_one(runs, whole, tally):
  """Two, one of them killed; both again; then one alone on 8 cores."""
  rows, chance = tally(3), random.Random(4)
  for number in range(amount(6, 1)):
    both = [runs.start(4, process, 2) for process in (0, 1)]
    deadline = time.monotonic() + 60
    more = len(runs.done()) + 3
    while len(runs.done()) < more and time.monotonic() < deadline:
      time.sleep(0.002)
    with rows.trial(f"2 processes, kill {number}"):
      for run in chance.sample(both, 2):
        run.signal(9)
      for ended in [run.wait() for run in both]:
        assert ended.code in (0, -9), ended.stderr[-400:]
      begun = runs.encoded()
      assert len(begun) == len(set(begun))
  with rows.trial("2 processes to the end"):
    both = [runs.start(4, process, 2) for process in (0, 1)]
    ends = [run.wait() for run in both]
    assert [end.code for end in ends] == [0, 0], [end.stderr for end in ends]
    assert runs.files() == whole.files()
  runs.encoded()
  with rows.trial("and one process makes what is missing"):
    runs.reopen(range(1, SHARDS, 2))
    runs.finish(devices=8)
    assert runs.encoded() == list(range(0, SHARDS, 2))
    assert runs.files() == whole.files()
