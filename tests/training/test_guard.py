"""The verdict at the end of a training, and the blend with its start."""

import copy
import json

import jax
import numpy as np
import pytest

from dpr_jax.cli import workdir_check
from dpr_jax.core import errors
from dpr_jax.core import workdir as workdir_lib
from dpr_jax.models import checkpoint_files, checkpoints, stored_towers
from dpr_jax.training import guard, train_retriever


def test_blended():
  """3/4 of 1 and 1/4 of 9 are 3, in float32; the ends are the trees."""
  start, trained = {"w": np.float32([1, 0.1])}, {"w": np.float32([9, 0.3])}
  found = guard.blended(start, trained, 0.25)["w"]
  assert found.dtype == np.float32
  wanted = np.float32(0.75) * np.float32(0.1) + np.float32(0.25) * np.float32(
    0.3
  )
  assert found.tolist() == [3.0, float(wanted)]
  assert guard.blended(start, trained, 0.75)["w"][0] == 7.0
  assert guard.blended(start, trained, 0.0) is start
  assert guard.blended(start, trained, 1.0) is trained


def test_choose():
  """The best mean reciprocal rank; of equal ones the most of the training."""
  share, tried = guard.choose({1.0: [4, 1], 0.0: [1, 4], 0.5: [2, 2]})
  assert share == 1.0
  assert tried == [
    {"share": 0.0, "reciprocal_rank": 0.625, "average_rank": 2.5, "top1": 0.5},
    {"share": 0.5, "reciprocal_rank": 0.5, "average_rank": 2.0, "top1": 0.0},
    {"share": 1.0, "reciprocal_rank": 0.625, "average_rank": 2.5, "top1": 0.5},
  ]
  assert guard.choose({1.0: [2, 2], 0.5: [1, 3], 0.0: [3, 1]})[0] == 0.5
  assert guard.choose({1.0: [2, 2], 0.5: [2, 2], 0.0: [1, 2]})[0] == 0.0


class _Toy:
  """A training of one weight from 0 to 4 whose best value is `best`.

  All eight questions have the rank 1 + |weight - best|.
  """

  def __init__(self, folder, best, steps=(4, 6)):
    self.folder, self.best, self.evaluated = folder, best, []
    self.saved = folder / "checkpoints"
    self.start = {"w": np.float32([0])}
    for step in steps:
      weight = {"w": np.float32([4 if step == 6 else 2])}
      checkpoint_files.write(
        self.saved, step, {"params": weight, "optimizer": weight}
      )
    checkpoints.write_selected(self.saved, {"steps": [6], "why": "the last"})
    rows = [
      {"step": 0, **self._row(0.0)},
      {"step": 6, "loss": 1.0},
      {"step": 6, **self._row(4.0)},
    ]
    (folder / "metrics.jsonl").write_text(
      "".join(json.dumps(row) + "\n" for row in rows)
    )

  def _row(self, weight):
    ranks = [1 + int(abs(weight - self.best))] * 8
    return {"dev_ranks": ranks, "dev_pool": 9, "dev_loss": 1.0}

  def evaluate(self, params):
    weight = float(params["w"][0])
    self.evaluated.append(weight)
    return self._row(weight)

  def conclude(self, blend="none"):
    self.evaluated = []
    return guard.conclude(self.folder, self.start, self.evaluate, blend)

  def weight(self):
    step, params = checkpoints.load_params(self.saved)
    assert step == 6
    return float(params["w"][0])


@pytest.fixture
def toy(tmp_path):
  """The middle is best: both ends have rank 3, it has rank 1."""
  (tmp_path / "checkpoints").mkdir()
  return _Toy(tmp_path, best=2.0)


def test_without_a_blend(toy):
  """From the two rows alone; nothing is evaluated again."""
  found = toy.conclude()
  assert toy.evaluated == []
  assert found["average_rank"] == [3.0, 3.0]
  assert found["outcome"] == "even"
  assert "blend" not in found
  assert toy.weight() == 4
  assert checkpoints.read_selected(toy.saved) == {
    "steps": [6],
    "why": "the last",
  }


def test_rows_of_an_older_version_lack_ranks(toy):
  """Then both are evaluated."""
  (toy.folder / "metrics.jsonl").write_text('{"step": 6, "dev_loss": 1.0}\n')
  assert toy.conclude()["average_rank"] == [3.0, 3.0]
  assert toy.evaluated == [0.0, 4.0]


def test_a_mean_of_checkpoints_is_evaluated(toy):
  """It has no row: (2 + 4) / 2 = 3, rank 2."""
  checkpoints.write_selected(toy.saved, {"steps": [4, 6]})
  assert toy.conclude()["average_rank"] == [3.0, 2.0]
  assert toy.evaluated == [3.0]


def test_a_blend(toy, caplog):
  """Half of both: better, and what later stages load; then without again."""
  found = toy.conclude("auto")
  assert toy.evaluated == [1.0, 2.0, 3.0]
  assert found["blend"]["share"] == 0.5
  tried = [each["reciprocal_rank"] for each in found["blend"]["tried"]]
  assert tried == [1 / 3, 1 / 2, 1.0, 1 / 2, 1 / 3]
  assert found["outcome"] == "better"
  assert found["trained"]["outcome"] == "even"
  assert toy.weight() == 2
  assert checkpoints.read_selected(toy.saved)["blend"] == 0.5
  assert float(checkpoints.load_params(toy.saved, 6)[1]["w"][0]) == 4
  # Of a selection that is lost, the manifest tells.
  workdir_lib.write_record(
    toy.folder / "manifest.json",
    {"selected": checkpoints.read_selected(toy.saved)},
  )
  (toy.saved / "selected.json").unlink()
  assert toy.weight() == 2
  (toy.folder / "manifest.json").unlink()
  checkpoints.write_selected(toy.saved, {"steps": [6], "blend": 0.5})
  # Again: the same; then without it.
  assert toy.conclude("auto") == found
  assert toy.weight() == 2
  toy.conclude()
  assert toy.weight() == 4
  assert not (toy.saved / "blend").exists()
  assert not (toy.saved / "blend.sha256.json").exists()


def test_a_blend_of_the_start_alone(tmp_path):
  """The training made it worse: the start is used, bit for bit."""
  (tmp_path / "checkpoints").mkdir()
  toy = _Toy(tmp_path, best=0.0)
  assert toy.conclude()["outcome"] == "worse"
  found = toy.conclude("auto")
  assert found["blend"]["share"] == 0
  assert found["trained"]["outcome"] == "worse"
  assert found["outcome"] == "even"
  assert toy.weight() == 0


def test_a_blend_of_the_training_alone(tmp_path):
  """Then there is nothing to store."""
  (tmp_path / "checkpoints").mkdir()
  toy = _Toy(tmp_path, best=4.0)
  assert toy.conclude("auto")["blend"]["share"] == 1
  assert toy.weight() == 4
  assert not (toy.saved / "blend").exists()
  assert "blend" not in checkpoints.read_selected(toy.saved)


def test_killed_while_it_stores_the_blend(toy, monkeypatch):
  """The trained weights stay selected, and the next call makes it."""
  with monkeypatch.context() as patch:

    def dies(*_):
      raise RuntimeError("power cut")

    patch.setattr(checkpoint_files, "write", dies)
    with pytest.raises(RuntimeError, match="power cut"):
      toy.conclude("auto")
  assert toy.weight() == 4
  toy.conclude("auto")
  assert toy.weight() == 2


def test_a_damaged_blend_is_refused(toy):
  """As any checkpoint, with the way on."""
  toy.conclude("auto")
  files = [p for p in (toy.saved / "blend").rglob("*") if p.is_file()]
  path = max(files, key=lambda path: path.stat().st_size)
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(errors.InputError, match="blend is damaged.*resumes from"):
    toy.weight()


def test_no_questions_no_verdict(toy):
  """And why."""
  found = guard.conclude(toy.folder, toy.start, None, "none", "none asked")
  assert found == {"outcome": "", "why": "none asked"}


@pytest.mark.compiles
def test_a_training_with_a_verdict_and_then_a_blend(tiny_config, fresh_workdir):
  """No step is taken again for the blend; the towers are those weights."""
  config = copy.deepcopy(tiny_config)
  config.train.checkpoint_every = config.train.dev_every = 0
  train_retriever.train(config, fresh_workdir)
  folder = fresh_workdir.training
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  dev = [row for row in map(json.loads, lines) if "dev_ranks" in row]
  assert [row["step"] for row in dev] == [0, 6]

  def manifest():
    return workdir_lib.read_manifest(folder, "train")

  found = manifest()["verdict"]
  assert found["average_rank"] == [row["dev_average_rank"] for row in dev]
  one, other = found["top1"]["one"], found["top1"]["other"]
  assert [other, one] == [row["dev_top1"] for row in dev]
  trained = stored_towers.trained(config, fresh_workdir)
  start = stored_towers.before_training(config, fresh_workdir)

  config.train.blend = "auto"
  train_retriever.train(config, fresh_workdir)
  assert (folder / "metrics.jsonl").read_text().splitlines() == lines
  share = manifest()["verdict"]["blend"]["share"]
  assert share in guard.SHARES
  assert manifest()["verdict"]["trained"] == found
  used = stored_towers.trained(config, fresh_workdir)
  wanted = guard.blended(start.params, trained.params, share)
  jax.tree.map(np.testing.assert_array_equal, used.params, wanted)
  checked = {
    each.name: each.state
    for each in workdir_check.check(fresh_workdir, deep=False)
    if each.name.startswith("training")
  }
  assert set(checked.values()) == {workdir_check.OK}
  assert ("training/checkpoints/blend" in checked) == (share != 1)
  before = (folder / "manifest.json").stat().st_mtime_ns
  train_retriever.train(config, fresh_workdir)  # done and unchanged
  assert (folder / "manifest.json").stat().st_mtime_ns == before
  config.train.blend = "none"
  train_retriever.train(config, fresh_workdir)
  used = stored_towers.trained(config, fresh_workdir)
  jax.tree.map(np.testing.assert_array_equal, used.params, trained.params)
  assert "blend" not in manifest()["selected"]


def test_a_blend_is_evaluated_in_the_layout_of_the_loop():
  """Stacked, if the loop stacks layers: its programs take nothing else."""
  one = {"bert": {f"layer_{n}": {"w": np.float32([n])} for n in range(3)}}
  shown: list = []
  for scanned in (True, False):
    train_retriever.unstacked(shown.append, scanned)(one)
  stacked, plain = shown
  assert stacked["bert"]["layers"]["w"].tolist() == [[0.0], [1.0]]
  assert sorted(stacked["bert"]) == ["layer_2", "layers"]
  assert plain is one
  assert train_retriever.unstacked(None, True) is None


def test_a_blend_needs_dev_questions(tiny_config, fresh_workdir):
  """Refused before anything is made."""
  config = copy.deepcopy(tiny_config)
  config.train.blend, config.train.dev_questions = "auto", 0
  with pytest.raises(
    errors.InputError, match="blend='auto': .*_questions is 0"
  ):
    train_retriever.train(config, fresh_workdir)
  assert not fresh_workdir.training.exists()
