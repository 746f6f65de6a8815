"""A run of two rounds through the command, which glues mining to training."""

import json

import pytest

from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import mined_negatives, negative_rounds


def test_train_mines_between_rounds(call, config_file, fresh_workdir):
  """64 questions; BM25's negatives for 2 steps, the model's for 2 more.

  Each round has a schedule of its own: of two steps, one of them warm-up, at
  the peak.  One schedule of all four would fall from the third on.
  """
  done = call(
    "train",
    f"--config={config_file}",
    f"--workdir={fresh_workdir.root}",
    "--cpu_devices=2",
    "--config.train.max_steps=4",
    "--config.train.warmup_steps=1",
    "--config.train.checkpoint_every=0",
    "--config.train.dev_questions=0",
    "--config.train.rounds=2",
    "--config.train.restart",
    "--config.train.negatives=model:1,passage:1,previous:1",
    "--config.train.hard_negatives=3",
  )
  assert done.returncode == 0, done.stderr
  folder = negative_rounds.folder_of(fresh_workdir, 1)
  mined = mined_negatives.read(folder / negative_rounds.FILES["model"], 64)
  before = fresh_workdir.negatives / mined_negatives.FILES["train"]
  assert mined != mined_negatives.read(before, 64)
  near = mined_negatives.read_rows(folder / "passage.jsonl.gz", 64)
  assert [row.ids for row in near] != mined
  assert all(len(row.scores) == len(row.ids) for row in near)
  manifest = workdir_lib.read_record(folder / "manifest.json")
  assert manifest["config"]["step"] == 2
  assert manifest["config"]["kinds"] == ["model", "passage"]
  assert set(manifest["false_negatives"]) == {"model", "passage"}
  # The step that the round begins after was saved, whatever else was due.
  saved = fresh_workdir.training / "checkpoints"
  assert {"2", "4"} <= {path.name for path in saved.iterdir()}
  rows = (fresh_workdir.training / "metrics.jsonl").read_text().splitlines()
  rows = [json.loads(row) for row in rows]
  assert [row["step"] for row in rows] == [1, 2, 3, 4]
  assert [row["learning_rate"] for row in rows] == pytest.approx([1e-3] * 4)
