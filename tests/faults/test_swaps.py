"""Row 8: what was made from other data or by another model is put in place.

Two workdirs: ours, and another one with other passages, other questions and
another model.  A part of the other one replaces ours; the next command that
uses it must end with exit code 2 and one line that shows what the part is of
and what it should be of; or make the part again, and end as if it had never
been replaced.
"""

import copy
import re
import shutil

import filelock
import pytest

from tests.faults import flows
from tests.faults.amounts import FULL, amount

# Parts of the workdir, and the commands that use them.
_RETRIEVE = "retrieve --overwrite"
SWAPS = {
  "vectors, for the index": ("embeddings", "index --overwrite"),
  "vectors, for retrieval": ("embeddings", _RETRIEVE),
  "an index": ("index", _RETRIEVE),
  "BM25": ("bm25", "retrieve --overwrite --method=bm25"),
  "tokens": ("tokens/passages", "embed --overwrite"),
  "tokens of questions": ("tokens/questions", "train --overwrite"),
  "negatives": ("negatives", "train --overwrite"),
  "results": ("results", "evaluate --overwrite"),
  "results, to be read": ("results", "read --overwrite"),
  "data": ("data", _RETRIEVE),
  "passages in our data": ("data/passages", _RETRIEVE),
  "a model, for the index": ("training", "index --overwrite"),
  "a model, for retrieval": ("training", _RETRIEVE),
  "checkpoints in our training": ("training/checkpoints", "embed --overwrite"),
  "what a model needs": ("training/model", "embed --overwrite"),
  "a manifest of vectors": ("embeddings/passages/manifest.json", _RETRIEVE),
  "one file of vectors": ("embeddings/passages/vectors-00001.npy", _RETRIEVE),
  "results of one method": ("results/dev.bm25.json", "evaluate --overwrite"),
}
_FINGERPRINT = re.compile(r"\b[0-9a-f]{8,64}\b")


@pytest.fixture(scope="module")
def other(zygote, shared_folder, tiny_config, write_config):
  """A workdir of other data and another model, with the same layout."""
  flow = flows.Flow(zygote, shared_folder / "other")
  config = flows.tiny(copy.deepcopy(tiny_config))
  config.seed, config.data.max_train, config.data.max_dev = 1, 20, 7
  config.data.max_passages = 79
  with filelock.FileLock(shared_folder / "other.lock"):
    if not flow.is_made():
      flow.make(config, write_config, flows.STAGES)
  return flow.after("evaluate") / "w"


def _put(source, target):
  if source.is_dir():
    shutil.rmtree(target)
    shutil.copytree(source, target)
  else:
    shutil.copyfile(source, target)


def _run(flow, use, root):
  command, *flags = use.split()
  return flow.run(command, root, *flags)


@pytest.mark.slow
def test_what_does_not_belong_together(flow, other, tally, tmp_path):
  rows = tally(8)
  names = list(SWAPS) if FULL else list(SWAPS)[:: len(SWAPS) // amount(17, 4)]
  for name in rows.each(names):
    part, use = SWAPS[name]
    clean, root = tmp_path / "clean", tmp_path / "root"
    for folder in (clean, root):
      shutil.rmtree(folder, ignore_errors=True)
      flow.copy_after("evaluate", folder)
    _put(other / part, root / "w" / part)
    with rows.trial(name):
      ended = _run(flow, use, root)
      line = " / ".join(ended.lines[-1:])
      if ended.code == 0:
        assert _run(flow, use, clean).code == 0
        made, wanted = flows.digest(root), flows.digest(clean)
        differ = {n for n in made | wanted if made.get(n) != wanted.get(n)}
        assert not differ, f"exit 0, silent: {sorted(differ)}"
        continue
      assert ended.code == 2, f"exit {ended.code}: {line}"
      assert len(ended.lines) == 1, f"{len(ended.lines)} lines: {line}"
      shown = set(_FINGERPRINT.findall(line))
      assert len(shown) >= 2, f"without both fingerprints: {line}"
