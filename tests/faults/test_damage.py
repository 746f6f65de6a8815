"""Row 7: a flipped bit or a cut end in any file of a finished workdir.

The next command that uses the file must refuse it, with exit code 2 and one
line that names it; or make it again, and say so; or leave exactly what it
leaves without the damage.
"""

import json
import random
import shutil

import pytest

from tests.faults import flows
from tests.faults.amounts import amount

FLIPS, CUTS = amount(100, 1), amount(20, 1)
SEED = 14

# By kind: files, and the commands that use them.  A kind's trials take its
# files and their commands in turn.
_RETRIEVE, _MINE = "retrieve --overwrite", "mine --overwrite"
_EVALUATE, _EMBED = "evaluate --overwrite", "embed --overwrite"
_SEARCH = (_RETRIEVE, "ask")
KINDS = {
  "vectors": {
    "w/embeddings/passages/vectors-*.npy": (
      *("index --overwrite", _RETRIEVE, "export-npy", "ask", "embed"),
      "retrieve --overwrite --method=exact",
    )
  },
  "ids": {
    "w/embeddings/passages/ids-*.npy": (
      *("index --overwrite", _RETRIEVE, "export-npy", "embed"),
    )
  },
  "id tables": {
    "w/data/passages/ids.npy": (_RETRIEVE, _MINE, "ask"),
    "w/data/passages/id_order.npy": (
      *(_MINE, "train --overwrite", _RETRIEVE, _EVALUATE),
    ),
  },
  "FAISS": {"w/index/*/index.faiss": (*_SEARCH, "index")},
  "BM25": {
    "w/bm25/*.npy": ("retrieve --overwrite --method=bm25", "mine"),
    "w/bm25/[pv]*.json": ("retrieve --overwrite --method=bm25", _MINE),
  },
  "array_record": {
    "w/data/passages/*.array_record*": (_MINE, *_SEARCH, "prepare"),
    "w/data/train/*.array_record*": (_MINE, "train --overwrite"),
    "w/data/dev/*.array_record*": (_RETRIEVE, _MINE),
  },
  "JSON beside it": {
    "w/data/*/dataset_info.json": (_MINE, *_SEARCH, "train --overwrite"),
    "w/data/*/features.json": (_MINE, *_SEARCH, "train --overwrite"),
  },
  "gz": {
    "w/negatives/bm25.jsonl.gz": ("train --overwrite", "mine"),
    "w/negatives/bm25-dev.jsonl.gz": ("train --overwrite",),
  },
  "results": {
    "w/results/dev.bm25.json": (_EVALUATE, "read --overwrite", "retrieve"),
    "w/results/dev.dense.json": (_EVALUATE, "retrieve"),
    "w/results/train.bm25.json": ("train-reader --overwrite",),
    "w/answers/dev.json": ("read",),
    "w/answers/dev.bm25.json": (_EVALUATE, "read"),
    "w/evaluation/dev.json": ("evaluate",),
  },
  "tokens": {
    "w/tokens/passages/*.npy": (_EMBED, "train --overwrite"),
    "w/tokens/questions/*.npy": ("train --overwrite",),
  },
  "manifests": {
    "w/data/manifest.json": (_MINE, _EMBED, "prepare"),
    "w/negatives/manifest.json": ("train --overwrite", "mine"),
    "w/bm25/manifest.json": (_RETRIEVE, _MINE),
    "w/tokens/passages/manifest.json": (_EMBED,),
    "w/tokens/questions/manifest.json": ("train --overwrite",),
    "w/training/manifest.json": (_EMBED, "export-hf", "train"),
    "w/training/started.json": ("train", "train --overwrite"),
    "w/training/metrics.jsonl": ("train",),
    "w/embeddings/passages/manifest.json": (
      *("index --overwrite", *_SEARCH, "embed", "export-npy"),
    ),
    "w/index/*/manifest.json": (*_SEARCH, "index"),
    "w/results/*.manifest.json": (_EVALUATE, "read --overwrite", "retrieve"),
    "w/reader/manifest.json": ("read --overwrite", "train-reader"),
    "w/reader/started.json": ("train-reader",),
    "w/answers/*.manifest.json": (_EVALUATE, "read"),
    "w/evaluation/*manifest.json": ("evaluate",),
    "w/config.json": (*_SEARCH, _EVALUATE),
  },
  "exported": {
    "hf/passage/*": ("embed exported",),
    "npy/*": ("import exported",),
    "reader/*": ("read exported",),
  },
}
QUESTION = "Where was Einstein born?"


@pytest.fixture(scope="module")
def finished(flow, tmp_path_factory):
  """The finished workdir with its exports beside it."""
  root = tmp_path_factory.mktemp("finished") / "root"
  root.mkdir()
  shutil.copytree(flow.after("evaluate") / "w", root / "w")
  for name in ("hf", "npy", "reader"):
    shutil.copytree(flow.after(f"export-{name}") / "out", root / name)
  return root


def _run(flow, consumer, root):
  """Runs a command of `KINDS`."""
  command, *flags = consumer.split()
  if command == "ask":
    where = [f"--workdir={root / 'w'}", "--cpu_devices=1"]
    return flow.zygote.run("ask", *where, "--json", QUESTION, cwd=root)
  if flags != ["exported"]:
    return flow.run(command, root, *flags)
  if command == "import":
    return flow.zygote.run(
      *("import", "--what=embeddings", f"--from={root / 'npy'}"),
      *(f"--out={root / 'out'}",),
      cwd=root,
    )
  if command == "read":
    reader = f"--config.read.reader={root / 'reader'}"
    return flow.run("read", root, "--overwrite", reader)
  checkpoint = f"--config.model.checkpoint={root / 'hf' / 'passage'}"
  return flow.run("embed", root, "--model=dense-start", checkpoint)


class Consumers:
  """What every command of `KINDS` leaves and prints without damage."""

  def __init__(self, flow, finished, root):
    """Args: root: of copies; some files hold its name."""
    self._flow, self._finished, self.root = flow, finished, root
    self._wanted = {}

  def copy(self):
    """Puts an undamaged workdir into `root`."""
    shutil.rmtree(self.root, ignore_errors=True)
    shutil.copytree(self._finished, self.root)

  def wanted(self, consumer):
    """(answer, digest) of a command on the undamaged workdir."""
    if consumer not in self._wanted:
      self.copy()
      ended = _run(self._flow, consumer, self.root)
      assert ended.code == 0, f"{consumer}: {ended.stderr}"
      self._wanted[consumer] = (
        _answer(ended, consumer),
        flows.digest(self.root),
      )
    return self._wanted[consumer]


def _answer(ended, consumer):
  """What `ask` has printed, without how long it took."""
  if consumer != "ask" or ended.code:
    return None
  return {k: v for k, v in json.loads(ended.stdout).items() if k != "seconds"}


@pytest.fixture(scope="module")
def consumers(flow, finished, tmp_path_factory):
  return Consumers(flow, finished, tmp_path_factory.mktemp("copy") / "root")


def _trials(kind, finished):
  """Names of trials: `kind: how number, file, command`."""
  places = []
  for pattern, commands in KINDS[kind].items():
    for path in sorted(finished.glob(pattern)):
      if path.is_file() and path.stat().st_size:
        name = str(path.relative_to(finished))
        places += [(name, command) for command in commands]
  assert len({pattern for pattern in KINDS[kind]}) <= len(places), kind
  chance = random.Random(SEED)
  chance.shuffle(places)
  hows = [("flip", n) for n in range(FLIPS)] + [("cut", n) for n in range(CUTS)]
  return [
    f"{kind}: {how} {n}, {places[i % len(places)][0]},"
    f" {places[i % len(places)][1]}"
    for i, (how, n) in enumerate(hows)
  ]


def _damage(path, trial):
  """Flips a bit or cuts the end; where, is decided by the trial's name."""
  chance = random.Random(f"{SEED} {trial}")
  data = bytearray(path.read_bytes())
  if ": flip " in trial:
    bit = chance.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
  else:
    del data[chance.randrange(len(data)) :]
  path.write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_seen_or_does_no_harm(flow, finished, consumers, kind, tally):
  rows, root = tally(7), consumers.root
  for trial in rows.each(_trials(kind, finished)):
    name, consumer = trial.split(", ")[-2:]
    wanted = consumers.wanted(consumer)
    consumers.copy()
    _damage(root / name, trial)
    with rows.trial(trial):
      check(flow, wanted, root, name, consumer)


def check(flow, wanted, root, name, consumer):
  """Refused by its name, or without any harm."""
  ended = _run(flow, consumer, root)
  line = " / ".join(ended.lines[-1:])
  last = line[-300:]
  assert ended.code in (0, 2), f"exit {ended.code}: {last}"
  if ended.code == 2:
    assert len(ended.lines) == 1, f"{len(ended.lines)} lines: {last}"
    assert str(root / name) in line, f"without the file: {last}"
    return
  answer, digest = wanted
  assert _answer(ended, consumer) == answer, "silent: another answer"
  found = flows.digest(root)
  other = {
    n for n in digest.keys() | found.keys() if digest.get(n) != found.get(n)
  }
  if name not in other:
    assert not other, f"silent: other files: {sorted(other)}"
    return
  other.remove(name)
  assert not other, f"silent: other files: {sorted(other)}"


def test_kinds_name_files_that_are_there(finished):
  """A pattern that no longer fits would test nothing."""
  for patterns in KINDS.values():
    for pattern in patterns:
      assert list(finished.glob(pattern)), pattern
