"""A tiny workdir after every stage, and what must be the same after a fault."""

import contextlib
import copy
import hashlib
import json
import pathlib
import shutil

import numpy as np

STAGES = (
  *("prepare", "mine", "train", "embed", "index", "retrieve"),
  *("train-reader", "read", "evaluate"),
)
EXPORTS = {
  "export-hf": ("--format=hf",),
  "export-st": ("--format=sentence-transformers",),
  "export-npy": ("--what=embeddings", "--format=npy"),
  "export-reader": ("--what=reader", "--format=dpr-reader"),
}
COMMANDS = (*STAGES, *EXPORTS, "import")
# Keys in manifests and metrics: of no two runs they are the same.
_SPEEDS = (
  "_in_this_run",
  "checksum",
  "checkpoints",  # Orbax writes times into its files
  "created",
  "seconds",
  "_per_second",
  "thread",
  "compil",
  "data_wait",
  "goodput",
  "mfu",
)


def tiny(config):
  """The whole flow, the reader included, in ten seconds."""
  config = copy.deepcopy(config)
  config.data.max_train, config.data.max_dev = 24, 8
  config.data.max_passages = 80  # FAISS warns of fewer than 78
  config.model.passage_length = 32
  train, reader = config.train, config.reader
  train.batch_size, train.max_steps, train.dev_every = 8, 4, 2
  config.mine.depth = 20
  config.embed.rows_per_shard, config.embed.shapes = 16, 1
  config.embed.length_step = 32
  config.index.factory = "IVF2,SQ8"
  config.retrieve.methods, config.retrieve.depth = ("bm25", "dense"), 20
  reader.train, reader.method, reader.from_top = "results", "bm25", 20
  reader.length, reader.question_length, reader.overlap = 48, 16, 8
  reader.passages, reader.batch_size, reader.max_steps = 2, 8, 4
  reader.learning_rate, reader.log_every = 1e-3, 1
  reader.checkpoint_every, reader.dev_every = 2, 2
  reader.dev_questions, reader.dev_passages = 4, 2
  config.read.methods, config.read.passages = ("bm25",), (1, 2)
  config.read.length_step, config.read.rerank_depth = 48, 5
  return config


class Flow:
  """Workdirs after every stage, made once.

  `made/<command>/w` is the workdir after it, `made/<command>/out` what an
  export or import wrote.
  """

  def __init__(self, zygote, folder: pathlib.Path):
    """Args: folder: where they are, or will be made."""
    self.zygote, self.folder = zygote, folder
    self.config = folder / "config.py"
    self._digests: dict[str, dict[str, str]] = {}

  def is_made(self) -> bool:
    """True where `make` came to its end."""
    return (self.folder / "whole").exists()

  def make(self, config, write_config, commands=COMMANDS) -> None:
    """All commands, one after the other."""
    shutil.rmtree(self.folder, ignore_errors=True)
    (self.folder / "made").mkdir(parents=True)
    write_config(self.config, config)
    for command in commands:
      root = self.folder / "made" / command
      self.copy_before(command, root)
      ended = self.run(command, root)
      assert ended.code == 0, f"{command}: {ended.stderr}"
    (self.folder / "whole").touch()

  def after(self, command: str) -> pathlib.Path:
    """The folder with `w` and `out` after a command; not to be changed."""
    return self.folder / "made" / command

  def copy_before(self, command: str, root: pathlib.Path) -> None:
    """A copy of what a command begins with, as `root/w`."""
    number = COMMANDS.index(command)
    root.mkdir()
    if number:
      source = COMMANDS[min(number, len(STAGES)) - 1]
      shutil.copytree(self.after(source) / "w", root / "w")

  def copy_after(self, command: str, root: pathlib.Path) -> None:
    """A copy of what a command left, as `root`."""
    shutil.copytree(self.after(command), root)

  def argv(self, command: str, root: pathlib.Path, *more: str) -> list[str]:
    """The words of a command for the workdir `root/w`."""
    where = [f"--config={self.config}", f"--workdir={root / 'w'}"]
    where.append("--cpu_devices=1")
    if command == "import":
      source = self.after("export-npy") / "out"
      return ["import", "--what=embeddings", f"--from={source}", *more] + [
        f"--out={root / 'out'}"
      ]
    if command in EXPORTS:
      out = f"--out={root / 'out'}"
      return ["export", *EXPORTS[command], out, *where, *more]
    return [command, *where, *more]

  def run(self, command: str, root: pathlib.Path, *more: str, **asked):
    """Runs a command in `root`; see `Zygote.start` for `asked`."""
    return self.zygote.run(*self.argv(command, root, *more), cwd=root, **asked)

  def check(self, root: pathlib.Path):
    """`dpr-jax check` of the workdir in `root`."""
    return self.zygote.run("check", f"--workdir={root / 'w'}", cwd=root)

  def differences(self, command: str, root: pathlib.Path) -> list[str]:
    """Files of `root` that are not as a run without faults leaves them."""
    if command not in self._digests:
      self._digests[command] = digest(self.after(command))
    wanted, found = self._digests[command], digest(root)
    return sorted(
      name
      for name in wanted.keys() | found.keys()
      if wanted.get(name) != found.get(name)
    )


def digest(root: pathlib.Path) -> dict[str, str]:
  """sha256 by name of all that is below a folder, without times and speeds."""
  found = {}
  for path in sorted(root.rglob("*")):
    name = str(path.relative_to(root))
    steps = [p for p in path.parents if p.parent.name == "checkpoints"]
    if path.is_dir() and path.parent.name == "checkpoints":
      found[name] = _of_checkpoint(path)
    elif path.is_file() and not steps:
      found[name] = _of_file(path)
  return found


def _of_file(path: pathlib.Path) -> str:
  data = path.read_bytes()
  if path.name.endswith(".sha256.json") or path.name == ".lock":
    return "there"
  if path.name.endswith(("manifest.json", "metrics.jsonl")):
    lines = [data] if path.suffix == ".json" else data.splitlines()
    with contextlib.suppress(ValueError):  # damaged: as it is
      values = [_without_speeds(json.loads(line)) for line in lines]
      data = json.dumps(values).encode()
  return hashlib.sha256(data).hexdigest()


def _without_speeds(value):
  if isinstance(value, list):
    return [_without_speeds(each) for each in value]
  if not isinstance(value, dict):
    return value
  return {
    # The sums of checkpoints are of files whose names Orbax draws.
    key: sorted(each) if key == "checkpoints" else _without_speeds(each)
    for key, each in value.items()
    if not any(word in key for word in _SPEEDS)
  }


def _of_checkpoint(folder: pathlib.Path) -> str:
  """sha256 of the arrays; the names of Orbax's files are random."""
  import jax
  import orbax.checkpoint as ocp

  if not folder.name.isdigit():
    return "not a checkpoint"
  sums = hashlib.sha256()
  for name in ("params", "optimizer"):
    with ocp.StandardCheckpointer() as checkpointer:
      tree = checkpointer.restore(folder / name)
    for path, leaf in jax.tree.leaves_with_path(tree):
      sums.update(jax.tree_util.keystr(path).encode())
      sums.update(np.asarray(leaf).tobytes())
  return sums.hexdigest()
