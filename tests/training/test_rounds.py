"""A run of two rounds through the command, which says who mines."""

import json

from dpr_jax.core import workdir as workdir_lib
from dpr_jax.data import mined_negatives, negative_rounds


def test_train_mines_between_rounds(call, config_file, fresh_workdir):
  """64 questions; BM25's negatives for 2 steps, the model's for 2 more."""
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
    "--config.train.negatives=model",
  )
  assert done.returncode == 0, done.stderr
  folder = negative_rounds.folder_of(fresh_workdir, 1)
  mined = mined_negatives.read(folder / negative_rounds.FILE, 64)
  before = fresh_workdir.negatives / mined_negatives.FILES["train"]
  assert mined != mined_negatives.read(before, 64)
  manifest = workdir_lib.read_record(folder / "manifest.json")
  assert manifest["config"]["step"] == 2
  # The step that the round begins after was saved, whatever else was due.
  saved = fresh_workdir.training / "checkpoints"
  assert {"2", "4"} <= {path.name for path in saved.iterdir()}
  rows = (fresh_workdir.training / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(row)["step"] for row in rows] == [1, 2, 3, 4]
